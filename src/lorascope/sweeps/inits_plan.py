"""What a comparison of initialisations runs: methods, rates, seeds, and the settings of every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.core.errors import InputError, unknown_name
from lorascope.sweeps.spec import SweepSpec
from lorascope.training.spec import INITS

REFERENCE = "default"


@dataclass(frozen=True, kw_only=True)
class InitsPlan:
    """What is compared, and how.

    Attributes:
        methods: Entries of `lorascope.training.spec.INITS`; the reference is added where it is missing.
        rates: Learning rates that each method is tuned over.
        tune_seeds: Seeds that decide each method's rate, by the loss of validation rows at the end of training.
        seeds: Seeds that methods are compared on; none of them is a tuning seed.
        base: Settings of every run.
        tuning: Settings of tuning runs in place of the base's: they need no test rows.

    Raises:
        InputError: A method is unknown, a list is empty or repeats itself, or a seed would tune and compare.
    """

    methods: tuple[str, ...]
    rates: tuple[float, ...]
    tune_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    base: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in INITS:
                raise unknown_name("init", method, INITS)
        lists = {"methods": self.methods, "rates": self.rates, "tune_seeds": self.tune_seeds, "seeds": self.seeds}
        for name, values in lists.items():
            if not values:
                raise InputError(f"{name} is empty: give at least one")
            if len(set(values)) < len(values):
                raise InputError(f"{name} {list(values)} has a value twice: keep one of them")
        both = sorted(set(self.tune_seeds) & set(self.seeds))
        if both:
            raise InputError(
                f"seed {both[0]} would choose learning rates and then compare by them, which favours whatever was lucky: "
                "give other seeds to one of the two"
            )
        if any(not (math.isfinite(rate) and rate > 0) for rate in self.rates):
            raise InputError(f"rates {list(self.rates)} must be numbers above 0")
        if REFERENCE not in self.methods:
            object.__setattr__(self, "methods", (REFERENCE, *self.methods))

    def tuning_sweep(self) -> SweepSpec:
        """Every method at every rate, on the tuning seeds; only the last of the base's probes decides.

        Raises:
            InputError: The base has no probe, or one after the last step.
        """
        probes, steps = self.base.get("probe_steps") or (), self.base.get("max_steps")
        if not probes:
            raise InputError("probe_steps is empty: without a validation loss no learning rate can be chosen")
        if steps is not None and max(probes) > steps:
            raise InputError(
                f"probe_steps {list(probes)} go beyond max_steps {steps}: set both, such as probe_steps=[1,{steps}]"
            )
        own = {"probe_steps": [max(probes)], **self.tuning}
        cells = [
            {"init": method, "learning_rate": rate, "seed": seed, **own}
            for seed in self.tune_seeds
            for method in self.methods
            for rate in self.rates
        ]
        return SweepSpec(base=self.base, cells=cells)

    def final_sweep(self, chosen: Mapping[str, float]) -> SweepSpec:
        """Every method at its own rate, on the other seeds."""
        cells = [
            {"init": method, "learning_rate": chosen[method], "seed": seed}
            for seed in self.seeds
            for method in self.methods
            if method in chosen
        ]
        return SweepSpec(base=self.base, cells=cells)


def reduced_plan(
    model: str = "smollm2",
    task: str = "towns",
    *,
    data_dir: str | None = None,
    methods: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    seeds: int = 3,
) -> InitsPlan:
    """30 steps of 4 rows, three rates, one tuning seed: about a minute a run on one core for the embedded model.

    Args:
        model: Base model.
        task: A multiple-choice task.
        data_dir: Local folder with the rows of a hub task.
        methods: Inits to compare; default: PEFT's without a data pass, EVA and LoRA-GA, and ours without a residual.
        rates: Learning rates.
        seeds: Seeds that methods are compared on.
    """
    _check_seeds(seeds)
    base = _base(model, task, data_dir)
    base |= {
        "max_steps": 30,
        "batch_size": 4,
        "warmup_steps": 0,
        "schedule": "constant",
        "init_rows": 32,
        "probe_steps": [1, 10, 30],
        "probe_limit": 40,
        "eval_limit": 80,
        "measure_limit": 8,
        "text_limit": 2,
        "save_steps": 30,
    }
    usual = ("default", "orthogonal", "pissa", "eva", "lora-ga", "fisher", "activation", "gradient")
    return InitsPlan(
        methods=tuple(methods or usual),
        rates=tuple(rates or (3e-4, 1e-3, 3e-3)),
        tune_seeds=(100,),
        seeds=tuple(range(seeds)),
        base=base,
        tuning={"eval_limit": 1, "measure_limit": 1, "text_task": None},
    )


def full_plan(
    model: str = "smollm2",
    task: str = "towns",
    *,
    data_dir: str | None = None,
    methods: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    seeds: int = 5,
) -> InitsPlan:
    """100 steps of 16 rows, every init, six rates over two and a half orders of magnitude, two tuning seeds.

    Args:
        model: Base model.
        task: A multiple-choice task.
        data_dir: Local folder with the rows of a hub task.
        methods: Inits to compare; default: all.
        rates: Learning rates.
        seeds: Seeds that methods are compared on.
    """
    _check_seeds(seeds)
    base = _base(model, task, data_dir)
    base |= {
        "max_steps": 100,
        "batch_size": 16,
        "warmup_steps": 0,
        "schedule": "constant",
        "init_rows": 128,
        "probe_steps": [1, 10, 30, 100],
        "probe_limit": 128,
        "measure_limit": 64,
        "text_limit": 16,
    }
    return InitsPlan(
        methods=tuple(methods or INITS),
        rates=tuple(rates or (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
        tune_seeds=(100, 101),
        seeds=tuple(range(seeds)),
        base=base,
        tuning={"eval_limit": 1, "measure_limit": 1, "text_task": None},
    )


def _base(model: str, task: str, data_dir: str | None) -> dict[str, Any]:
    return {
        "preset": "quick",
        "model": model,
        "task": task,
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "rank": 8,
        "text_task": "sotu",
        "metrics": ["miub_js", "update_ratio"],
    }


def _check_seeds(seeds: int) -> None:
    if seeds < 1:
        raise InputError(f"seeds {seeds} must be at least 1")
