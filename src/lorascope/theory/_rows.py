"""One row a setting: both stages as a flat mapping, which tables and figures read. Warnings travel with the numbers."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from scipy import optimize
from tqdm.auto import tqdm

from lorascope.core.errors import InputError
from lorascope.theory.finetuned import FineTuned
from lorascope.theory.finetuning import finetune_after
from lorascope.theory.pretraining import Pretrained, pretrain

Row = dict[str, Any]
FIRST = ("Q", "M", "k", "delta_eff", "delta_reuse", "delta_recalibrated", "beta", "error", "rank_fraction")
SECOND = ("m", "q", "alignment", "test_error", "train_loss", "jump")
SEARCH_SAMPLES = 2**11
"""Quasi-random points while a best ridge is looked for; the result is computed with all of them."""
LOST = 0.3
"""Alignment below which the update counts as lost, where only a penalty that is too large keeps the equations regular."""
RIDGES = (1e-3, 30.0)
"""Range in which the best lambda' is looked for."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both stages are asked; names as in `lorascope.simulation.simulate_pipeline`.

    Attributes:
        alpha: N / d^2 of stage 1.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta, the label noise.
        ridge: lambda of stage 1; None for the best.
        penalty: ``nuclear`` or ``frobenius``.
        activation: ``linear`` or ``softmax``.
        alpha_finetune: N' / d of stage 2; None leaves stage 2 out.
        ridge_finetune: lambda'; None for the one with the lowest test error.
        data: ``fresh``, ``reused``, ``recalibrated`` or ``active``.
        fraction: Share of the pool that ``active`` labels.
        largest: Let ``active`` take the largest logits.
        dim: d, if one is meant; the share of reused sequences is judged by it.
        samples: Quasi-random points; None for the default.
    """

    alpha: float | int
    tokens: int
    kappa0: float | int
    noise: float | int
    ridge: float | int | None
    penalty: str = "nuclear"
    activation: str = "linear"
    alpha_finetune: float | int | None = None
    ridge_finetune: float | int | None = 0.5
    data: str = "fresh"
    fraction: float | int = 0.1
    largest: bool = False
    dim: int | None = None
    samples: int | None = None

    def first(self, start: Pretrained | None = None) -> Pretrained:
        """Stage 1, at the best ridge where none is given."""
        if self.ridge is None:
            from lorascope.theory.prescriptions_pretraining import best_pretraining

            return best_pretraining(
                alpha=self.alpha,
                tokens=self.tokens,
                kappa0=self.kappa0,
                noise=self.noise,
                penalty=self.penalty,
                activation=self.activation,
            )
        return pretrain(
            alpha=self.alpha,
            tokens=self.tokens,
            kappa0=self.kappa0,
            noise=self.noise,
            ridge=self.ridge,
            penalty=self.penalty,
            activation=self.activation,
            start=start,
        )

    def second(self, first: Pretrained, start: FineTuned | None = None) -> FineTuned:
        """Stage 2 after a stage 1, at the best lambda' where none is given.

        Raises:
            InputError: There is no alpha_finetune.
        """
        if self.alpha_finetune is None:
            raise InputError("stage 2 needs alpha_finetune, the number of its sequences over d")
        solve = functools.partial(
            finetune_after,
            first,
            alpha=self.alpha_finetune,
            data=self.data,
            fraction=self.fraction,
            largest=self.largest,
            dim=self.dim,
        )
        ridge, near = self.ridge_finetune, start
        if ridge is None:
            ridge, near = best_ridge(
                lambda value, nearby: solve(ridge=value, samples=SEARCH_SAMPLES, start=nearby), start
            )
        found = solve(ridge=ridge, samples=self.samples, start=near)
        if near is not None and not found.converged:  # a neighbour on another branch is a bad start
            found = solve(ridge=ridge, samples=self.samples)
        return found

    def but(self, **changes: Any) -> Setting:
        """The same with some values changed.

        Raises:
            InputError: A name is unknown.
        """
        return replace(self, **changes)


def best_ridge(
    solve: Callable[[float, FineTuned | None], FineTuned], start: FineTuned | None = None
) -> tuple[float, FineTuned]:
    """The lambda' with the lowest test error, and the solution there.

    The error is looked at along a coarse logarithmic grid first, from large to small values, and then refined around the
    lowest point by bounded search, so that a second valley is not missed.
    """
    seen: dict[float, FineTuned] = {}
    near = start

    def error(place: float) -> float:
        nonlocal near
        found = solve(10**place, near)
        if found.converged and found.q > 1e-3:
            near = found
        seen[place] = found
        return found.test_error

    low, high = (math.log10(value) for value in RIDGES)
    grid = [high - (high - low) * step / 8 for step in range(9)]
    values = [error(place) for place in grid]
    best = min(range(9), key=values.__getitem__)
    bounds = (grid[min(best + 1, 8)], grid[max(best - 1, 0)])
    near = seen[grid[best]] if seen[grid[best]].converged else start
    optimize.minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 0.02})
    place = min(seen, key=lambda item: seen[item].test_error)
    return 10**place, seen[place]


def row_of(first: Pretrained, second: FineTuned | None = None, **more: Any) -> Row:
    """A flat mapping of a setting's numbers with the warnings of both stages."""
    row: Row = {**more, "ridge": first.ridge, **{name: getattr(first, name) for name in FIRST}}
    if second is None:
        return {**row, "converged": first.converged, "warnings": list(first.warnings)}
    row |= {"ridge_finetune": second.ridge, **{name: getattr(second, name) for name in SECOND}}
    row |= {"noise_finetune": second.noise, "smallest_dim": second.smallest_dim}
    words = [f"stage 1: {word}" for word in first.warnings] + list(second.warnings) + lost(second)
    return {**row, "converged": first.converged and second.converged, "warnings": list(dict.fromkeys(words))}


def lost(found: FineTuned) -> list[str]:
    """A warning where stage 2 is converged and regular but has hardly found the direction."""
    if found.alignment >= LOST or found.warnings:
        return []
    return [f"hardly anything of the direction is found (alignment {found.alignment:.2f}): below or near recovery"]


def along(settings: Iterable[Setting], label: str, progress: bool) -> Iterator[tuple[Setting, Row]]:
    """Rows of settings that lie close to each other: each is started from the one before, which is faster."""
    given = list(settings)
    first: Pretrained | None = None
    second: FineTuned | None = None
    for item in tqdm(given, desc=label, unit="point", disable=not progress):
        first = item.first(first)
        if item.alpha_finetune is not None:
            second = item.second(first, second)
            yield item, row_of(first, second)
            if not second.converged or second.q < 1e-3:
                second = None
        else:
            yield item, row_of(first)
        if not first.converged:
            first = None


def logarithmic(low: float | int, high: float | int, count: int) -> list[float]:
    """Evenly spaced on a logarithmic axis, ends included.

    Raises:
        InputError: The ends are not positive and rising, or there are fewer than two points.

    Example:
        >>> [round(value, 9) for value in logarithmic(0.01, 1.0, 3)]
        [0.01, 0.1, 1.0]
    """
    if not (math.isfinite(low) and math.isfinite(high) and 0 < low < high):
        raise InputError(f"a range from {low} to {high} must have 0 < from < to")
    if count < 2:
        raise InputError(f"points {count} must be at least 2")
    step = math.log(high / low) / (count - 1)
    return [float(low), *(low * math.exp(step * index) for index in range(1, count - 1)), float(high)]


def flags(rows: Iterable[Row]) -> list[str]:
    """Each warning of some rows once, with the number of rows that have it."""
    rows = list(rows)
    found: dict[str, list[str]] = {}
    for row in rows:
        for word in row["warnings"]:
            found.setdefault(_kind(word), []).append(word)
    texts = {kind: _reused(kind, seen) if "reused" in kind else kind for kind, seen in found.items()}
    return [
        f"{len(seen)} of {len(rows)} points: {texts[kind]}" if len(rows) > 1 else texts[kind]
        for kind, seen in found.items()
    ]


def _reused(kind: str, seen: list[str]) -> str:
    """The d that every one of some rows needs, if it is the same one, in place of the words without it."""
    return seen[0] if len(set(seen)) == 1 else kind


def _kind(word: str) -> str:
    """A warning without its own numbers, so that the same one at two points counts as one."""
    cases = {
        "not converged": "not converged",
        "pre-training collapsed": "pre-training collapsed: lower ridge",
        "hardly anything of the direction": "hardly anything of the direction is found: below or near recovery",
        "the training data are interpolated": "the training data are interpolated: no numbers on reused data",
    }
    prefix = "stage 1: " if word.startswith("stage 1: ") else ""
    body = word.removeprefix(prefix)
    for start, text in cases.items():
        if body.startswith(start):
            return prefix + text
    if body.startswith("jump "):
        return prefix + re.sub(r"^jump \S+ is", "jump is", body)
    if "stage-1 sequences are reused" not in body:
        return word
    if body.startswith("below d = "):
        return "more than 5% of the stage-1 sequences are reused below the d of the row (no d is given)"
    return "more than 5% of the stage-1 sequences are reused"
