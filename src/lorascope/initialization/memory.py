"""How many bytes a pass needs, and which layers fit in one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorascope.adapters import Component
from lorascope.core.errors import InputError
from lorascope.initialization.spectrum import FULL_EIGEN_WIDTH, KEPT
from lorascope.scaling.plan_units import parse_budget

NEEDS = ("input", "output", "input_fisher", "output_fisher", "mean_gradient")
"""Statistics a pass can keep: A, G, F_in, F_out and M."""

FLOAT = 4


@dataclass(frozen=True)
class Tokens:
    """Size of the largest batch that is expected.

    Attributes:
        rows: Tokens with padding, of a layer's input.
        bytes: Of one number of an input or gradient.
    """

    rows: int
    bytes: int


@dataclass(frozen=True)
class Chunk:
    """Layers that are measured in one pass.

    Attributes:
        components: The layers.
        sketched: Those whose statistics are sketched.
        bytes: Predicted peak of what the pass keeps beside the model's own forward and backward pass.
    """

    components: tuple[Component, ...]
    sketched: frozenset[str]
    bytes: int


def statistics_bytes(
    d_in: int, d_out: int, need: Iterable[str], *, sketch: int | None = None, shared_input: bool = False
) -> int:
    """Bytes of one layer's sums in float32.

    Args:
        d_in: Input features.
        d_out: Output features.
        need: Names from `NEEDS`.
        sketch: Columns of the sketches; None for whole matrices.
        shared_input: The input factor is counted with another layer.

    Returns:
        Bytes, without the test matrices, which layers of one width share.

    Example:
        >>> statistics_bytes(4096, 14336, ["input"]), statistics_bytes(14336, 4096, ["input"], sketch=256)
        (67108864, 14680064)
    """
    total = 0
    for name in need:
        if name == "input" and shared_input:
            continue
        if name == "mean_gradient":
            numbers = d_in * d_out if sketch is None else d_out * min(d_in, 2 * sketch) + d_in * min(d_out, sketch)
        else:
            size = d_in if name.startswith("input") else d_out
            numbers = size * (size if sketch is None else min(size, sketch))
        total += FLOAT * numbers
    return total


def probe_bytes(widths: Iterable[tuple[int, int]], need: Iterable[str], sketch: int) -> int:
    """Bytes of the test matrices of sketches: one a width and use."""
    need = tuple(need)
    matrices: set[tuple[str, int, int]] = set()
    for d_in, d_out in widths:
        for name in need:
            if name == "mean_gradient":
                matrices |= {("right", d_in, min(d_in, 2 * sketch)), ("left", d_out, min(d_out, sketch))}
            else:
                size = d_in if name.startswith("input") else d_out
                matrices.add(("symmetric", size, min(size, sketch)))
    return FLOAT * sum(size * columns for _, size, columns in matrices)


def update_bytes(d_in: int, d_out: int, tokens: Tokens, sketch: int | None) -> int:
    """Bytes of the float32 copies while one layer's batch is added."""
    copies = 2 if tokens.bytes == FLOAT else 3  # rows that count, weighted rows; and the conversion
    columns = 0 if sketch is None else 2 * sketch
    return FLOAT * tokens.rows * (copies * max(d_in, d_out) + min(d_in, d_out) + columns)


def spectrum_bytes(d_in: int, d_out: int, need: Iterable[str], sketch: int | None) -> int:
    """Bytes of work while the spectra of one layer are computed from its sums, and a matrix of its shape is whitened."""
    need = tuple(need)
    largest = 0
    for name in need:
        sizes = (d_in, d_out) if name == "mean_gradient" else (d_in if name.startswith("input") else d_out,)
        wide = max(sizes)
        if sketch is not None:
            work = 2 * FLOAT * 4 * wide * min(wide, 2 * sketch)  # float64: Y, its shift, factors
        elif name == "mean_gradient":
            work = 4 * FLOAT * d_in * d_out
        elif wide <= FULL_EIGEN_WIDTH:
            work = 6 * FLOAT * wide * wide
        else:
            work = FLOAT * (wide * wide + 6 * wide * (KEPT + KEPT // 8))
        largest = max(largest, work)
    if {"input", "output"} <= set(need):  # modes that whiten the weight or M hold both spectra beside it
        vectors = sum(FLOAT * size * (size if size <= FULL_EIGEN_WIDTH else KEPT) for size in (d_in, d_out))
        narrow = min(d_in, d_out)
        decomposed = 8 * narrow * narrow if narrow <= 2 * FULL_EIGEN_WIDTH else 0  # what LAPACK takes for a whole SVD
        return vectors + max(largest, FLOAT * (5 * d_in * d_out + decomposed))
    return largest


def parse_memory(value: int | str | None) -> int | None:
    """Bytes from a number or from text such as ``"2GB"``.

    Raises:
        InputError: It is no amount of memory above 0.

    Example:
        >>> parse_memory("2GB"), parse_memory("512MiB")
        (2000000000, 536870912)
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            budget = parse_budget(value if not value.strip().isdecimal() else f"{value}B")
        except InputError:
            budget = None
        if budget is None or budget.kind != "memory":
            raise InputError(f"max_memory '{value}' is no amount of memory: write 4GB or 512MiB")
        return int(budget.amount)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf or value % 1:
        raise InputError(f"max_memory {value!r} must be a whole number of bytes above 0, or text such as '4GB'")
    return int(value)


def plan_chunks(
    components: Sequence[Component],
    leaders: Mapping[str, str],
    need: Sequence[str],
    *,
    tokens: Tokens,
    limit: int | None,
    sketch: int,
    exact_width: int,
) -> list[Chunk]:
    """Divide layers into passes, in the model's order, so that each fits the memory.

    Layers that share an input stay together where its factor is needed. Layers wider than ``exact_width`` are sketched,
    and so are those that would not fit alone.

    Args:
        components: The layers.
        leaders: Layer -> first layer with the same input.
        need: Names from `NEEDS`.
        tokens: Size of a batch.
        limit: Bytes; None puts all in one pass.
        sketch: Columns of a sketch.
        exact_width: Widest matrix that is kept whole.

    Returns:
        The passes.

    Raises:
        InputError: A layer does not fit even as a sketch.
    """
    groups: list[list[Component]] = []
    for component in components:
        leader = leaders.get(component.name, component.name)
        home = next((g for g in groups if "input" in need and leader in {c.name for c in g}), None)
        if home is None:
            groups.append([component])
        else:
            home.append(component)
    wide = frozenset(c.name for c in components if max(_widths(c, need), default=0) > exact_width)

    def size(parts: Sequence[Component], sketched: frozenset[str]) -> int:
        return _bytes(parts, leaders, need, tokens, sketched, sketch)

    chunks: list[Chunk] = []
    members: list[Component] = []
    narrow: frozenset[str] = frozenset()
    for group in groups:
        sketched = wide & {c.name for c in group}
        if limit is not None and size(group, sketched) > limit:
            sketched = min(sketched, frozenset(c.name for c in group), key=lambda names: size(group, names))
            if (least := size(group, sketched)) > limit:
                raise InputError(
                    f"max_memory of {limit:,} bytes is too little: layer '{group[0].name}' needs {least:,} with "
                    f"{tokens.rows} tokens a batch: give that much, or smaller batches"
                )
        if members and limit is not None and size([*members, *group], narrow | sketched) > limit:
            chunks.append(Chunk(tuple(members), narrow, size(members, narrow)))
            members, narrow = [], frozenset()
        members, narrow = [*members, *group], narrow | sketched
    chunks.append(Chunk(tuple(members), narrow, size(members, narrow)))
    return chunks


def _widths(component: Component, need: Sequence[str]) -> list[int]:
    widths = [component.d_in] if any(n in need for n in ("input", "input_fisher", "mean_gradient")) else []
    return [
        *widths,
        *([component.d_out] if any(n in need for n in ("output", "output_fisher", "mean_gradient")) else []),
    ]


def _bytes(
    components: Sequence[Component],
    leaders: Mapping[str, str],
    need: Sequence[str],
    tokens: Tokens,
    sketched: frozenset[str],
    sketch: int,
) -> int:
    sums, held, update, solve = 0, 0, 0, 0
    seen: set[str] = set()
    for c in components:
        columns = sketch if c.name in sketched else None
        leader = leaders.get(c.name, c.name)
        sums += statistics_bytes(c.d_in, c.d_out, need, sketch=columns, shared_input=leader in seen)
        if leader not in seen:
            held += tokens.rows * c.d_in * tokens.bytes  # the input is kept until its gradient comes
        seen.add(leader)
        update = max(update, update_bytes(c.d_in, c.d_out, tokens, columns))
        solve = max(solve, spectrum_bytes(c.d_in, c.d_out, need, columns))
    widths = [(c.d_in, c.d_out) for c in components if c.name in sketched]
    return sums + probe_bytes(widths, need, sketch) + max(held + update, solve)
