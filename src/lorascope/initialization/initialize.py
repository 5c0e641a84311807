"""`initialize_lora_fisher`: let data decide where a fresh LoRA adapter starts."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn

from lorascope.adapters import Component, active_adapter, adapter_names, components
from lorascope.adapters._initial import base_weight, factor_parameters, write_patterns
from lorascope.adapters.residual import check_residual, export_as_ordinary, take_off
from lorascope.core.errors import AdapterError, InputError, unknown_name
from lorascope.core.provenance import collect
from lorascope.initialization.budget import water_fill
from lorascope.initialization.directions import MODES, Start, fisher_batch, fisher_select, random
from lorascope.initialization.drafts import Draft, layer_rows, notes_of, write_draft
from lorascope.initialization.layer_sums import LayerStatistics
from lorascope.initialization.memory import parse_memory
from lorascope.initialization.result import FisherInitialization
from lorascope.initialization.spectrum import sketch_sharpness
from lorascope.initialization.statistics import (
    EXACT_WIDTH,
    FISHERS,
    SKETCH,
    collect_statistics,
)
from lorascope.initialization.statistics_pass import adaptable
from lorascope.measuring.processes import processes

SELECTIONS = ("highest", "lowest")


IN_MEMORY = (
    "a part of the base weights is in the adapter now: disable_adapter() gives the residual model, not the base, until the "
    "adapter is saved and loaded again"
)
"""What the caller of a residual mode must know while the model lives."""


def initialize_lora_fisher(
    model: nn.Module,
    dataloader: Any,
    mode: str = "fisher",
    *,
    select: str = "highest",
    fisher: str = "empirical",
    adapter_name: str = "default",
    generator: torch.Generator | None = None,
    budget: int | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    table: bool = False,
    max_batches: int | None = None,
    training_batches: int | None = None,
    max_memory: int | str | None = None,
    exact_width: int = EXACT_WIDTH,
    sketch: int = SKETCH,
    seed: int = 0,
    progress: bool = True,
) -> FisherInitialization:
    """Set the first weights of a fresh LoRA adapter from the inputs and gradients of calibration data.

    Call it on a PEFT model with ``init_lora_weights=True`` before the optimiser is made, as
    ``peft.initialize_lora_eva_weights``. Modes (a: layer input, g: gradient of the summed loss at the layer's output):

    - ``fisher``: A is the leading eigenvectors of F_in = E |g|^2 a a^T, B = 0;
    - ``activation``, ``gradient``, ``random``: controls. E a a^T; E g a^T; no data. B = 0;
    - ``fisher_batch``: A is the leading eigenvectors of E G^T G, G the mean gradient of one of the data's batches, B = 0;
    - ``fisher_balanced``: the directions of ``fisher``, with rows that each see as much of the inputs as PEFT's do. B = 0;
    - ``natural_gradient``: the row space of G^-1/2 E[g a^T] A^-1/2, mapped back. B = 0;
    - ``fisher_select``: singular directions of W with the highest (or lowest) Fisher score move into the adapter;
    - ``fisher_whitened``: the part of W that matters most in the Fisher norm moves into the adapter.

    Those with B = 0 leave the base as it is: no logit changes, and the adapter loads in plain PEFT. |A|_F is that of PEFT's
    own start, but for ``fisher_balanced``. The last two, as PiSSA, take a part off the base weight, whose layer then
    computes the same up to rounding; ``save_pretrained`` writes an ordinary adapter of twice the rank for them from here on.

    Args:
        model: PEFT model with a fresh adapter (B = 0); a causal LM or a classifier. Changed in place.
        dataloader: Batches as mappings of the model's inputs, with labels; see `collect_statistics`.
        mode: One of the above.
        select: ``highest`` or ``lowest``, for ``fisher_select``.
        fisher: ``empirical`` (the data's labels) or ``true`` (labels drawn from the model).
        adapter_name: The adapter.
        generator: For drawn labels.
        budget: Parameters of the adapter in all, spread over ranks by `water_fill`; None keeps the ranks.
        min_rank: Least rank of a layer with a budget.
        max_rank: Largest rank of a layer with a budget; by default four times its rank.
        table: Compute the Fisher columns of the layers' table, suggested ranks among them, also without a budget.
        max_batches: Stop after that many.
        training_batches: How many batches of your training these data would make, for ``fisher_batch``: give it where the
            dataloader's batches are smaller, as with gradient accumulation. Default: the dataloader's own.
        max_memory: What the pass may keep, such as ``"4GB"``; takes several passes.
        exact_width: Layers with a wider side are sketched.
        sketch: Columns of a sketch, at least twice the rank.
        seed: Of sketches, drawn labels and random directions.
        progress: Show a bar.

    Returns:
        What was done, with the table of layers.

    Raises:
        InputError: A name is unknown, there is no data, no label, or not enough memory or budget.
        AdapterError: The adapter is not fresh, not there, or (residual modes) sits on a quantised or shared base.
        ModelError: A loss or gradient is NaN.

    Example:
        >>> model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))  # doctest: +SKIP
        >>> info = initialize_lora_fisher(model, loader)                                # doctest: +SKIP

    References:
        arXiv 2605.01046 (curvature of the target data decides the directions); see docs/science/initialization.md for what
        is that article's and what is ours. EVA, arXiv 2410.07170; LoRA-GA, arXiv 2407.05000; PiSSA, arXiv 2404.02948.
    """
    started = time.perf_counter()
    for kind, given, known in (("mode", mode, MODES), ("select", select, SELECTIONS), ("fisher", fisher, FISHERS)):
        if given not in known:
            raise unknown_name(kind, str(given), known)
    parse_memory(max_memory)
    if isinstance(sketch, bool) or not isinstance(sketch, int) or sketch < 1:
        raise InputError(f"sketch {sketch!r} must be a whole number of at least 1")
    chosen = MODES[mode]
    if chosen.labels and fisher == "true":
        raise InputError(
            f"mode '{mode}' needs the mean gradient, which is zero in expectation with drawn labels: take fisher='empirical'"
        )
    model = extract_model_from_parallel(model)
    _check_adapter(model, adapter_name)
    with active_adapter(model, adapter_name), torch.no_grad():
        found, left = adaptable(model)
        _check(model, found, adapter_name, chosen.residual, budget, min_rank, max_rank, training_batches)
        ranks = {c.name: c.rank for c in found}
        most = {c.name: _most(c, budget, max_rank) for c in found}
        ranked = budget is not None or table
        need = tuple(dict.fromkeys([*chosen.need, *(("input_fisher",) if ranked else ())]))
        make = {
            "fisher_select": functools.partial(fisher_select, lowest=select == "lowest"),
            "random": functools.partial(random, seed=seed),
            "fisher_batch": functools.partial(
                fisher_batch,
                batches=training_batches or (_count(dataloader, max_batches) if mode == "fisher_batch" else 1),
            ),
        }.get(mode, chosen.make)

        def reduce(statistics: LayerStatistics) -> Draft:
            component = statistics.component
            weight = base_weight(component) if chosen.residual else None
            count = most[component.name]
            start = make(statistics, weight, count)
            values = None
            if ranked and statistics.input_fisher is not None:
                values = statistics.input_fisher.spectrum(statistics.tokens, count).values.double().tolist()
            elif mode == "fisher":
                values = start.scores[:count].double().tolist()
            sharpness = _sharpness(statistics, count)
            return Draft(component, _first(start, count), statistics.tokens, statistics.fisher_trace, values, sharpness)

        data_free = not need
        if data_free:
            drafts = [Draft(c, make(_without_data(c), None, most[c.name]), 0, 0.0, None) for c in found]
            counts, loss, notes = {}, None, []
        else:
            with torch.enable_grad():
                collected = collect_statistics(
                    model,
                    dataloader,
                    need=need,
                    reduce=torch.no_grad()(reduce),
                    fisher=fisher,
                    generator=generator,
                    max_batches=max_batches,
                    max_memory=max_memory,
                    exact_width=exact_width,
                    sketch=max(sketch, 2 * max(most.values())),
                    seed=seed,
                    progress=progress,
                )
            if chosen.need != ("input",) and not any(d.fisher_trace for d in collected.layers.values()):
                raise InputError(
                    "every gradient at the adapted layers is zero, so that the data decide nothing: look at the labels and "
                    "at the layers behind the adapter, or take mode activation"
                )
            drafts, counts, loss = list(collected.layers.values()), collected.counts, collected.loss_nats
            notes = collected.warnings
            if budget is not None:  # layers that saw no token cost parameters, too: the least that is allowed
                idle = [c for c in found if c.name not in collected.layers]
                drafts += [_idle(c, min_rank, seed) for c in idle]
        if left and data_free:
            notes.append(f"{len(left)} adapted layers have no factors A and B and do not count: {', '.join(left[:5])}")
        wanted = _of_first(_ranks(drafts, ranks, budget, min_rank)) if ranked else {}
        if budget is not None:
            ranks = {**ranks, **wanted}
        for draft in drafts:
            write_draft(model, draft, adapter_name, ranks[draft.component.name])
        if budget is not None:
            write_patterns(model, adapter_name)
        if chosen.residual:
            for draft in drafts:
                take_off(draft.component, adapter_name)
            export_as_ordinary(model, adapter_name)
        untyped: Any = model
        config: Any = untyped.peft_config[adapter_name]
        rows = layer_rows(drafts, ranks, wanted)
        bought = sum(int(row["parameters"]) for row in rows)
        if budget is not None and bought + max(c.d_in + c.d_out for c in found) <= budget:
            notes.append(
                f"the budget of {budget} parameters was not used up: {bought} of them are all that the largest ranks and "
                "the directions in the data take; max_rank raises the former"
            )
        if not any(p.requires_grad for d in drafts for p in factor_parameters(d.component, adapter_name)[:2]):
            notes.append(f"adapter '{adapter_name}' is frozen: nothing of it will be trained")
    notes += notes_of(drafts, ranks, fisher, counts)
    if chosen.residual:
        notes.append(IN_MEMORY)
    settings = {"mode": mode, "select": select if mode == "fisher_select" else None, "fisher": fisher, "budget": budget}
    settings |= {"adapter": adapter_name, "max_memory": max_memory, "exact_width": exact_width, "sketch": sketch}
    settings["seed"] = seed
    return FisherInitialization(
        mode=mode,
        residual=chosen.residual,
        layers=rows,
        rank_pattern=dict(config.rank_pattern or {}),
        alpha_pattern=dict(config.alpha_pattern or {}),
        counts=counts,
        settings=settings,
        loss_nats=loss,
        seconds=time.perf_counter() - started,
        warnings=notes,
        provenance=collect(seed=seed),
    )


def _count(dataloader: Any, most: int | None) -> int:
    """Number of batches that will be read.

    Raises:
        InputError: It is not known.
    """
    try:
        known = len(dataloader)
    except TypeError:
        if most is None:
            raise InputError(
                "mode 'fisher_batch' needs the number of batches, and this dataloader has no length: give training_batches"
            ) from None
        return most
    return max(1, min(known, most or known))


def _check_adapter(model: nn.Module, adapter: str) -> None:
    """Refuse a model without LoRA adapter of that name."""
    if not isinstance(model, PeftModel):
        raise AdapterError(f"{type(model).__name__} is no PEFT model: wrap it with peft.get_peft_model first")
    if adapter in adapter_names(model):
        return
    if adapter in model.peft_config:
        kind = getattr(model.peft_config[adapter].peft_type, "value", model.peft_config[adapter].peft_type)
        raise AdapterError(f"adapter '{adapter}' is of kind {kind}: only LoRA adapters have factors A and B to start")
    raise AdapterError(f"no adapter '{adapter}' in this model: choose from {', '.join(adapter_names(model)) or 'none'}")


def _check(
    model: nn.Module,
    found: Sequence[Component],
    adapter: str,
    residual: bool,
    budget: int | None,
    min_rank: int,
    max_rank: int | None,
    training_batches: int | None,
) -> None:
    """Refuse an adapter that is not fresh, or cannot start so."""
    if not found:
        raise AdapterError("the adapter sits on no layer with factors A and B: choose other target_modules")
    for name, value in (("budget", budget), ("max_rank", max_rank), ("training_batches", training_batches)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name} {value!r} must be a whole number of at least 1")
    config: Any = cast(PeftModel, model).peft_config[adapter]
    if (
        budget is not None
        and any(c.whole_module for c in components(model))
        and (config.rank_pattern or config.alpha_pattern)
    ):
        raise InputError(
            "a budget does not go with a rank_pattern or alpha_pattern of target_parameters: leave one of them out"
        )
    if budget is not None and residual:
        raise InputError("a budget goes with modes that leave the base as it is, such as fisher: leave it out")
    if min_rank < 1 or (max_rank is not None and min_rank > max_rank):
        raise InputError(f"min_rank {min_rank} must be at least 1 and at most max_rank")
    for component in found:
        a, b, _ = factor_parameters(component, adapter)
        if "meta" in (a.device.type, b.device.type):
            raise AdapterError(
                f"adapter '{adapter}' has no weights yet (meta device): make it without low_cpu_mem_usage"
            )
        if bool(b.any()):
            raise AdapterError(
                f"adapter '{adapter}' is not fresh: B of layer '{component.name}' is not zero; make it with "
                "init_lora_weights=True and initialise it before training"
            )
        if component.rank > component.d_in:
            raise AdapterError(
                f"rank {component.rank} is over the {component.d_in} inputs of layer '{component.name}': use a smaller rank"
            )
    if residual:
        check_residual(cast(PeftModel, model), list(found), adapter)


def _most(component: Component, budget: int | None, max_rank: int | None) -> int:
    """How many directions may be needed of a layer."""
    if budget is None:
        return component.rank
    return min(max_rank if max_rank is not None else 4 * component.rank, component.d_in, component.d_out)


def _sharpness(statistics: LayerStatistics, count: int) -> float:
    """Of the coarsest sketch that a layer's start came from."""
    sums = (statistics.input, statistics.output, statistics.input_fisher, statistics.output_fisher)
    spectra = [total.spectrum(statistics.tokens, count) for total in sums if total is not None and total.sketched]
    return min((sketch_sharpness(found, count) for found in spectra), default=1.0)


def _first(start: Start, count: int) -> Start:
    """The leading directions only, in memory of their own."""
    outputs = None if start.outputs is None else start.outputs[:, :count].clone()
    lengths = None if start.lengths is None else start.lengths[:count].clone()
    return Start(start.directions[:, :count].clone(), outputs, start.scores[:count].clone(), start.known, lengths)


def _idle(component: Component, rank: int, seed: int) -> Draft:
    """A layer that the data say nothing of: random directions, worth nothing."""
    start = random(_without_data(component), None, min(rank, component.d_in, component.d_out), seed=seed)
    return Draft(component, start, 0, 0.0, [0.0] * start.directions.shape[1])


def _without_data(component: Component) -> LayerStatistics:
    return LayerStatistics(component, 0, 0.0, 0.0, 0.0)


def _ranks(drafts: Sequence[Draft], ranks: dict[str, int], budget: int | None, minimum: int) -> dict[str, int]:
    """The ranks that a budget buys; without one, those for as many parameters as the adapter has."""
    known = {d.component.name: d.fisher_values for d in drafts if d.fisher_values is not None}
    if not known:
        return {}
    costs = {d.component.name: d.component.d_in + d.component.d_out for d in drafts}
    limit = budget if budget is not None else sum(ranks[name] * costs[name] for name in known)
    bound = {d.component.name: min(d.component.d_in, d.component.d_out) for d in drafts}
    if budget is not None:
        bound = {d.component.name: d.start.directions.shape[1] for d in drafts}
    values = {name: found[: bound[name]] for name, found in known.items()}
    return water_fill(values, costs, limit, minimum=minimum)


def _of_first(ranks: dict[str, int]) -> dict[str, int]:
    """What the first process says: rounding on other machines must not give layers of other shapes."""
    if processes() is None:
        return ranks
    box: list[Any] = [ranks]
    torch.distributed.broadcast_object_list(box, src=0)
    found: dict[str, int] = box[0]
    return found
