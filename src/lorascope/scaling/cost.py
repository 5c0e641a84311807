"""What a LoRA run costs before it is started: floating-point operations, memory and the size of the adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorascope.core.errors import InputError, unknown_name
from lorascope.scaling.cost_shapes import ModelShape, Projection

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.53125}
"""Bytes of a weight. NF4: 4 bits, and a scale of one byte for each 64 weights with a 4-byte scale for 256 of those."""

MOMENTS = {"adamw_torch": 2, "adafactor": 0, "sgd": 0}
"""Numbers that an optimiser keeps for each trained parameter. Adafactor's row and column sums are negligible."""

ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one configuration.

    Attributes:
        forward_flops: Operations of one forward pass over one batch; a multiply and an add are two.
        step_flops: Operations of one optimiser step: forward, backward, and recomputation with checkpointing.
        flops: Operations of the whole run.
        tokens: Tokens that the run sees, padding included.
        weight_bytes: The frozen base.
        adapter_parameters: Trained parameters.
        adapter_bytes: The adapter's safetensors file, header included, in float32 or as asked.
        optimizer_bytes: Adapter, its gradient and the optimiser's moments, in memory.
        activation_bytes: What is kept between forward and backward for one micro batch.
        logit_bytes: Logits, their log-softmax and their gradient.
        peak_bytes: All of these at the worst moment, without what the process needs before it loads anything.
    """

    forward_flops: float
    step_flops: float
    flops: float
    tokens: int
    weight_bytes: float
    adapter_parameters: int
    adapter_bytes: int
    optimizer_bytes: float
    activation_bytes: float
    logit_bytes: float
    peak_bytes: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as a mapping."""
        return asdict(self)


def targets_of(shape: ModelShape, target_modules: str | Sequence[str] = "all-linear") -> tuple[Projection, ...]:
    """The dense layers of a block that an adapter sits on.

    Args:
        shape: The model.
        target_modules: ``"all-linear"`` or last parts of names, as PEFT matches them (``"q_proj"``, ``"mlp.up_proj"``).
            ``all-linear`` takes a mixture's experts along, as lorascope's runs do, and no router; a name means modules
            only, which stacked experts are not.

    Returns:
        The layers, in the order in which they run.

    Raises:
        InputError: A name matches no dense layer of this architecture.

    Example:
        >>> shape = ModelShape(hidden_size=8, layers=1, heads=2, intermediate_size=16, vocab_size=32)
        >>> [p.d_out for p in targets_of(shape, ["up_proj"])]
        [16]
    """
    every = tuple(p for p in shape.projections() if p.adaptable)
    if isinstance(target_modules, str):
        if target_modules == "all-linear":
            return every
        target_modules = [target_modules]
    every = tuple(p for p in every if not p.stacked)
    for name in target_modules:
        if not any(_matches(p, name) for p in every):
            known = ["all-linear", *dict.fromkeys(p.name.split(".")[-1] for p in every)]
            raise unknown_name("target module", name, known)
    return tuple(p for p in every if any(_matches(p, name) for name in target_modules))


def _matches(projection: Projection, name: str) -> bool:
    return projection.name == name or projection.name.endswith(f".{name}")


def adapter_parameters(shape: ModelShape, rank: int, target_modules: str | Sequence[str] = "all-linear") -> int:
    """Trained parameters: sum over adapted layers, each expert of a mixture among them, of r (d_in + d_out).

    Raises:
        InputError: The rank is below 1, or a target is unknown.

    Example:
        >>> shape = ModelShape(hidden_size=8, layers=2, heads=2, intermediate_size=16, vocab_size=32)
        >>> adapter_parameters(shape, 4, ["q_proj", "up_proj"])
        320
    """
    _at_least_one(rank=rank)
    return shape.layers * sum(p.copies * rank * (p.d_in + p.d_out) for p in targets_of(shape, target_modules))


def adapter_file_bytes(
    shape: ModelShape, rank: int, target_modules: str | Sequence[str] = "all-linear", *, dtype: str = "float32"
) -> int:
    """Size of ``adapter_model.safetensors`` as PEFT writes it: the numbers, and the header that lists them.

    Args:
        shape: The model.
        rank: Rank of the update.
        target_modules: As in `targets_of`.
        dtype: Type of the saved factors; PEFT keeps them in float32 unless told otherwise.

    Returns:
        Bytes.

    Raises:
        InputError: The rank is below 1, or a target or the type is unknown.

    References:
        The safetensors format: 8 bytes of header length, a JSON header padded to 8 bytes, then the tensors.
    """
    size = _bytes_of(dtype)
    code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}.get(dtype)
    if code is None:
        raise InputError(f"an adapter is not saved as '{dtype}': use float32, bfloat16 or float16")
    _at_least_one(rank=rank)
    tensors: dict[str, tuple[int, int]] = {}
    for layer in range(shape.layers):
        for p in targets_of(shape, target_modules):
            path = f"base_model.model.{shape.block_path}.{layer}.{p.saved_as or p.name}"
            tensors[f"{path}.lora_A.weight"] = (p.copies * rank, p.d_in)
            tensors[f"{path}.lora_B.weight"] = (p.d_out, p.copies * rank)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        end = offset + int(size * tensors[name][0] * tensors[name][1])
        header[name] = {"dtype": code, "shape": tensors[name], "data_offsets": [offset, end]}
        offset = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + offset


def cost_of(
    shape: ModelShape,
    *,
    rank: int,
    batch_size: int,
    length: int,
    steps: int = 1,
    micro_batch_size: int | None = None,
    target_modules: str | Sequence[str] = "all-linear",
    dtype: str = "float32",
    optimizer: str = "adamw_torch",
    attention: str = "sdpa",
    gradient_checkpointing: bool = False,
) -> Cost:
    """FLOPs, memory and adapter size of a LoRA run.

    A token costs 2 d_in d_out operations in each dense layer (in a mixture of experts, those of the experts that it is
    sent to), 2 h V in the head, 2 r (d_in + d_out) in an adapter and 4 s w in attention (s tokens a row, w features of
    all heads; the masked half counts, as kernels compute it unless they are told to skip it). Backward repeats the dense
    layers' and the head's cost once, for the gradient of their inputs: the frozen base has no gradients of weights. An
    adapter's backward is twice its forward, attention's twice (``eager``) or 2.5 times (``sdpa``, which computes the
    weights again). What comes before the first adapter of the first layer has no backward at all, unless gradient
    checkpointing asks for it, which also repeats the blocks' forward pass. All experts of a mixture lie in memory.

    Memory is the base, the adapter with its gradient and moments (float32), what autograd keeps of one micro batch
    (inputs of norms and adapters, the arguments of attention and of the gate), and logits three times over: themselves,
    their log-softmax, its gradient. With checkpointing only the blocks' inputs are kept, and one block at a time is
    rebuilt. This is what the tensors need; a process on a CPU can hold up to twice as much, since the C library keeps
    freed blocks. A sweep's own rows say how much that is on its machine, and `recommend` uses them where they are.

    Args:
        shape: The model.
        rank: Rank of the update.
        batch_size: Rows an optimiser step.
        length: Tokens a row, padding included.
        steps: Optimiser steps.
        micro_batch_size: Rows a forward pass; None means all.
        target_modules: As in `targets_of`.
        dtype: Type of the base's weights and of the activations (quantised bases compute in bfloat16).
        optimizer: ``adamw_torch``, ``adafactor`` or ``sgd``.
        attention: ``sdpa`` (does not keep the attention weights) or ``eager``.
        gradient_checkpointing: Whether the blocks are computed again in the backward pass.

    Returns:
        The cost.

    Raises:
        InputError: A number is below 1, or a name is unknown.

    Example:
        >>> shape = ModelShape(hidden_size=64, layers=2, heads=4, intermediate_size=128, vocab_size=100)
        >>> found = cost_of(shape, rank=4, batch_size=2, length=8)
        >>> found.step_flops < 3 * found.forward_flops
        True

    References:
        LoRA, arXiv 2106.09685; the factor 6 of full training, arXiv 2001.08361.
    """
    micro = batch_size if micro_batch_size is None else micro_batch_size
    _at_least_one(rank=rank, batch_size=batch_size, length=length, steps=steps, micro_batch_size=micro)
    for kind, given, known in (("optimizer", optimizer, MOMENTS), ("attention", attention, ATTENTION)):
        if given not in known:
            raise unknown_name(kind, given, known)
    adapted = targets_of(shape, target_modules)
    targets = tuple(p for p in adapted if not p.stacked)
    stacks = tuple(p for p in adapted if p.stacked)
    tokens = batch_size * length
    dense = sum(2 * p.active * p.d_in * p.d_out for p in shape.projections())
    attend = 4 * length * shape.width
    head = 2 * shape.hidden_size * shape.vocab_size
    lora = sum(2 * rank * (p.d_in + p.d_out) for p in targets)
    forward = tokens * (shape.layers * (dense + attend + lora) + head)
    again = 2.5 if attention == "sdpa" else 2.0
    backward = tokens * (shape.layers * (dense + again * attend + 2 * lora) + head)
    if gradient_checkpointing:
        backward += tokens * shape.layers * (dense + attend + lora)
    else:
        depth = {p.name: p.stage % 2 if shape.parallel else p.stage for p in shape.projections()}
        first = min(depth[p.name] for p in adapted)
        backward -= tokens * sum(2 * p.active * p.d_in * p.d_out for p in shape.projections() if depth[p.name] <= first)
        backward -= tokens * (again * attend if min(p.stage for p in adapted) >= 1 else 0)
        backward -= tokens * sum(2 * rank * p.d_in for p in targets if depth[p.name] == first)
    # PEFT adds the update to a stack of experts itself, for all of them whatever the tokens, twice a forward pass (0.21);
    # its gradient is that of the whole stack.
    passes = -(-batch_size // micro) * shape.layers
    update = sum(2 * rank * p.copies * p.d_in * p.d_out for p in stacks)
    forward += passes * 2 * update
    backward += passes * 2 * update + tokens * shape.layers * sum(2 * p.active * p.d_in * p.d_out for p in stacks)
    if gradient_checkpointing:
        backward += passes * 2 * update
    parameters = adapter_parameters(shape, rank, target_modules)
    size = 2.0 if dtype in ("int8", "nf4") else _bytes_of(dtype)
    kept = micro * length
    block = kept * (size * _kept_a_token(shape, targets) + 4 * rank * len(targets))
    if size != 4:  # the factors stay in float32, and each input of one is kept as a copy of that type
        block += kept * 4 * sum({p.stage: p.d_in for p in targets}.values())
    block += 4 * sum(p.copies * p.d_in * p.d_out for p in stacks)  # the stack with its update, for the backward pass
    if attention == "eager":
        block += kept * shape.heads * length * (size + (4 if size != 4 else 0))
    boundary = kept * shape.hidden_size * size
    activations = shape.layers * boundary + block if gradient_checkpointing else shape.layers * block
    logits = kept * shape.vocab_size * (3 * 4 + (size if size != 4 else 0))
    weights = shape.distinct_parameters * _bytes_of(dtype)
    trained = 4.0 * parameters * (2 + MOMENTS[optimizer])
    return Cost(
        forward_flops=float(forward),
        step_flops=float(forward + backward),
        flops=float(steps * (forward + backward)),
        tokens=steps * tokens,
        weight_bytes=float(weights),
        adapter_parameters=parameters,
        adapter_bytes=adapter_file_bytes(shape, rank, target_modules),
        optimizer_bytes=trained,
        activation_bytes=float(activations),
        logit_bytes=float(logits),
        peak_bytes=float(weights + trained + activations + logits),
    )


def _kept_a_token(shape: ModelShape, targets: Sequence[Projection]) -> float:
    """Numbers that autograd keeps of a token in a block, without the adapters' inner features."""
    at = {p.stage for p in targets}
    norms = 2 * shape.hidden_size
    inputs = sum({0: shape.hidden_size, 1: shape.width, 2: shape.hidden_size, 3: 0}[stage] for stage in at)
    attention = 2 * shape.width + 2 * shape.kv_width
    return float(norms + inputs + attention + shape.inner_kept)


def _bytes_of(dtype: str) -> float:
    if dtype not in BYTES:
        raise unknown_name("type of weights", dtype, BYTES)
    return BYTES[dtype]


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or value < 1:
            raise InputError(f"{name} {value} must be at least 1")
