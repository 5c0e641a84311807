"""Where a run's adapter starts: PEFT's own initialisations and those by Fisher statistics, behind one name."""

from __future__ import annotations

import itertools
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lorascope.adapters import components, fingerprint
from lorascope.adapters._initial import is_quantised, write_factors
from lorascope.adapters.loftq import start_loftq
from lorascope.adapters.residual import (
    check_residual,
    export_as_ordinary,
    initial_factors,
    load_factors,
    save_factors,
    take_off,
)
from lorascope.core.errors import AdapterError, DataError
from lorascope.core.files import read_json, write_json
from lorascope.core.seeds import derive_seed, preserved_random_state
from lorascope.initialization import initialize_lora_fisher
from lorascope.initialization.initialize import IN_MEMORY
from lorascope.measuring import load_model_and_tokenizer
from lorascope.tasks.evaluate import evaluation_mode
from lorascope.training.lora import attach_lora
from lorascope.training.spec import FISHER_INITS, RESIDUAL_INITS, RunSpec

_EVA_TOKENS = 4096
"""Tokens of a batch of EVA, padding with them: all 32 rows of a short task at once."""
_EVA_BATCHES = 200
"""Batches after which EVA is given up, or twice as many as the data have if that is more."""

Rows = Sequence[dict[str, Any]]
Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]

_NOTE = (
    "the adapter took over a part of the base weight while it was trained (init {}); it was saved, measured and evaluated "
    "as the ordinary adapter of twice the rank that makes the same model from the base as it was"
)


def attach_initialised(
    model: nn.Module, spec: RunSpec, rows: Rows, collate: Collate, stage: Path, *, progress: bool = True
) -> tuple[PeftModel, dict[str, Any]]:
    """Put a fresh adapter on a model and start it as the spec asks, or as an interrupted call did.

    Args:
        model: The base model; changed in place, its weights too where the init is one of `RESIDUAL_INITS`.
        spec: The run.
        rows: Encoded training rows; a sample of ``spec.init_rows`` of them decides inits by data.
        collate: Makes a batch of rows.
        stage: Folder that keeps the first weights for a call that goes on from a checkpoint.
        progress: Whether to show bars.

    Returns:
        The PEFT model, and what was done: ``init``, ``residual``, ``rows``, ``seconds``, ``warnings``, and the ``layers``
        of an init by Fisher statistics.

    Raises:
        AdapterError: The init does not go with this model or adapter.
    """
    if spec.init == "default":
        return attach_lora(model, spec), {}
    weights, facts = stage / "initial.safetensors", stage / "initial.json"
    residual = spec.init in RESIDUAL_INITS
    base = fingerprint(model)
    if (kept := _kept(weights, facts)) is not None:
        factors, info = kept
        if info.pop("base") != base:
            raise AdapterError(
                f"the base model '{spec.model}' has other weights than when this run began: give it as it was, or choose "
                "another --out"
            )
        return _again(model, spec, factors, residual), info
    started = time.perf_counter()
    sample = [] if spec.init == "loftq" else sample_rows(rows, spec)
    with preserved_random_state():
        torch.manual_seed(derive_seed(spec.seed, "init"))
        peft_model, found = _start(model, spec, sample, collate, progress)
    info = {
        "init": spec.init,
        "residual": residual,
        "rows": len(sample),
        "seconds": time.perf_counter() - started,
        **found,
    }
    if residual:
        info["warnings"] = [_NOTE.format(spec.init), *info.get("warnings", [])]
    save_factors(initial_factors(peft_model, "default"), weights)
    write_json(facts, {**info, "base": base})
    return peft_model, info


def _kept(weights: Path, facts: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """What an interrupted call started from; None if it kept nothing, or what it kept is damaged: it is made again."""
    if not (weights.is_file() and facts.is_file()):
        return None
    try:
        factors, info = load_factors(weights), read_json(facts)
    except (SafetensorError, DataError):
        return None
    return (factors, dict(info)) if isinstance(info, dict) and "base" in info else None


def sample_rows(rows: Rows, spec: RunSpec) -> Rows:
    """The rows that decide an init by data: ``spec.init_rows`` of all, drawn by the seed."""
    count = min(spec.init_rows, len(rows))
    chosen = random.Random(derive_seed(spec.seed, "init rows")).sample(range(len(rows)), count)
    return [rows[index] for index in chosen]


def _start(
    model: nn.Module, spec: RunSpec, rows: Rows, collate: Collate, progress: bool
) -> tuple[PeftModel, dict[str, Any]]:
    """A fresh adapter, started."""
    size = spec.micro_batch_size or spec.batch_size

    def loader(batch_size: int = size) -> DataLoader[Any]:
        return DataLoader(rows, batch_size=batch_size, shuffle=False, collate_fn=collate)  # type: ignore[arg-type]

    if spec.init in FISHER_INITS:
        peft_model = attach_lora(model, spec)
        try:
            done = initialize_lora_fisher(
                peft_model,
                loader(),
                spec.init.removesuffix("_lowest"),
                select="lowest" if spec.init.endswith("_lowest") else "highest",
                training_batches=max(1, len(rows) // spec.batch_size),
                seed=spec.seed,
                progress=progress,
            )
        except BaseException:
            peft_model.unload()
            raise
        notes = [note for note in done.warnings if note != IN_MEMORY]  # what is saved and measured is ordinary
        return peft_model, {"layers": done.layers, "counts": done.counts, "warnings": notes}
    if spec.init == "loftq":
        peft_model = attach_lora(model, spec)
        try:
            dense, _ = load_model_and_tokenizer(spec.model)
            return peft_model, start_loftq(peft_model, dense)
        except BaseException:
            peft_model.unload()
            raise
    targets = _check_first(model, spec) if spec.init in RESIDUAL_INITS else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`eva_config` is not specified")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        return _start_in_peft(model, spec, targets, rows, loader, progress), {}


def _start_in_peft(
    model: nn.Module,
    spec: RunSpec,
    targets: list[str],
    rows: Rows,
    loader: Callable[..., DataLoader[Any]],
    progress: bool,
) -> PeftModel:
    def forward(batch_size: int | None = None) -> None:
        batches = loader() if batch_size is None else loader(batch_size)
        for batch in tqdm(batches, desc=spec.init, unit="batch", disable=not progress):
            model(**_moved(batch, model))

    def backward() -> None:
        for batch in tqdm(loader(), desc=spec.init, unit="batch", disable=not progress):
            model(**_moved(batch, model)).loss.backward()

    if spec.init == "eva" and len(rows) < spec.rank:
        raise AdapterError(
            f"init 'eva' needs at least as many rows as the rank of {spec.rank}, and there are {len(rows)}: give more "
            "init_rows, or take another init"
        )

    def prepare(config: LoraConfig) -> None:
        config.init_lora_weights = spec.init.replace("-", "_")
        if spec.init == "eva":
            config.eva_config = EvaConfig(rho=1.0)  # ranks stay as asked for
        elif spec.init == "corda":
            config.target_modules = targets  # PEFT looks for the layers before it knows what all-linear means
            config.corda_config = CordaConfig(corda_method="ipm")
            with torch.no_grad(), evaluation_mode(model):
                preprocess_corda(model, config, run_model=lambda: forward(1))  # it takes one row at a time
        elif spec.init == "lora-ga":
            config.target_modules = targets
            config.lora_ga_config = LoraGAConfig()
            with evaluation_mode(model):
                preprocess_loraga(model, config, backward)

    peft_model = attach_lora(model, spec, prepare=prepare)
    try:
        if spec.init == "eva":
            # PEFT leaves out batches with fewer scored tokens than the rank, and reads on until none turns its directions:
            # for ever, if batches are small and unlike each other. Few large ones settle soonest.
            longest = max(len(row["input_ids"]) for row in rows)
            batches = loader(max(spec.micro_batch_size or spec.batch_size, spec.rank, _EVA_TOKENS // longest))
            most = max(_EVA_BATCHES, 2 * len(batches))
            initialize_lora_eva_weights(peft_model, batches, forward_fn=_at_most(most), show_progress_bar=progress)
    except AdapterError:
        peft_model.unload()
        raise
    except (ValueError, RuntimeError) as error:
        peft_model.unload()
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"init 'eva' failed in PEFT ({reason}): give more init_rows") from error
    config: Any = peft_model.peft_config["default"]
    # The first weights are there: a saved adapter must not start anew when it is loaded.
    config.init_lora_weights, config.eva_config, config.corda_config, config.lora_ga_config = True, None, None, None
    if spec.init in RESIDUAL_INITS:
        export_as_ordinary(peft_model, "default")
    return peft_model


def _at_most(most: int) -> Callable[[nn.Module, dict[str, Any]], Any]:
    """A forward pass for EVA that can be made so often: PEFT goes round the data until all directions stand still.

    Raises:
        AdapterError: It was made more often.
    """
    made = itertools.count(1)

    def forward(model: nn.Module, inputs: dict[str, Any]) -> Any:
        if next(made) > most:
            raise AdapterError(
                f"init 'eva' has not settled after {most} batches: its directions keep turning on these data; give more "
                "init_rows, or take another init, such as activation"
            )
        return model(**inputs)

    return forward


def _moved(batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items()}


def _check_first(model: nn.Module, spec: RunSpec) -> list[str]:
    """Refuse what PEFT would half do, by trying it with a plain adapter; gives the names of the layers."""
    peft_model = attach_lora(model, spec)
    try:
        found = components(peft_model)
        check_residual(peft_model, found, "default")
        return [component.name for component in found]
    finally:
        peft_model.unload()


def _again(model: nn.Module, spec: RunSpec, kept: dict[str, torch.Tensor], residual: bool) -> PeftModel:
    """The adapter as an interrupted call started it, on the base as that made it."""
    peft_model = attach_lora(model, spec)
    for component in components(peft_model):
        if f"{component.name}.lora_A" not in kept:
            continue
        a, b = kept[f"{component.name}.lora_A"], kept[f"{component.name}.lora_B"]
        write_factors(component, "default", a, b)
        if residual and not is_quantised(component.base):
            take_off(component, "default")
    if residual:
        export_as_ordinary(peft_model, "default", kept)
    return peft_model
