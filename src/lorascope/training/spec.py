"""What a training run is asked to do: one frozen dataclass that YAML, the command line and Python share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from lorascope.core.errors import InputError, LorascopeError, unknown_name
from lorascope.core.metrics import resolve_groups
from lorascope.core.spec import from_mapping

OPTIMIZERS = ("adamw_torch", "adafactor", "sgd")
VARIANTS = ("local", "base")
TOKENS = ("all", "prompt", "completion", "last")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
PEFT_INITS = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora-ga")
FISHER_INITS = (
    "fisher",
    "activation",
    "gradient",
    "fisher_batch",
    "fisher_balanced",
    "natural_gradient",
    "random",
    "fisher_select",
    "fisher_select_lowest",
    "fisher_whitened",
)
INITS = (*PEFT_INITS, *FISHER_INITS)
QUANTIZED_INITS = ("loftq",)
"""Inits that need a quantised base; not among `INITS`, which are compared with each other on any base."""
RESIDUAL_INITS = ("pissa", "olora", "corda", "lora-ga", "fisher_select", "fisher_select_lowest", "fisher_whitened")
"""Inits that move a part of the base weight into the adapter; the run exports them as ordinary adapters."""

QUANTIZATIONS = (
    *(f"{how}-{kind}{bits}" for how in ("icq", "plain") for kind in ("nf", "int") for bits in (4, 3, 2)),
    "nf4",
    "loftq",
)
"""What a base may be quantised to: calibrated by ICQ, by the same code books without a search, by bitsandbytes (``nf4``), or
that with the start of LoftQ (``loftq``: ``nf4`` and init ``loftq``)."""

CONNECTIONS = ("both", "u1", "u2")
"""Which elastic connections there may be: around A (u1), around B (u2)."""

PRESETS: dict[str, dict[str, Any]] = {
    # The paper names Adam, 4e-5 and 32. It names no schedule and no length: a constant rate and one pass are ours.
    # AdamW without weight decay is Adam.
    "paper": {
        "optimizer": "adamw_torch",
        "weight_decay": 0.0,
        "learning_rate": 4e-5,
        "batch_size": 32,
        "schedule": "constant",
        "epochs": 1.0,
    },
    # Enough to see a 135M model learn on two cores in a minute.
    "quick": {
        "optimizer": "adamw_torch",
        "weight_decay": 0.0,
        "learning_rate": 1e-3,
        "batch_size": 16,
        "schedule": "linear",
        "warmup_steps": 2,
        "max_steps": 20,
    },
}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run: the model, the data, the adapter, the optimiser, and what to find out afterwards.

    Use `RunSpec.from_mapping` for values that come from a file or a command line: it applies the preset, refuses
    unknown names and converts types.

    Attributes:
        model: ``"smollm2"`` (embedded), a local folder or a hub id.
        task: Name of a known task or path of the user's own data.
        data_dir: Local folder with the rows of a known hub task, instead of the hub.
        prompt: Name of the prompt template.
        rank: Rank of the update; 0 measures and evaluates the base model without training.
        alpha: Numerator of the scaling ``alpha / rank``; None means ``2 * rank``.
        dropout: Share of the inputs of the update that is dropped in training, in [0, 1).
        target_modules: ``"all-linear"`` (every dense layer except the head), a regular expression, or a name or names.
        use_rslora: Scale by ``alpha / sqrt(rank)``.
        use_dora: Train a magnitude vector beside the update.
        init: Where the adapter starts: one of PEFT's own (`PEFT_INITS`) or of `lorascope.initialize_lora_fisher`
            (`FISHER_INITS`), by the first training rows; or ``loftq``, over a quantised base.
        init_rows: Training rows that an initialisation by data looks at.
        quantize: Quantise the frozen base first: one of `QUANTIZATIONS`; None leaves it dense.
        elastic: Elastic connections of IR-QLoRA: one of `CONNECTIONS`; None is ordinary LoRA.
        beta_learning_rate: Step size of the strengths of those connections, which start at zero; None is ``learning_rate``.
        share: The paper's smaller models: the second half of the layers shares its weights in groups of this many
            layers; None leaves the model as it is, and so does 1. See `lorascope.adapters.share_layers`.
        length: Keep only rows whose prompt has from ``length[0]`` to ``length[1]`` tokens, both included, for training,
            measuring and evaluating alike; None keeps all.
        preset: Name of the entry of `PRESETS` that filled in the rest, for the record.
        learning_rate: Step size of the optimiser.
        optimizer: One of ``adamw_torch``, ``adafactor``, ``sgd``.
        weight_decay: Decoupled weight decay; 0 makes AdamW plain Adam.
        batch_size: Rows per optimiser step.
        micro_batch_size: Rows per forward pass, a divisor of ``batch_size``; None means all at once. Saves memory.
        max_steps: Optimiser steps; None means ``epochs``.
        epochs: Passes over the data, when ``max_steps`` is None.
        schedule: One of ``constant``, ``constant_with_warmup``, ``linear``, ``cosine``.
        warmup_steps: Steps over which the rate rises from 0.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them.
        seed: Decides the adapter's initial values, the order of the data, and dropout.
        max_length: Longest row in tokens; None means the model's context.
        overlong: What happens to longer rows: ``error``, ``drop`` or ``truncate``.
        pad_token: Token for padding when the tokenizer has none; ``"eos"`` is accepted.
        train_limit: Most rows to train on; None means all.
        eval_limit: Most test rows to evaluate; None means all.
        measure_limit: Most test rows to measure; None means all.
        eval_batch_size: Rows per forward pass when measuring and evaluating.
        metrics: Metrics of the adapter, by name or group.
        variant: ``local`` (one pass) or ``base`` (two passes); see `lorascope.measure`.
        tokens: Which tokens count: ``all``, ``prompt``, ``completion`` or ``last``.
        text_task: Task whose held-out text's perplexity shows how much was forgotten; None leaves it out.
        text_limit: Most test rows of that text.
        save_steps: Steps between checkpoints; None means four to a run, and never more than 500 steps apart.
        logging_steps: Steps between lines of the loss history; None means about 200 lines a run.
        probe_steps: Steps after which the loss of validation rows is written into the history, as ``held_out_loss``; 0 is
            before the first one.
        probe_limit: Most validation rows of those losses.
        report_to: Tracker known to transformers (``tensorboard``, ``wandb`` ...) or ``none``.

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> RunSpec.from_mapping({"preset": "quick", "rank": 4}).learning_rate
        0.001

    References:
        LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732; DoRA, arXiv 2402.09353; the paper's recipe, arXiv 2501.03152.
    """

    model: str = "smollm2"
    task: str = "towns"
    data_dir: str | None = None
    prompt: str = "main"
    rank: int = 16
    alpha: float | int | None = None
    dropout: float | int = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    init: str = "default"
    init_rows: int = 128
    quantize: str | None = None
    elastic: str | None = None
    beta_learning_rate: float | int | None = None
    share: int | None = None
    length: tuple[int, int] | None = None
    preset: str | None = None
    learning_rate: float | int = 4e-5
    optimizer: str = "adamw_torch"
    weight_decay: float | int = 0.0
    batch_size: int = 32
    micro_batch_size: int | None = None
    max_steps: int | None = None
    epochs: float | int = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float | int = 1.0
    seed: int = 0
    max_length: int | None = None
    overlong: str = "error"
    pad_token: str | None = None
    train_limit: int | None = None
    eval_limit: int | None = None
    measure_limit: int | None = 64
    eval_batch_size: int = 16
    metrics: tuple[str, ...] = field(default=("miub_js", "mi_joint", "update_ratio", "spectrum"))
    variant: str = "local"
    tokens: str = "all"
    text_task: str | None = None
    text_limit: int | None = None
    save_steps: int | None = None
    logging_steps: int | None = None
    probe_steps: tuple[int, ...] = ()
    probe_limit: int = 64
    report_to: str = "none"

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, str) and self.target_modules.isidentifier():
            object.__setattr__(self, "target_modules", (self.target_modules,))  # one name; PEFT would match it whole
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if isinstance(self.metrics, list):
            object.__setattr__(self, "metrics", tuple(self.metrics))
        if isinstance(self.probe_steps, list):
            object.__setattr__(self, "probe_steps", tuple(self.probe_steps))
        if isinstance(self.length, list):
            object.__setattr__(self, "length", tuple(self.length))
        if self.quantize == "loftq":
            if self.init not in ("default", "loftq"):
                raise InputError(
                    f"quantize 'loftq' is a start of its own: leave out init '{self.init}', or take quantize 'nf4'"
                )
            object.__setattr__(self, "quantize", "nf4")
            object.__setattr__(self, "init", "loftq")
        _at_least(0, rank=self.rank, warmup_steps=self.warmup_steps, seed=self.seed)
        _at_least(
            1,
            share=self.share,
            init_rows=self.init_rows,
            probe_limit=self.probe_limit,
            batch_size=self.batch_size,
            eval_batch_size=self.eval_batch_size,
            micro_batch_size=self.micro_batch_size,
            max_steps=self.max_steps,
            max_length=self.max_length,
            train_limit=self.train_limit,
            eval_limit=self.eval_limit,
            measure_limit=self.measure_limit,
            text_limit=self.text_limit,
            save_steps=self.save_steps,
            logging_steps=self.logging_steps,
        )
        _positive(
            learning_rate=self.learning_rate,
            beta_learning_rate=self.beta_learning_rate,
            epochs=self.epochs,
            alpha=self.alpha,
        )
        for name, value in {"weight_decay": self.weight_decay, "max_grad_norm": self.max_grad_norm}.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} {value} must be a number of at least 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout} must be at least 0 and below 1")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise InputError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}: "
                "choose one of its divisors"
            )
        if self.init in RESIDUAL_INITS and (self.use_dora or (self.share or 1) > 1):
            other = "use_dora" if self.use_dora else "share"
            raise InputError(
                f"init '{self.init}' changes the base weights, which does not go with {other}: take init 'fisher'"
            )
        self._check_quantized()
        if self.init == "orthogonal" and self.rank % 2:
            raise InputError(f"init 'orthogonal' needs an even rank, not {self.rank}")
        if any(step < 0 for step in self.probe_steps):
            raise InputError(f"probe_steps {list(self.probe_steps)} must be numbers of steps of at least 0")
        if self.length is not None and not 1 <= self.length[0] <= self.length[1]:
            raise InputError(
                f"length {list(self.length)} is no range of tokens: give the lowest and the highest number of tokens of a "
                "prompt, such as [1, 100]"
            )
        if self.seed >= 2**32:
            raise InputError(f"seed {self.seed} must be below {2**32}")
        if not self.target_modules:
            raise InputError("target_modules is empty: use 'all-linear' or name the layers")
        choices: tuple[tuple[str, str | None, Iterable[str]], ...] = (
            ("init", self.init, (*INITS, *QUANTIZED_INITS)),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("overlong", self.overlong, ("error", "drop", "truncate")),
            ("variant", self.variant, VARIANTS),
            ("tokens", self.tokens, TOKENS),
            ("preset", self.preset, PRESETS),
            ("quantize", self.quantize, QUANTIZATIONS),
            ("elastic connection", self.elastic, CONNECTIONS),
        )
        for kind, given, known in choices:
            if given is not None and given not in known:
                raise unknown_name(kind, given, known)
        if self.warmup_steps and self.schedule == "constant":
            raise InputError(
                f"warmup_steps {self.warmup_steps} has no effect with schedule 'constant': use 'constant_with_warmup'"
            )
        resolve_groups(self.metrics)

    def _check_quantized(self) -> None:
        """Refuse what a quantised base or an elastic adapter cannot do."""
        if self.init == "loftq" and self.quantize is None:
            raise InputError(
                "init 'loftq' makes good what quantising lost, and the base is dense: set quantize, such as 'nf4'"
            )
        if self.quantize is not None:
            if self.init in RESIDUAL_INITS:
                raise InputError(
                    f"init '{self.init}' takes a part off the base weights, which codes cannot give: take init 'loftq' or "
                    "'fisher', or leave out quantize"
                )
            if (self.share or 1) > 1:
                raise InputError("layers that share weights can't be quantised: leave out share, or quantize")
        if self.elastic is None and self.beta_learning_rate is not None:
            raise InputError(
                f"beta_learning_rate {self.beta_learning_rate} has no effect without connections: set elastic 'both'"
            )
        if self.elastic is not None and self.init in (*RESIDUAL_INITS, "eva"):
            reason = (
                "is written by PEFT past the connections" if self.init == "eva" else "is exported at twice the rank"
            )
            raise InputError(f"init '{self.init}' {reason}: take another init, or leave out elastic")

    @property
    def lora_alpha(self) -> float | int:
        """The numerator of the scaling: ``alpha``, or twice the rank."""
        return 2 * self.rank if self.alpha is None else self.alpha

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "configuration") -> RunSpec:
        """Build a spec from names and values, with the preset's values where none are given.

        Args:
            values: Field name -> value, for example from YAML; ``preset`` names an entry of `PRESETS`.
            source: Where the values came from, for messages.

        Returns:
            The spec, every field filled in.

        Raises:
            InputError: A name is unknown, or a value has the wrong type or is out of range.
        """
        preset = values.get("preset")
        if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
            raise unknown_name("preset", str(preset), PRESETS)
        length = values.get("length")
        if isinstance(length, list | tuple) and any(isinstance(end, bool) for end in length):
            raise InputError(f"{source}: 'length' must hold two numbers of tokens, not true or false")
        if isinstance(values.get("elastic"), bool):
            values = {**values, "elastic": "both" if values["elastic"] else None}
        base = dict(PRESETS[preset]) if preset is not None else {}
        if values.get("epochs") is not None and values.get("max_steps") is None:
            base.pop("max_steps", None)
        try:
            return from_mapping(cls, {**base, **values}, source=source)
        except InputError as error:
            if isinstance(error.__cause__, ValidationError):
                reason = error.__cause__.errors()[0].get("ctx", {}).get("error")
                if isinstance(reason, LorascopeError):
                    raise reason from None
            raise


def _at_least(smallest: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < smallest:
            raise InputError(f"{name} {value} must be at least {smallest}")


def _positive(**values: float | int | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value} must be a number above 0")
