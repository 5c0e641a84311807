"""Which metric should a person watch? All metrics ranked by how well they follow accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError
from lorascope.core.metrics import METRICS
from lorascope.core.seeds import derive_seed
from lorascope.scaling.claims_cells import finished, number_column
from lorascope.scaling.claims_statistics import FEWEST
from lorascope.scaling.settings import settings_of, text_column

Array = np.ndarray

# Runs compare where the questions and the model are the same; everything else (rank, rows, sharing ...) is what differs.
_SAME = ("task", "model", "prompt", "length")
SCHEMA_VERSION = 1
TIE = 1e-9  # taus that are closer are the same


@dataclass(frozen=True, kw_only=True)
class MetricRank:
    """How well one metric follows accuracy.

    Attributes:
        metric: Name of the metric.
        label: Its label.
        better: ``"lower"`` or ``"higher"``: the direction in which accuracy is expected to rise.
        chosen: Whether that direction was taken from these data, because the metric has none of its own.
        tau: Mean Kendall tau-b with accuracy in that direction, in [-1, 1].
        low: Lower end of its 95 % interval; NaN where the data are too few.
        high: Upper end.
        pairs: Pairs of runs with different accuracy behind it.
        cells: Cells (task, model, prompt, length bin).
        units: Cells and seeds.
        runs: Runs.
        behind: Tau of the first in the list minus this one's.
        behind_low: Lower end of the interval of that difference; above 0 means that the first is ahead beyond doubt.
        behind_high: Upper end.
    """

    metric: str
    label: str
    better: str
    chosen: bool
    tau: float
    low: float
    high: float
    pairs: int
    cells: int
    units: int
    runs: int
    behind: float
    behind_low: float
    behind_high: float
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; NaN becomes None."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MetricRank:
        """Build one from what `to_dict` made."""
        floats = ("tau", "low", "high", "behind", "behind_low", "behind_high")
        read: dict[str, Any] = {k: math.nan if v is None and k in floats else v for k, v in values.items()}
        return cls(**read)


def rank_metrics(
    table: pd.DataFrame | Mapping[str, Any] | str | Path, *, n_boot: int = 2000, seed: int = 0
) -> list[MetricRank]:
    """Rank metrics by how well they follow accuracy among comparable runs.

    Runs are compared within one cell (task, model, prompt, length bin) and one seed, adapters only. There Kendall's tau-b of
    accuracy and the metric is taken over all pairs of runs, and averaged over seeds, then cells. A metric with a better
    direction in `METRICS` is read in that direction; the others have none, and get the one that agrees with the data, which
    flatters them a little (``chosen``). The interval resamples settings (the same ones for all seeds and metrics), seeds
    and cells together.

    Args:
        table: One row a run with ``accuracy``, metrics, and settings, as `lorascope.scaling.read_table` gives it.
        n_boot: Resamples.
        seed: Of the resampling.

    Returns:
        Best first; only metrics that vary and have at least two comparable runs. Intervals are NaN below 6 different
        settings.

    Raises:
        InputError: The table has no accuracy, no other metric, or no two comparable runs.

    Example:
        >>> runs = pd.DataFrame({"R": [4, 8, 16], "accuracy": [0.5, 0.6, 0.7], "ce": [3.0, 2.0, 1.0]})
        >>> [(found.metric, found.tau) for found in rank_metrics(runs)]
        [('ce', 1.0)]

    References:
        Kendall 1945 (tau-b); Owen 2007 (resampling rows and columns of a crossed design).
    """
    if n_boot < 100:
        raise InputError(f"n_boot={n_boot}: give at least 100 resamples")
    rows = finished(table)
    if "R" in rows:
        rows = rows[number_column(rows, "R").fillna(1) > 0]
    rows = rows[number_column(rows, "accuracy").notna()]
    if not len(rows):
        raise InputError("no adapter in the table has an accuracy: score a task with questions to rank the metrics")
    names = [n for n in METRICS if METRICS[n].group != "accuracy" and number_column(rows, n).notna().any()]
    if not names:
        raise InputError("the table has no metric beside accuracy: measure at least one to rank")
    blocks = _blocks(rows, names)
    if not blocks:
        raise InputError(
            "no two runs of one task, model, prompt and seed differ in accuracy: run two settings or more with one seed"
        )
    found = _taus(blocks, len(names))
    draws = _resample(blocks, len(names), n_boot, derive_seed(seed, "rank_metrics"))
    signs = np.array([_direction(name, tau) for name, tau in zip(names, found, strict=True)])
    oriented, draws = found * signs, draws * signs
    order = sorted((i for i in range(len(names)) if np.isfinite(oriented[i])), key=lambda i: (-oriented[i], i))
    settings = len({setting for block in blocks for setting in block.settings})
    ranked = []
    for i in order:
        behind = draws[:, order[0]] - draws[:, i]
        low, high = _interval(draws[:, i], settings)
        behind_low, behind_high = _interval(behind, settings) if i != order[0] else (0.0, 0.0)
        with_metric = [block for block in blocks if np.isfinite(block.tau(i))]
        ranked.append(
            MetricRank(
                metric=names[i],
                label=METRICS[names[i]].label,
                better="higher" if signs[i] > 0 else "lower",
                chosen=METRICS[names[i]].better == "neither",
                tau=float(oriented[i]),
                low=low,
                high=high,
                pairs=sum(block.pairs(i) for block in with_metric),
                cells=len({block.cell for block in with_metric}),
                units=len(with_metric),
                runs=sum(int(block.known[i].sum()) for block in with_metric),
                behind=float(oriented[order[0]] - oriented[i]),
                behind_low=behind_low,
                behind_high=behind_high,
            )
        )
    return ranked


def which_to_watch(ranked: Sequence[MetricRank]) -> str:
    """The answer in words: which metric to watch, and whether that is beyond doubt.

    Args:
        ranked: What `rank_metrics` gave.

    Returns:
        One to three sentences.

    Example:
        >>> runs = pd.DataFrame({"R": [4, 8, 16], "accuracy": [0.5, 0.6, 0.7], "ce": [3.0, 2.0, 1.0]})
        >>> which_to_watch(rank_metrics(runs))
        'Too few runs to say: Cross-entropy follows accuracy best (tau +1.00), but 6 different settings are needed.'
    """
    if not ranked:
        return "No metric varies among the runs: nothing to watch."
    first = ranked[0]
    tied = [other for other in ranked[1:] if abs(other.tau - first.tau) <= TIE]
    best, follow = _listed([first, *tied]), "follow" if tied else "follows"
    if not math.isfinite(first.low):
        found = f"{best} {follow} accuracy best (tau {first.tau:+.2f})"
        return f"Too few runs to say: {found}, but {FEWEST} different settings are needed."
    head = f"tau {first.tau:+.2f} with accuracy, 95 % interval {first.low:+.2f} to {first.high:+.2f}"
    if first.low <= 0:
        return (
            f"Watch accuracy itself: {best} {follow} it best ({head}{', the same for all of them' if tied else ''}), which "
            "is not beyond chance in these runs."
        )
    rest = [other for other in ranked[1:] if other not in tied]
    close = [other for other in rest if not other.behind_low > 0]
    if tied:
        text = f"{best} tie: they order these runs equally well ({head}), so watch whichever is cheapest to measure."
        for way in ("lower", "higher"):
            some = [each for each in (first, *tied) if each.better == way]
            if some:
                whose = " of each" if len(some) > len(tied) else f" of {_listed(some)}"
                text += f" A {way} value{whose} goes with more accuracy."
    else:
        text = f"Watch {first.label} ({head}): {first.better} goes with more accuracy."
    if any(each.chosen for each in (first, *tied)):
        text += " The direction was taken from these runs, and may be another on other tasks."
    if close:
        text += f" These runs cannot tell {'them' if tied else 'it'} from {_listed(close, 'or')}."
    elif rest:
        text += f" {'They are' if tied else 'It is'} ahead of {rest[0].label}, the next, beyond doubt."
    return text


def _listed(ranked: Sequence[MetricRank], word: str = "and") -> str:
    """The labels of metrics as a list in words, the first four of many."""
    names = [item.label for item in ranked]
    if len(names) > 5:
        names = [*names[:4], f"{len(names) - 4} more"]
        word = "and"
    comma = "; " if any("," in name for name in names) else ", "
    return f"{comma.join(names[:-1])} {word} {names[-1]}" if len(names) > 1 else names[0]


@dataclass(frozen=True)
class _Block:
    """The runs of one cell and seed: signs of all pairwise differences."""

    cell: str
    seed: str
    settings: tuple[str, ...]
    target: Array  # (n, n) signs of the differences in accuracy
    metric: Array  # (metrics, n, n), 0 where a run lacks the metric
    known: Array  # (metrics, n)

    def pairs(self, index: int) -> int:
        """Pairs with different accuracy and a known metric."""
        both = np.outer(self.known[index], self.known[index])
        return int((self.target[both.astype(bool)] != 0).sum()) // 2

    def tau(self, index: int, weights: Array | None = None) -> Any:
        """Kendall's tau-b with weights (draws, n) on the runs; 0 for a metric that does not vary, NaN without accuracy."""
        mask = np.outer(self.known[index], self.known[index])
        a, b = self.target * mask, self.metric[index]
        w = np.ones((1, len(self.settings))) if weights is None else weights
        both, first, second = (np.einsum("di,ij,dj->d", w, m, w, optimize=True) for m in (a * b, a * a, b * b))
        with np.errstate(invalid="ignore", divide="ignore"):
            tau = np.where(first > 0, np.where(second > 0, both / np.sqrt(first * second), 0.0), np.nan)
        return float(tau[0]) if weights is None else tau


def _blocks(rows: pd.DataFrame, names: Sequence[str]) -> list[_Block]:
    empty = pd.Series([""] * len(rows), index=rows.index, dtype=object)
    cells = _joined(rows, [key for key in _SAME if key in rows])
    settings = _joined(rows, [key for key in settings_of(rows) if key not in _SAME])
    seeds = text_column(rows["seed"]) if "seed" in rows else empty
    blocks = _by(rows, names, cells, seeds, settings)
    # Seeds that differ from run to run cannot be paired; all runs of a cell are then compared with each other.
    return blocks or _by(rows, names, cells, empty, settings + seeds)


def _joined(rows: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    joined = pd.Series([""] * len(rows), index=rows.index, dtype=object)
    for key in keys:
        joined = joined + key + "=" + text_column(rows[key]) + ";"
    return joined


def _by(
    rows: pd.DataFrame, names: Sequence[str], cells: pd.Series, seeds: pd.Series, settings: pd.Series
) -> list[_Block]:
    blocks = []
    columns = ["accuracy", *names]
    numbers = pd.DataFrame({name: number_column(rows, name) for name in columns}, index=rows.index)
    for (cell, seed), group in numbers.groupby([cells, seeds], sort=False):
        means = group.groupby(settings.loc[group.index]).mean()  # the same run twice counts once
        data = means.to_numpy(dtype=float).T
        if data.shape[1] < 2 or np.ptp(data[0]) == 0:
            continue
        known = np.isfinite(data[1:])
        filled = np.where(known, data[1:], 0.0)
        signs = np.sign(filled[:, :, None] - filled[:, None, :]) * (known[:, :, None] & known[:, None, :])
        target = np.sign(data[0][:, None] - data[0][None, :])
        blocks.append(_Block(str(cell), str(seed), tuple(map(str, means.index)), target, signs, known))
    return blocks


def _taus(blocks: Sequence[_Block], count: int) -> Array:
    """Mean over cells of the mean over seeds."""
    cells = sorted({block.cell for block in blocks})
    return np.array(
        [
            _mean([_mean([block.tau(i) for block in blocks if block.cell == cell]) for cell in cells])
            for i in range(count)
        ]
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _resample(blocks: Sequence[_Block], count: int, n_boot: int, seed: int) -> Array:
    """Taus of resampled settings, seeds and cells: (n_boot, metrics)."""
    generator = np.random.default_rng(seed)
    settings = sorted({setting for block in blocks for setting in block.settings})
    place = {setting: index for index, setting in enumerate(settings)}
    drawn = generator.multinomial(len(settings), np.full(len(settings), 1 / len(settings)), size=n_boot).astype(float)
    cells = sorted({block.cell for block in blocks})
    cell_weights = generator.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=n_boot).astype(float)
    total, weight = np.zeros((n_boot, count)), np.zeros((n_boot, count))
    for number, cell in enumerate(cells):
        inside = [block for block in blocks if block.cell == cell]
        seed_weights = generator.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=n_boot)
        sums, known = np.zeros((n_boot, count)), np.zeros((n_boot, count))
        for index, block in enumerate(inside):
            weights = drawn[:, [place[setting] for setting in block.settings]]
            for i in range(count):
                tau = block.tau(i, weights)
                valid = np.isfinite(tau) * seed_weights[:, index]
                sums[:, i] += np.nan_to_num(tau) * valid
                known[:, i] += valid
        has = (known > 0) * cell_weights[:, [number]]
        total += np.divide(sums, known, out=np.zeros_like(sums), where=known > 0) * has
        weight += has
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def _direction(name: str, tau: float) -> float:
    better = METRICS[name].better
    if better == "neither":
        return -1.0 if tau < 0 else 1.0
    return 1.0 if better == "higher" else -1.0


def _interval(draws: Array, settings: int) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if settings < FEWEST or len(known) < len(draws) / 2:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
