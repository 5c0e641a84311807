"""One pass over calibration data: statistics of every adapted layer's inputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from lorascope.adapters import active_adapter
from lorascope.core.errors import InputError, unknown_name
from lorascope.core.seeds import preserved_random_state
from lorascope.initialization._capture import prepared
from lorascope.initialization.layer_sums import LayerStatistics
from lorascope.initialization.memory import NEEDS, parse_memory
from lorascope.initialization.samples import SampleOptions
from lorascope.initialization.statistics_pass import Collected, StatisticsPass

FISHERS = ("empirical", "true")
EXACT_WIDTH = 4096
"""Widest factor that is kept whole by default; wider ones are sketched."""

SKETCH = 256
"""Columns of a sketch."""

T = TypeVar("T")


def collect_statistics(
    model: nn.Module,
    dataloader: Any,
    *,
    need: Sequence[str] = ("input_fisher",),
    reduce: Callable[[LayerStatistics], T] | None = None,
    fisher: str = "empirical",
    generator: torch.Generator | None = None,
    samples: SampleOptions | None = None,
    layers: Iterable[str] | None = None,
    adapter: str | None = None,
    max_batches: int | None = None,
    max_memory: int | str | None = None,
    exact_width: int = EXACT_WIDTH,
    sketch: int = SKETCH,
    seed: int = 0,
    progress: bool = True,
) -> Collected[Any]:
    """Pass data forward and backward once, and keep sums of each adapted layer's inputs and gradients.

    Every token but padding counts. The loss is summed, not averaged, so that a token's gradient does not depend on its
    batch; the sums are float32, scalars float64. Dropout is off, gradient checkpointing stays on, no parameter gets a
    gradient, and the model is left as it was. Under ``accelerate launch`` each process takes every n-th batch and all get
    the same result; give the same data everywhere.

    With ``max_memory`` the layers are measured in as many passes as it takes, the data being read once a pass; layers
    whose sums would not fit are sketched.

    Args:
        model: A model with active LoRA layers: causal LM, classifier of texts or images.
        dataloader: Batches as mappings of the model's inputs, with ``labels`` (text without any is its own label). To be
            read several times it must not be an iterator, nor shuffle.
        need: Names of the sums: ``input`` (A), ``output`` (G), ``input_fisher`` (F_in), ``output_fisher`` (F_out),
            ``mean_gradient`` (M). The scalars are always there.
        reduce: Called with each layer's statistics when its pass ends, which are then let go; by default they are kept.
        fisher: ``empirical`` takes the data's labels, ``true`` draws labels from the model itself.
        generator: For those labels; by default one made from ``seed``. Only its next number is used, as a seed.
        samples: Which numbers to keep of each sample; None for none.
        layers: Names of the layers that count; None for all.
        adapter: Name of the adapter to activate; default: those that are active.
        max_batches: Stop after that many; None takes all.
        max_memory: Bytes, or text such as ``"4GB"``, that the pass may keep beside the model's own.
        exact_width: Layers with a wider side have sketches instead of whole matrices.
        sketch: Columns of a sketch.
        seed: Of sketches and projections.
        progress: Show a bar.

    Returns:
        The layers' statistics (or what ``reduce`` made of them), samples, counts, warnings.

    Raises:
        InputError: There is no data or no label, a name is unknown, or the memory is too little.
        AdapterError: No active LoRA layer.
        ModelError: A loss or gradient is NaN or infinite.
        DataError: Batches differ from one pass to the next.

    Example:
        >>> found = collect_statistics(peft_model, loader, need=("input", "output"))      # doctest: +SKIP
        >>> found.layers["model.layers.0.self_attn.q_proj"].gradient_energy               # doctest: +SKIP

    References:
        Kronecker factors of the Fisher matrix: K-FAC, arXiv 1503.05671; empirical and true Fisher: arXiv 1905.12558.
    """
    for name in need:
        if name not in NEEDS:
            raise unknown_name("statistic", name, NEEDS)
    if fisher not in FISHERS:
        raise unknown_name("fisher", fisher, FISHERS)
    if isinstance(model, nn.DataParallel):
        raise InputError("model is wrapped in DataParallel: give model.module")
    for label, value in (("max_batches", max_batches), ("sketch", sketch), ("exact_width", exact_width)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{label}={value!r}: give a whole number of at least 1")
    if samples is not None and round(samples.embedding**0.5) ** 2 != samples.embedding:
        raise InputError(f"embedding {samples.embedding} of samples must be a square number, such as 256")
    limit = parse_memory(max_memory)
    with active_adapter(model, adapter), prepared(model):
        job = StatisticsPass(
            model, dataloader, tuple(need), fisher, generator, samples, max_batches, limit, exact_width, sketch, seed
        )
        with preserved_random_state():  # a DataLoader draws a seed from it, shuffled or not
            return job.run(layers, reduce, progress)
