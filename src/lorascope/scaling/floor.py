"""Whether a law has a floor, where nobody says: fit it without and with one, and let the runs decide as far as they can.

A fit that is told wrongly has wrong exponents and narrow intervals: a floor that is fitted where there is none sits at its
bound half of the time, and one that is left out bends all exponents. So both are fitted. Where the runs do not speak
clearly for a floor, the choice is part of the uncertainty, and an interval covers both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lorascope.core.seeds import derive_seed
from lorascope.scaling.bootstrap import percentile_intervals, resample
from lorascope.scaling.criteria import aicc
from lorascope.scaling.identify import lost_parameters
from lorascope.scaling.laws import Form, default_floor
from lorascope.scaling.optimum import Optimum, fit_form
from lorascope.scaling.table import Observations

CLEAR = 6.0  # by how much a floor must lower AICc to count as there


@dataclass(frozen=True, eq=False)
class Part:
    """One form of a law, fitted.

    Attributes:
        found: The best fit, in units of ``unit``.
        unit: Size of the metric.
        boot: Bootstrap parameters, (n_boot, p).
        low: Lower ends of the intervals, (p,).
        high: Upper ends, (p,).
        aicc: Criterion of the fit.
    """

    found: Optimum
    unit: float
    boot: np.ndarray
    low: np.ndarray
    high: np.ndarray
    aicc: float


def fit_part(
    seen: Observations, form: Form, *, n_boot: int, seed: int, level: float, loss: str, relative: bool, signs: str
) -> Part:
    """Fit one form and draw its bootstrap.

    Args:
        seen: The runs.
        form: The form.
        n_boot: Bootstrap fits; with 0 both ends of an interval are the fit.
        seed: Seed of the bootstrap.
        level: Level of the intervals.
        loss: As in `fit_form`.
        relative: As in `fit_form`.
        signs: As in `fit_form`.
    """
    found, unit = fit_form(form, seen, loss=loss, relative=relative, signs=signs)
    y = seen.y / unit
    if found.sigma == 0:
        boot = np.broadcast_to(found.theta, (n_boot, form.size)).copy()
    else:
        rng = np.random.default_rng(derive_seed(seed, "scaling", form.law, seen.metric))
        boot = resample(found, y, seen.groups, n_boot, rng)
    low, high = percentile_intervals(boot, level) if n_boot else (found.theta, found.theta)
    return Part(found, unit, boot, low, high, aicc(y - found.fitted, found.spread, form.size))


def choose_floor(bare: Part, raised: Part, runs: int) -> tuple[Part, Part | None]:
    """The form to report, and the other one if the runs do not rule it out.

    The lower AICc decides which. A floor is there if it lowers AICc by more than 6; that there is none can never be told,
    only that it is small. Where the runs cannot tell a floor at all (too few of them or of their values, a metric that
    moves the other way below a ceiling), the law is taken as published.

    Args:
        bare: The law without a floor.
        raised: The same with one.
        runs: How many runs there are.
    """
    published = default_floor(bare.found.problem.form.law)
    first = len(bare.found.problem.form.amplitudes)
    opposed = bool((bare.found.theta[:first] * raised.found.theta[:first] < 0).any())
    if (
        raised.found.sigma == 0
        or runs <= raised.found.problem.form.size + 2
        or opposed
        or lost_parameters(raised.found)
    ):
        return (raised if published else bare), None
    if bare.aicc - raised.aicc > CLEAR:
        return raised, None
    if raised.aicc < bare.aicc:
        return raised, with_floor(bare)
    return (with_floor(bare) if published else bare), raised


def with_floor(part: Part) -> Part:
    """The same fit as one with a floor at 0."""
    problem = part.found.problem
    if problem.form.floor:
        return part
    form = Form(problem.form.law, problem.form.axes, True)
    low, high = (np.append(ends, bound) for ends, bound in ((problem.low, 0.0), (problem.high, problem.high[0])))
    found = replace(
        part.found, problem=replace(problem, form=form, low=low, high=high), theta=np.append(part.found.theta, 0.0)
    )
    boot = np.column_stack([part.boot, np.zeros(len(part.boot))])
    return replace(part, found=found, boot=boot, low=np.append(part.low, 0.0), high=np.append(part.high, 0.0))


def unsettled(best: Part, rival: Part) -> str:
    """What to know where both forms stay, in a sentence."""
    there = best.found.theta[-1] != 0 if best.found.problem.form.floor else False
    return (
        f"the runs do not settle whether there is a floor (AICc lower by {rival.aicc - best.aicc:.1f} "
        f"{'with' if there else 'without'} one): the intervals cover both; floor=True or False (--floor, --no-floor) "
        "settles it"
    )
