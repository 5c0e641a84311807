"""`measure`: one call from an adapted model and data to information per layer."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lorascope.adapters import Capture, Component, active_adapter, fingerprint, other_trained_modules
from lorascope.core.errors import InputError
from lorascope.core.metrics import METRICS, resolve_groups
from lorascope.core.provenance import collect
from lorascope.measuring.batches import make_batches
from lorascope.measuring.losses import Losses, is_causal_lm
from lorascope.measuring.processes import processes
from lorascope.measuring.selection import REDUCTIONS, TOKENS, PadTokens, Selection, select_tokens
from lorascope.measuring.state import LayerState, Options
from lorascope.results import AdapterMeasurement
from lorascope.tasks.evaluate import evaluation_mode

DEFAULT_METRICS = ("miub_js", "update_ratio", "spectrum", "ce", "ppl", "accuracy")


def measure(
    model: nn.Module,
    data: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    metrics: Sequence[str] | str = DEFAULT_METRICS,
    variant: str = "local",
    tokens: str = "all",
    reduction: str = "mean",
    components: str = "sum",
    adapter: str | None = None,
    batch_size: int = 16,
    split: str = "test",
    limit: int | None = None,
    max_length: int | None = None,
    overlong: str = "error",
    pad_token: str | None = None,
    joint_dim: int = 1024,
    moment_dim: int = 256,
    noise: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> AdapterMeasurement:
    """Measure what a LoRA adapter does to each layer it adapts.

    For every adapted layer and every token that counts, the frozen output o and the adapted output l become
    distributions over features, p = softmax(o) and q = softmax(l). From them:

    - ``miub_js``: the paper's Eq. 9, JS(p || q), averaged over tokens, summed over layers;
    - ``mi_joint``: mutual information of feature indices I ~ p, J ~ q, whose joint distribution is the mean over tokens
      of p q^T, with the paper's bound as printed (``miub_joint``) and the two valid ones;
    - ``mi_gaussian``, ``cka``, ``matrix_entropy``, ``update_ratio`` and the spectrum of the update;
    - ``ce``, ``ppl``, ``accuracy`` from the same pass, where there are labels.

    The formulas stand in `lorascope.information`. Under ``accelerate launch`` each process takes every n-th batch and
    all get the same result; pass the same data everywhere. The model is left as it was: mode, gradients, active adapter.

    Args:
        model: A PEFT model (or any model with LoRA layers): causal LM, classifier of sequences or images.
        data: A DataLoader or list of batches; features, rows or strings (with ``tokenizer``); or a task of
            `lorascope.load_task`.
        tokenizer: For rows, strings and tasks, and to pad features.
        metrics: Names from `lorascope.core.METRICS` (or their groups), or ``"all"``.
        variant: ``local``: one pass, frozen outputs on the stream that adapters upstream changed. ``base``: two passes,
            against the model with adapters switched off.
        tokens: Which tokens count: ``all`` but padding, ``prompt``, ``completion`` (by labels), ``last`` of each row.
        reduction: Of ``miub_js`` over tokens. ``mean`` of all tokens; ``sum`` over a sample's tokens, then the mean over
            samples; ``sample_mean``: mean over a sample's tokens, then the mean over samples.
        components: ``sum`` gives totals over layers, ``none`` leaves per-layer metrics to ``layers``.
        adapter: Name of the adapter to activate for the measurement; default: those that are active.
        batch_size: Samples in a batch, where batches are made here.
        split: Split of a task.
        limit: Number of samples at most, where batches are made here.
        max_length: Longest sample in tokens; default: the model's context.
        overlong: ``error``, ``drop`` or ``truncate`` longer samples; counted in ``counts``.
        pad_token: Token to pad with if the tokenizer has none (``"eos"`` for its end-of-text token).
        joint_dim: Wider layers have their features lumped into that many random groups before the joint distribution is
            formed (``joint_groups`` in the record). Lumping can only lower the information. It costs 4 joint_dim^2
            bytes a layer.
        moment_dim: Wider layers are projected to that many random directions before covariances are formed.
        noise: Noise variance of the Gaussian channel, as a share of the frozen features' mean variance.
        seed: Of the random partitions and projections.
        progress: Show a bar.

    Returns:
        ``totals``, ``layers``, ``counts``, ``settings``, ``warnings`` and ``provenance``; information in nats.

    Raises:
        InputError: A name or value is wrong, or there is no data.
        AdapterError: No active LoRA layer, or a merged one.
        ModelError: The model gives NaN.

    Example:
        >>> result = measure(peft_model, loader)                      # doctest: +SKIP
        >>> result.totals["miub_js"], result.table()                  # doctest: +SKIP

    References:
        arXiv 2501.03152 (Eq. 9, Theorem 3); arXiv 2401.17139 (matrix entropy).
    """
    groups = resolve_groups(metrics)
    if not isinstance(model, nn.Module):
        raise InputError(f"model of type {type(model).__name__}: give the PEFT model itself, loaded")
    if isinstance(model, nn.DataParallel):
        raise InputError("model is wrapped in DataParallel: give model.module")
    context, config = _context(model), getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{type(model).__name__} is an encoder-decoder model: lorascope measures decoders and encoders"
        )
    if max_length is not None and context is not None and max_length > context:
        raise InputError(f"max_length={max_length} is over the model's context of {context} tokens: give at most that")
    _check_choices(variant, tokens, reduction, components, noise, joint_dim, moment_dim, seed)
    options = Options(groups, reduction, joint_dim, moment_dim, noise, seed)
    batches, counts = make_batches(
        data,
        tokenizer=tokenizer,
        batch_size=batch_size,
        pad_token=pad_token,
        split=split,
        limit=limit,
        max_length=max_length if max_length is not None else context,
        overlong=overlong,
    )
    device = next(model.parameters()).device
    with active_adapter(model, adapter), evaluation_mode(model):
        pads = PadTokens.of(config, tokenizer)
        states, losses, seen = _run(model, batches, options, variant, tokens, device, progress, pads)
        samples, token_count, padding, beyond = seen
        notes: list[str] = []
        records = [state.record(samples, notes) for state in states]
        notes = _warnings(model, states, records, counts, padding) + notes
        if beyond:
            which = "1 sample is" if beyond == 1 else f"{beyond} samples are"
            notes.append(f"{which} longer than the model's context of {context} tokens")
        base = getattr(model, "get_base_model", lambda: model)()
        provenance = collect(
            seed=seed,
            extra={
                "model": str(getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__),
                "model_class": type(base).__name__,
                "base_fingerprint": fingerprint(model),
            },
        )
    totals = _totals(records) if components == "sum" else {}
    totals |= losses.totals(groups)
    settings = {
        "metrics": list(groups),
        "variant": variant,
        "tokens": tokens,
        "reduction": reduction,
        "components": components,
        "joint_dim": joint_dim,
        "moment_dim": moment_dim,
        "noise": noise,
        "adapter": records[0]["adapter"],
        "seed": seed,
    }
    counts = {"samples": samples, "tokens": token_count, "components": len(records), **counts}
    return AdapterMeasurement(
        totals=totals, layers=records, counts=counts, settings=settings, warnings=notes, provenance=provenance
    )


def _check_choices(
    variant: str, tokens: str, reduction: str, components: str, noise: float, joint_dim: int, moment_dim: int, seed: int
) -> None:
    for name, value, known in (
        ("variant", variant, ("local", "base")),
        ("tokens", tokens, TOKENS),
        ("reduction", reduction, REDUCTIONS),
        ("components", components, ("sum", "none")),
    ):
        if value not in known:
            raise InputError(f"{name}={value!r}: choose from {', '.join(known)}")
    if not (noise > 0 and math.isfinite(noise)):
        raise InputError(f"noise={noise}: give a share of the variance above 0, such as 0.01")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed={seed!r}: give a whole number")
    for name, size in (("joint_dim", joint_dim), ("moment_dim", moment_dim)):
        if not isinstance(size, int) or size < 2:
            raise InputError(f"{name}={size}: give a whole number of at least 2")


def _context(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(length) if length else None


def _run(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    options: Options,
    variant: str,
    tokens: str,
    device: torch.device,
    progress: bool,
    pads: PadTokens,
) -> tuple[list[LayerState], Losses, tuple[int, int, int, int]]:
    """Pass the data through the model.

    Returns:
        Merged states, losses, and how many samples, tokens, padding among those, and samples beyond the context.
    """
    group = processes()
    rank, world = (group.process_index, group.num_processes) if group is not None else (0, 1)
    states: dict[str, LayerState] = {}
    selection: Selection

    def consume(component: Component, frozen: Tensor, adapted: Tensor) -> None:
        states[component.name].update(frozen, adapted, selection)

    losses = Losses(model, device)
    context = _context(model)
    seen = torch.zeros(4, dtype=torch.float64, device=device)
    predicts = any(group in options.groups for group in ("ce", "ppl", "accuracy"))
    with Capture(model, consume, variant) as capture, contextlib.ExitStack() as stack:
        states.update({c.name: LayerState(c, options, device) for c in capture.components})
        if not predicts:
            stack.enter_context(_without_logits(model, capture.components))
        total = operator.length_hint(batches) or None
        bar = tqdm(batches, total=total, desc="measuring", unit="batch", disable=not progress or rank > 0)
        for number, batch in enumerate(bar):
            if number % world != rank:
                continue
            if not isinstance(batch, Mapping):
                raise InputError(f"batches of type {type(batch).__name__}: give mappings of the model's inputs by name")
            inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            selection = select_tokens(inputs, tokens)
            # The model's own loss would need the labels only to compute what Losses computes again.
            try:
                outputs = capture.forward({key: value for key, value in inputs.items() if key != "labels"})
            except IndexError as error:
                raise InputError(
                    f"the model cannot take batch {number + 1} ({error}): a token id is outside its vocabulary, or a row is "
                    f"longer than its context of {context}"
                ) from error
            if predicts:
                losses.update(outputs, inputs)
            seen[:2] += torch.tensor([selection.samples, sum(selection.sizes)], dtype=torch.float64, device=device)
            if (padding := pads.count(inputs, selection)) is not None:
                seen[2] += padding
            if context is not None and selection.length > context:
                mask = inputs.get("attention_mask")
                seen[3] += selection.samples if mask is None else (mask.sum(1) > context).sum()
    if world > 1:
        for state in states.values():
            state.ensure(state.component.d_out)
            if state.moments is not None:
                state.moments.agree(torch.distributed.all_reduce)
        for tensor in itertools.chain([seen], losses.tensors(), *(state.tensors() for state in states.values())):
            torch.distributed.all_reduce(tensor)
    if not seen[0]:
        raise InputError("no data: the loader gave no batch")
    found = list(states.values())
    token_count = int(seen[1]) or int(found[0].rows)
    return found, losses, (int(seen[0]), token_count, int(seen[2]), int(seen[3]))


@contextlib.contextmanager
def _without_logits(model: nn.Module, found: list[Component]) -> Iterator[None]:
    """Spares a causal model the product with its vocabulary; without effect where the head has an adapter of its own.

    The head gets no rows. Asking the model itself, by ``logits_to_keep``, would let some drop tokens in earlier layers.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    head = base.get_output_embeddings() if is_causal_lm(model) else None
    if head is None or any(head in (c.module, c.base) for c in found):
        yield
        return
    handle = head.register_forward_pre_hook(lambda _head, inputs: tuple(x[..., :0, :] for x in inputs))
    try:
        yield
    finally:
        handle.remove()


def _totals(records: list[dict[str, Any]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for metric in METRICS.values():
        values = [record[metric.name] for record in records if metric.per_layer and metric.name in record]
        if values:
            total = float(sum(values))
            totals[metric.name] = total / len(values) if metric.reduce == "mean" else total
    return totals


def _warnings(
    model: nn.Module, states: list[LayerState], records: list[dict[str, Any]], counts: dict[str, int], padding: int
) -> list[str]:
    notes = []
    if padding:
        notes.append(
            f"{padding} tokens that count look like padding, in batches without attention_mask: give the batches one, or "
            "every number here is partly of padding"
        )
    saved = other_trained_modules(model)
    if saved:
        shown = ", ".join(saved[:5]) + (" ..." if len(saved) > 5 else "")
        notes.append(
            f"{len(saved)} modules are trained beside LoRA by other means and are no component of the measurement: {shown}"
        )
    foreign = [state.component.name for state in states if int(state.foreign)]
    if foreign:
        notes.append(
            f"{len(foreign)} layers also ran on rows that are no tokens of the batch, which do not count: "
            f"{', '.join(foreign[:5])}"
        )
    unused = [record["name"] for record, state in zip(records, states, strict=True) if not int(state.rows)]
    if unused:
        notes.append(f"{len(unused)} adapted layers saw no token: {', '.join(unused[:5])}")
    lumped = [record for record in records if record.get("joint_groups")]
    if lumped:
        notes.append(
            f"the joint distribution of {len(lumped)} layers wider than {lumped[0]['joint_groups']} features was formed "
            f"over {lumped[0]['joint_groups']} random groups of features: their mi_joint is a lower bound of the full one"
        )
    if any(record.get("moment_projection") for record in records):
        notes.append("cka and mi_gaussian of wide layers were computed in a random projection (moment_dim)")
    saturated = [r["name"] for r in records if r.get("miub_js") == 0 and r.get("update_ratio", 0) > 0]
    if saturated:
        notes.append(
            f"{len(saturated)} of {len(records)} layers saturated: one feature leads so far that the softmax does not show "
            f"the update, and miub_js is 0 although the update is not: {', '.join(saturated[:5])}"
        )
    ratios = [record["update_ratio"] for record in records if "update_ratio" in record]
    if ratios and max(ratios) == 0:
        notes.append(
            "the adapter changes nothing: every update is exactly zero (untrained, or its weights did not load)"
        )
    for key, what in (("truncated", "cut to the length limit"), ("dropped", "left out for their length")):
        if counts.get(key):
            notes.append("1 sample was " + what if counts[key] == 1 else f"{counts[key]} samples were {what}")
    return notes
