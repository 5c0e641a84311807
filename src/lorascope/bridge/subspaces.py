"""How far the subspaces of two adapters agree, layer by layer, with what chance alone gives beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorascope.adapters import components, low_rank_factors
from lorascope.core.errors import AdapterError

SIDES = ("column", "row")


@dataclass(frozen=True)
class Factors:
    """The update Delta W = B A of a layer.

    Attributes:
        a: A, its rows span the row space (directions of the layer's input that are read).
        b: B times the adapter's scaling, its columns span the column space (directions of the output that are written).
        layer: Index of the block, or None outside the blocks.
        projection: Rest of the module path.
    """

    a: Float[Tensor, "r i"]
    b: Float[Tensor, "o r"]
    layer: int | None = None
    projection: str = ""


@dataclass(frozen=True)
class LayerAlignment:
    """How far a layer's update agrees with that of the reference.

    Attributes:
        name: Module path.
        layer: Index of the block, or None.
        projection: Rest of the path.
        column: Mean squared cosine of the principal angles between the column spaces of B A; None if an update is zero.
        row: The same of the row spaces.
        update: Cosine between the two updates as vectors.
        column_chance: Mean of ``column`` for random subspaces of these ranks.
        row_chance: The same of ``row``.
        weight: Squared Frobenius norm of the reference's update.
    """

    name: str
    layer: int | None
    projection: str
    column: float | None
    row: float | None
    update: float | None
    column_chance: float
    row_chance: float
    weight: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


def factors_of(model: nn.Module) -> dict[str, Factors]:
    """The factors of every LoRA layer of a model, in float64.

    Raises:
        AdapterError: A layer has no plain factors (convolutions, fused experts), or several adapters.
    """
    found = {}
    for part in components(model):
        triples = low_rank_factors(part)
        if triples is None or len(triples) != 1:
            raise AdapterError(f"layer '{part.name}' has no single pair A, B: the bridge compares plain LoRA adapters")
        ((a, b, scaling),) = triples
        found[part.name] = Factors(a.double().cpu().clone(), b.double().cpu() * scaling, part.layer, part.projection)
    return found


def basis(columns: Float[Tensor, "d r"], *, tolerance: float = 1e-9) -> Float[Tensor, "d k"]:
    """An orthonormal basis of the column space; directions below ``tolerance`` of the largest one are left out."""
    vectors, values, _ = torch.linalg.svd(columns, full_matrices=False)
    largest = float(values.max()) if values.numel() else 0.0
    kept: Tensor = vectors[:, values > tolerance * largest] if largest > 0 else vectors[:, :0]
    return kept


def principal_angles(x: Float[Tensor, "d r"], y: Float[Tensor, "d s"]) -> Float[Tensor, " k"]:
    """Principal angles between two column spaces in radians, smallest first; none if a space is empty.

    Example:
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> [round(float(angle), 3) for angle in principal_angles(x[:, :2], x[:, 1:])]
        [0.0, 1.571]
    """
    one, two = basis(x), basis(y)
    if not (one.shape[1] and two.shape[1]):
        return x.new_empty(0)
    return torch.arccos(torch.linalg.svdvals(one.T @ two).clamp(max=1.0))


def overlap(x: Float[Tensor, "d r"], y: Float[Tensor, "d s"]) -> tuple[float | None, float]:
    r"""Mean squared cosine of the principal angles, and its mean for random subspaces.

    .. math:: o = \frac{|U_x^T U_y|_F^2}{\min(r, s)}, \qquad E\,o = \frac{\max(r, s)}{d}

    for subspaces of dimensions r and s in d dimensions, of which one is uniformly random.

    Args:
        x: Matrix whose columns span the first subspace.
        y: The same of the second.

    Returns:
        The overlap in [0, 1] (None if a matrix is zero) and the chance level.

    Example:
        >>> overlap(torch.eye(4, 2, dtype=torch.float64), torch.eye(4, 1, dtype=torch.float64))
        (1.0, 0.5)
    """
    one, two = basis(x), basis(y)
    few, many = sorted((one.shape[1], two.shape[1]))
    if not few:
        return None, max(x.shape[1], y.shape[1]) / x.shape[0]
    return min(float((one.T @ two).square().sum()) / few, 1.0), many / x.shape[0]


def update_cosine(x: Factors, y: Factors) -> float | None:
    """Cosine between two updates as vectors of their entries, without building them; None if one is zero."""
    inner = float(((x.b.T @ y.b) * (x.a @ y.a.T)).sum())
    sizes = [float(((f.b.T @ f.b) * (f.a @ f.a.T)).sum()) for f in (x, y)]
    if min(sizes) <= 0:
        return None
    return max(-1.0, min(1.0, inner / math.sqrt(sizes[0] * sizes[1])))


def compare_layers(own: Mapping[str, Factors], reference: Mapping[str, Factors]) -> list[LayerAlignment]:
    """Compare two adapters of one model, layer by layer.

    Raises:
        AdapterError: They do not adapt the same layers.
    """
    if own.keys() != reference.keys():
        other = sorted(own.keys() ^ reference.keys())[0]
        raise AdapterError(f"layer '{other}' is in one of the adapters only: compare adapters of the same layers")
    found = []
    for name, theirs in reference.items():
        mine = own[name]
        column, column_chance = overlap(mine.b, theirs.b)
        row, row_chance = overlap(mine.a.T, theirs.a.T)
        update = update_cosine(mine, theirs)
        if update is None:  # Delta W is zero: so are its spaces, whatever A holds
            column = row = None
        weight = float(((theirs.b.T @ theirs.b) * (theirs.a @ theirs.a.T)).sum())
        spaces = (column, row, update, column_chance, row_chance)
        found.append(LayerAlignment(name, theirs.layer, theirs.projection, *spaces, weight))
    return found


def above_chance(value: float, chance: float) -> float:
    """An overlap on the scale on which chance is 0 and agreement is 1.

    Example:
        >>> above_chance(0.5, 0.0), above_chance(0.1, 0.1), above_chance(1.0, 0.3)
        (0.5, 0.0, 1.0)
    """
    return (value - chance) / (1 - chance) if chance < 1 else 0.0


def summarise_layers(layers: Sequence[LayerAlignment], *, weighted: bool = True) -> dict[str, float]:
    """Means over layers: ``column``, ``row``, ``update``, their chance levels and ``column_above``, ``row_above``.

    Args:
        layers: Of one comparison.
        weighted: Weight a layer by the squared Frobenius norm of the reference's update in it, so that layers that
            the reference hardly changed count little; False weights layers alike.

    Raises:
        AdapterError: No layer can be compared.
    """
    usable = [item for item in layers if item.column is not None and item.row is not None and item.update is not None]
    total = sum(item.weight for item in usable) if weighted else len(usable)
    if not usable or not total > 0:
        raise AdapterError("no layer can be compared: the adapters hold no update (train for more steps)")

    def mean(values: Sequence[float | None]) -> float:
        parts = zip(values, usable, strict=True)
        return math.fsum((value or 0.0) * (item.weight if weighted else 1.0) for value, item in parts) / total

    found = {
        name: mean([getattr(item, name) for item in usable])
        for name in ("column", "row", "update", "column_chance", "row_chance")
    }
    for side in SIDES:
        pairs = [(getattr(item, side), getattr(item, f"{side}_chance")) for item in usable]
        found[f"{side}_above"] = mean([above_chance(*pair) for pair in pairs])
    return found
