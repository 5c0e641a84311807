"""What is kept of each layer until every layer is known; writing its factors, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.adapters import Component
from lorascope.adapters._initial import factor_parameters, is_quantised, set_rank, write_factors
from lorascope.core.seeds import preserved_random_state
from lorascope.initialization.budget import directions_for, effective_directions
from lorascope.initialization.directions import DEFAULT_NORM, Start
from lorascope.measuring.processes import processes


@dataclass(frozen=True)
class Draft:
    """What is kept of a layer until every layer is known: its best directions, and numbers."""

    component: Component
    start: Start
    tokens: int
    fisher_trace: float
    fisher_values: list[float] | None
    sharpness: float = 1.0
    """Share of the leading eigenvalues that a sketch shows, see `sketch_sharpness`; 1 where nothing is sketched."""


SHARP = 0.8
"""Below that share a reader is told."""


def write_draft(model: nn.Module, draft: Draft, adapter: str, rank: int) -> None:
    """Put the factors into the adapter, the same in every process; `write_patterns` follows where ranks changed."""
    component, start = draft.component, draft.start
    with preserved_random_state():
        set_rank(model, component, adapter, rank)
    a_parameter, b_parameter, scaling = factor_parameters(component, adapter)
    directions = start.directions[:, :rank]
    b: Tensor | None = None
    if start.outputs is None:
        a = DEFAULT_NORM * _complete(directions, rank).T
        if start.lengths is not None:
            a[: directions.shape[1]] *= start.lengths[: directions.shape[1], None]
    else:
        # A weight has no more directions than its smaller side: what the rank has beyond starts as zero-delta modes do.
        spare = rank - directions.shape[1]
        a = directions.T / scaling**0.5
        if spare > 0:
            own = torch.linalg.qr(directions).Q
            a = torch.cat([a, DEFAULT_NORM * _complete(own, rank).T[-spare:]])
        b = nn.functional.pad(start.outputs[:, :rank] / scaling**0.5, (0, max(spare, 0)))
    write_factors(component, adapter, a, b)
    group = processes()
    if group is not None:
        for parameter in (a_parameter, b_parameter):
            torch.distributed.broadcast(parameter.data, src=0)


def _complete(directions: Tensor, rank: int) -> Tensor:
    """Further orthonormal directions, where there are fewer than the rank."""
    if directions.shape[1] >= rank:
        return directions
    generator = torch.Generator().manual_seed(0)
    more = torch.randn(directions.shape[0], rank - directions.shape[1], generator=generator).to(directions)
    for _ in range(2):
        more = torch.linalg.qr(more - directions @ (directions.T @ more)).Q
    return torch.cat([directions, more], 1)


def layer_rows(drafts: Sequence[Draft], ranks: dict[str, int], wanted: dict[str, int]) -> list[dict[str, Any]]:
    """One row of numbers a layer, for the result."""
    whole = sum(d.fisher_trace for d in drafts)
    rows = []
    for draft in drafts:
        c = draft.component
        rank = ranks[c.name]
        row: dict[str, Any] = {"name": c.name, "layer": c.layer, "projection": c.projection}
        row |= {"d_in": c.d_in, "d_out": c.d_out, "rank": rank, "tokens": draft.tokens}
        row["parameters"] = rank * (c.d_in + c.d_out)
        row |= {"fisher_trace": draft.fisher_trace, "share": draft.fisher_trace / whole if whole else 0.0}
        row["known"] = min(draft.start.known, rank)
        if draft.fisher_values is not None:
            gain = sum(draft.fisher_values[:rank])
            trace = draft.fisher_trace
            row |= {"captured": min(gain / trace, 1.0) if trace else 0.0, "gain": gain}
            row["gain_per_parameter"] = gain / row["parameters"]
        if draft.fisher_values is not None and wanted:
            row["directions"] = effective_directions(draft.fisher_values, trace, c.d_in)
            row["directions_90"] = directions_for(draft.fisher_values, trace, 0.9)
            row["suggested_rank"] = wanted.get(c.name)
        rows.append(row)
    return rows


def notes_of(drafts: Sequence[Draft], ranks: dict[str, int], fisher: str, counts: dict[str, int]) -> list[str]:
    """What a reader must know, one sentence each."""
    notes = []
    short = [d for d in drafts if d.start.known < ranks[d.component.name]]
    if short:
        notes.append(
            f"the data decide fewer directions than the rank in {len(short)} layers (such as {short[0].start.known} of "
            f"{ranks[short[0].component.name]} in {short[0].component.name}, from {short[0].tokens} tokens): the others are "
            "arbitrary; give more data"
        )
    few = [d for d in drafts if 0 < d.tokens < d.component.d_in]
    if few:
        notes.append(
            f"{len(few)} layers saw fewer tokens than they have inputs (such as {few[0].tokens} of "
            f"{few[0].component.d_in}): their statistics are singular, and inverses are damped"
        )
    blurred = sorted((d for d in drafts if d.sharpness < SHARP), key=lambda d: d.sharpness)
    if blurred:
        notes.append(
            f"{len(blurred)} sketches are coarse (that of {blurred[0].component.name} shows {blurred[0].sharpness:.0%} of "
            "its leading eigenvalues): directions there are approximate, their gains lower bounds, and a budget gives "
            "these layers too little; take a larger sketch, exact_width or max_memory"
        )
    if counts.get("samples") == 1:
        notes.append("the data are one sample: its directions need not be those of the task")
    if any(is_quantised(d.component.base) for d in drafts):
        notes.append("the base is quantised: gradients are those of the quantised model")
    if fisher == "true":
        notes.append(
            "labels were drawn from the model (true Fisher): the directions know curvature, not the data's labels"
        )
    return notes
