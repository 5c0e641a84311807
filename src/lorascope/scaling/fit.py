"""`fit_scaling_law`: a table of runs in, a law with intervals and plain statements out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.metrics import METRICS
from lorascope.scaling.criteria import aicc_of_constant
from lorascope.scaling.floor import choose_floor, fit_part, unsettled, with_floor
from lorascope.scaling.identify import judge, show
from lorascope.scaling.laws import Form, check_law
from lorascope.scaling.optimum import Optimum
from lorascope.scaling.result import ScalingFit, check_level
from lorascope.scaling.solve import BISQUARE, LOSSES
from lorascope.scaling.starts import LARGEST
from lorascope.scaling.table import Observations, as_table, observe

NOISES: tuple[str, ...] = ("auto", "relative", "absolute")
SIGNS: tuple[str, ...] = ("auto", "positive", "ceiling", "free")
FEW_FITS, FEW_GROUPS = 100, 8
FLAT_MARGIN = 4.0  # by how much a law must beat a constant, in AICc
PRECISION = 1e-6  # no interval is narrower than this fraction of its parameter: so exact is the solver


def fit_scaling_law(
    table: pd.DataFrame | Mapping[str, Any] | str | Path,
    law: str = "additive",
    metric: str = "ce",
    *,
    floor: bool | None = None,
    n_boot: int | np.integer = 200,
    seed: int | np.integer = 0,
    level: float | int = 0.95,
    group: str | None = None,
    loss: str = "bisquare",
    noise: str = "auto",
    signs: str = "auto",
    pool: bool = False,
) -> ScalingFit:
    """Fit a scaling law to runs.

    Formula: additive y = A (N0/N)^alpha + B (R0/R)^beta + C (D0/D)^gamma [+ E]; multiplicative
    y = A (N0/N)^alpha (R0/R)^beta (D0/D)^gamma [+ E]; N0, R0, D0 are the geometric means of the runs. The fit minimises
    sum_i rho((y_i - f_i) / s_i) with Tukey's bisquare rho from many starts; s_i is the noise of run i, proportional to
    f_i (relative) or the same for all (absolute), its size from the median absolute residual. Intervals are the middle
    of a bootstrap over runs.

    Any metric can be fitted, falling or rising. With A > 0, alpha > 0 means that the metric falls as N grows, alpha < 0
    that it rises without end. A metric that rises towards a ceiling, such as an accuracy, has A < 0, alpha > 0, and the
    ceiling E (``floor=True``).

    Args:
        table: One row a run with the columns N, R, D (any of them) and the metric: a DataFrame, a mapping of arrays, or
            the path of a CSV or Parquet file or of a sweep's folder. Rows that are not done, miss a number, or are of
            the base model (R = 0) are left out and counted in ``warnings``.
        law: ``"additive"`` or ``"multiplicative"``.
        metric: The metric's column.
        floor: Whether there is a floor E. If not given, the lower AICc decides (E = 0 is a multiplicative law without one),
            and unless it decides clearly for a floor, each interval covers that of the law with and that without one.
        n_boot: Bootstrap fits; 0 leaves all intervals infinite.
        seed: Seed of the bootstrap.
        level: Confidence level of the intervals.
        group: Column of which runs are drawn together, such as ``"seed"``; each run for itself if not given.
        loss: ``"bisquare"`` (runs far from the law do not count), ``"huber"`` (they count less) or ``"squares"``.
        noise: ``"relative"``, ``"absolute"``, or ``"auto"``: relative for a metric of one sign, absolute for fractions
            (accuracy) and metrics of both signs.
        signs: ``"positive"`` (amplitudes and floor have the sign of the metric), ``"ceiling"`` (amplitudes have the other
            sign: the metric rises towards E, which is at most 1 for an accuracy), ``"free"``, or ``"auto"``: ceiling for
            a metric of which more is better, fitted with a floor, else positive, unless free is clearly better.
        pool: Whether all settings beside N, R and D (prompts, tasks, lengths ...) are fitted together. If not, the runs are
            those that `recommend` takes: of a setting that varies within cells, the cells that have all its values, or
            the one value that is in all cells; a warning says what was left out.

    Returns:
        The fit, with ``warnings`` that say in words what the runs cannot tell and what to run.

    Raises:
        InputError: An unknown option; a table without N, R and D, without the metric, with text or numbers that are not
            positive, in which nothing varies, with fewer than two usable runs, or with settings of which no cell has all.

    Example:
        >>> R = np.tile([4.0, 8, 16, 32, 64, 128], 2)
        >>> runs = {"R": R, "ce": 2 * (16 / R) ** 0.5 * (1 + 0.01 * np.cos(7 * np.arange(12)))}
        >>> fit = fit_scaling_law(runs, floor=False)
        >>> round(fit.params["beta"], 2), fit.identified["beta"], fit.identified["alpha"]
        (0.5, True, False)

    References:
        arXiv 2501.03152 (Eq. 8), arXiv 2402.17193; Yohai (1987), Annals of Statistics 15 (robust fits); Efron (1979),
        Annals of Statistics 7 (bootstrap).
    """
    check_law(law)
    level = check_level(level)
    for kind, value, known in (("loss", loss, LOSSES), ("noise", noise, NOISES), ("signs", signs, SIGNS)):
        if value not in known:
            raise unknown_name(kind, str(value), known)
    if isinstance(n_boot, bool) or not isinstance(n_boot, int | np.integer) or n_boot < 0:
        raise InputError(f"n_boot is {n_boot!r}: give a whole number such as 200")
    seen = observe(as_table(table), metric, group, pool=pool)
    if floor is None and signs == "ceiling":
        floor = True  # what a ceiling is
    return fit_observations(
        seen,
        tuple(Form(law, seen.axes, each) for each in ((False, True) if floor is None else (bool(floor),))),
        n_boot=int(n_boot),
        seed=int(seed),
        level=level,
        group=group,
        loss=loss,
        relative=is_relative(seen, noise),
        signs=signs,
    )


def is_relative(seen: Observations, noise: str) -> bool:
    """Whether the noise is proportional to the metric; ``"auto"`` decides by the metric."""
    if noise != "auto":
        return noise == "relative"
    known = METRICS.get(seen.metric)
    one_sign = bool((seen.y > 0).all() or (seen.y < 0).all())
    return one_sign and not (known is not None and known.unit == "fraction")


def fit_observations(
    seen: Observations,
    forms: tuple[Form, ...],
    *,
    n_boot: int,
    seed: int,
    level: float,
    group: str | None,
    loss: str,
    relative: bool,
    signs: str,
) -> ScalingFit:
    """Fit one form, or the same law without and with a floor, to runs that were picked already; see `fit_scaling_law`."""
    fits = [
        fit_part(seen, form, n_boot=n_boot, seed=seed, level=level, loss=loss, relative=relative, signs=signs)
        for form in forms
    ]
    best, rival = (fits[0], None) if len(fits) == 1 else choose_floor(fits[0], fits[1], len(seen.y))
    found, form, unit = best.found, best.found.problem.form, best.unit
    y = seen.y / unit
    constant = found.sigma == 0
    low, high, boot = best.low, best.high, best.boot
    if rival is not None:
        # Without a floor of its own, the law's other parameters are those of the rival.
        count = form.size
        low, high = np.minimum(low, rival.low[:count]), np.maximum(high, rival.high[:count])
        boot = np.concatenate([boot, rival.boot[:, :count]])
    flat = aicc_of_constant(y, relative) - best.aicc < FLAT_MARGIN and best.aicc < np.inf
    largest = float(np.abs(y).max())
    verdict = judge(seen, found, boot, low, high, largest=largest, flat=flat, constant=constant)
    back = np.ones(form.size)
    back[list(form.linear)] = unit
    whole = Form(form.law, form.axes, True)
    back_rival = np.ones(whole.size)
    back_rival[list(whole.linear)] = unit
    fitted = found.fitted * unit
    total = float(((seen.y - seen.y.mean()) ** 2).sum())
    said = [] if rival is None else [unsettled(best, rival)]
    return ScalingFit(
        law=form.law,
        metric=seen.metric,
        floor=form.floor,
        params=dict(zip(form.names, (found.theta * back).tolist(), strict=True)),
        intervals=_intervals(found, low, high, verdict.free if n_boot else frozenset(form.names), back),
        reference=seen.reference,
        axes=seen.axes,
        ranges={axis: (float(column.min()), float(column.max())) for axis, column in seen.data.items()},
        identified=verdict.identified,
        warnings=(*seen.notes, *verdict.statements, *said, *_remarks(seen, found, y, n_boot, group, constant)),
        n_runs=len(y),
        level=level,
        noise="relative" if relative else "absolute",
        sigma=found.sigma * (1.0 if relative else abs(unit)),
        # The spread is in units of the metric's typical size: back to the metric's own.
        aicc=best.aicc + 2 * len(y) * float(np.log(abs(unit))),
        rmse=float(np.sqrt(((seen.y - fitted) ** 2).mean())),
        r2=1 - float(((seen.y - fitted) ** 2).sum()) / total if total and not constant else float("nan"),
        fitted=fitted,
        residuals=seen.y - fitted,
        data={**seen.data, seen.metric: seen.y},
        boot=best.boot * back,
        rival=(np.empty((0, whole.size)) if rival is None else with_floor(rival).boot) * back_rival,
        seed=seed,
        settings={"loss": found.problem.loss, "group": group, "signs": signs, "unit": unit},
    )


def _intervals(
    found: Optimum, low: np.ndarray, high: np.ndarray, free: frozenset[str], back: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Intervals in the metric's unit; where the search ended at its edge there is no end."""
    form, edges = found.problem.form, (found.problem.low, found.problem.high)
    precision = PRECISION * np.maximum(np.abs(found.theta), 1e-3)
    down, up = np.minimum(low, found.theta) - precision, np.maximum(high, found.theta) + precision
    linear = np.isin(np.arange(form.size), form.linear)
    # The ends of the search are no ends of an interval; zero, and the highest accuracy there is, are.
    below = (down <= edges[0]) & ((edges[0] == -LARGEST) | ~linear)
    above = (up >= edges[1]) & ((edges[1] == LARGEST) | ~linear)
    if (below | above)[linear].any():
        # Amplitude and floor run away together while the exponents go to 0: the law becomes a logarithm.
        away = linear & (np.abs(found.theta) > 1e-3)
        below, above = below | (away & (found.theta < 0)), above | (away & (found.theta > 0))
        down, up = np.where(linear, down, np.minimum(down, 0)), np.where(linear, up, np.maximum(up, 0))
    down, up = np.where(below, -np.inf, np.maximum(down, edges[0])), np.where(above, np.inf, np.minimum(up, edges[1]))
    made = {}
    for i, name in enumerate(form.names):
        ends = (-np.inf, np.inf) if name in free else sorted((down[i] * back[i], up[i] * back[i]))
        made[name] = (float(ends[0]), float(ends[1]))
    return made


def _remarks(
    seen: Observations, found: Optimum, y: np.ndarray, n_boot: int, group: str | None, constant: bool
) -> list[str]:
    """What else a reader of the fit should know."""
    said = []
    kinds = int(seen.groups.max()) + 1
    if group is not None and kinds < FEW_GROUPS:
        said.append(f"only {kinds} values of '{group}' to draw from: intervals by group are rough; run more of them")
    if 0 < n_boot < FEW_FITS:
        said.append(f"{n_boot} bootstrap fits are few for an interval: use n_boot=200 or more")
    far = np.flatnonzero(np.abs(y - found.fitted) > BISQUARE * found.problem.scale) if not constant else np.array([])
    if found.problem.loss == "bisquare" and len(far) and found.sigma > 1e-6:
        names = [", ".join(f"{axis} = {show(seen.data[axis][i])}" for axis in seen.axes) for i in far[:3]]
        more = f" and {len(far) - 3} more" if len(far) > 3 else ""
        said.append(
            f"{len(far)} of {len(y)} runs lie far from the law and do not count in it: look at ({'), ('.join(names)}){more}"
            "; if they are sound, the law is wrong there"
        )
    if not found.problem.form.floor and len(found.problem.form.amplitudes) == 1 and y.min() < 0 < y.max():
        said.append(f"{seen.metric} has both signs, which this law without a floor cannot have: fit with a floor")
    return said
