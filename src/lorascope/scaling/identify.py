"""What the runs can and cannot tell about a law's parameters, in words, with what to run next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lorascope.scaling.laws import AMPLITUDES, AXES, AXIS_WORDS, EXPONENTS, Form, derivatives, values
from lorascope.scaling.optimum import Optimum
from lorascope.scaling.table import Observations

WIDE = 1.0  # an exponent is not told if its interval has 0 inside and is wider than this
WIDEST = 2.0  # or is wider than this wherever it lies
WIDELY = 0.5  # an amplitude or floor is not told if its interval is wider than this part of the metric's largest size
_RANK = 1e-7  # singular values below this fraction of the largest count as none
_EDGE = 1e-6
_FLAT = "no exponent can be told from it; run values further apart, or more seeds"


@dataclass(frozen=True)
class Verdict:
    """What can be told.

    Attributes:
        identified: Name of each parameter of the law over N, R, D -> whether the runs tell its value.
        free: Parameters about which the runs say nothing at all: their intervals are infinite.
        statements: Plain sentences.
    """

    identified: dict[str, bool]
    free: frozenset[str]
    statements: tuple[str, ...]


def judge(
    seen: Observations,
    optimum: Optimum,
    boot: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    largest: float,
    flat: bool,
    constant: bool = False,
) -> Verdict:
    """Decide what the runs tell.

    Args:
        seen: The runs.
        optimum: The best fit, for a metric whose typical size is 1.
        boot: Bootstrap parameters in the same units.
        low: Lower ends of the intervals in the same units.
        high: Upper ends.
        largest: Largest size of the metric in the same units.
        flat: Whether a constant accounts for the runs about as well as the law.
        constant: Whether the metric is exactly the same in all runs.
    """
    form = optimum.problem.form
    names = form.names
    index = {name: i for i, name in enumerate(names)}
    said: list[str] = []
    unknown: set[str] = set()
    free: set[str] = set()

    for axis in AXES:
        if axis not in form.axes:
            said.append(_absent(axis, seen))
    if constant:
        said.append(f"{seen.metric} is the same in all runs: {_FLAT}")
        return Verdict(dict.fromkeys(Form(form.law, AXES, form.floor).names, False), frozenset(names), tuple(said))

    lost = lost_parameters(optimum)
    if lost:
        free |= lost
        said.extend(_why_lost(form, seen, lost))
    spare = len(seen.y) - form.size
    if spare <= 0:
        free |= set(names)
        said.append(
            f"{len(seen.y)} runs for {form.size} parameters: the law passes through all of them, and nothing is left to "
            f"tell an error from; run at least {3 - spare} more"
        )
    elif spare < 3:
        said.append(f"only {len(seen.y)} runs for {form.size} parameters: the intervals are rough; run more")

    for i, axis in enumerate(form.axes):
        name = EXPONENTS[axis]
        if name in free:
            continue
        place = index[name]
        down, up = low[place], high[place]
        edge = max(abs(down), abs(up), abs(optimum.theta[place])) >= optimum.problem.high[place] - _EDGE
        empty = optimum.theta[index[AMPLITUDES[axis] if form.law == "additive" else "A"]] == 0
        if empty:
            free.add(name)
        vague = up - down > WIDEST or (down < 0 < up and up - down > WIDE)
        if vague or edge:
            unknown.add(name)
        if flat:
            continue
        if empty or (len(boot) and _no_effect(optimum, boot, i)):
            tail = f", so that {name} cannot be told; {_further(axis, seen)}" if empty or vague or edge else ""
            said.append(f"no effect of {AXIS_WORDS[axis]} beyond the noise over {_span(axis, seen)}{tail}")
        elif edge:
            said.append(
                f"{name} runs to the end of its range: the metric changes with {AXIS_WORDS[axis]} too suddenly for a power "
                f"law; {_between(axis, seen)}"
            )
        elif vague:
            said.append(
                f"{name} is somewhere in [{down:.2f}, {up:.2f}]: the runs do not tell how steeply the metric changes with "
                f"{AXIS_WORDS[axis]}; {_further(axis, seen)}"
            )

    unknown |= {names[place] for place in form.linear if high[place] - low[place] > WIDELY * largest} - free
    if form.floor and optimum.theta[-1] >= optimum.problem.high[-1] - _EDGE:  # as high as it can be
        unknown.add("E")
    if flat:
        said.append(f"{seen.metric} is flat, one number accounts for all runs about as well as the law does: {_FLAT}")
        unknown |= set(form.exponents)
        if form.floor or len(form.amplitudes) > 1:
            unknown |= {names[place] for place in form.linear}
    elif "E" in unknown and spare > 0:
        said.append(
            "the floor E trades off against the exponents: only runs nearer to it tell it apart "
            f"({', or '.join(_further(axis, seen) for axis in form.axes)}), or fit without a floor"
        )
    identified = dict.fromkeys(Form(form.law, AXES, form.floor).names, False)
    identified |= {name: name not in unknown and name not in free for name in names}
    return Verdict(identified, frozenset(free), tuple(said))


def lost_parameters(optimum: Optimum) -> set[str]:
    """Parameters that can change together without changing any fitted value."""
    form, x = optimum.problem.form, np.unique(optimum.problem.x, axis=0)
    theta, first = optimum.theta.copy(), len(form.amplitudes)
    for i in range(len(form.axes)):  # a term that is zero could be told if it were there
        if theta[min(i, first - 1)] == 0:
            theta[first + i] = 0.3 + 0.05 * i
    theta[:first][theta[:first] == 0] = 0.1
    _, slopes = derivatives(form, theta[None], x)
    columns = slopes[0].T
    length = np.linalg.norm(columns, axis=0)
    used = length > 1e-12 * length.max()
    _, singular, right = np.linalg.svd(columns[:, used] / length[used])
    full = np.zeros(right.shape[0])
    full[: len(singular)] = singular
    loose = np.abs(right[full <= _RANK * full.max()]).max(axis=0, initial=0.0) > 1e-3
    names = np.array(form.names)[used]
    return set(names[loose].tolist())


def _why_lost(form: Form, seen: Observations, lost: set[str]) -> Iterable[str]:
    told = False
    counts = {axis: len(np.unique(np.round(seen.x[:, i], 9))) for i, axis in enumerate(form.axes)}
    for axis in form.axes:
        mine = {EXPONENTS[axis]} | ({AMPLITUDES[axis]} if form.law == "additive" else set())
        needed = 3 if form.law == "additive" or form.floor else 2
        if mine & lost and counts[axis] < needed:
            told = True
            yield (
                f"{AXIS_WORDS[axis]} has only {counts[axis]} values, too few for {' and '.join(sorted(mine & lost))}: "
                f"{_further(axis, seen)}"
            )
    for i, first in enumerate(form.axes):
        for j, second in enumerate(form.axes[i + 1 :], start=i + 1):
            if abs(float(np.corrcoef(seen.x[:, i], seen.x[:, j])[0, 1])) > 1 - 1e-9:
                told = True
                yield (
                    f"{first} and {second} change together in all runs, so that their effects cannot be told apart: "
                    f"run cells in which {second} changes alone"
                )
    if not told:
        yield (
            f"{seen.settings} different settings of {', '.join(form.axes)} do not tell {', '.join(sorted(lost))} apart: "
            f"run more combinations"
        )


def _no_effect(optimum: Optimum, boot: np.ndarray, axis: int) -> bool:
    """Whether the change along an axis, at the middle of the others, may be zero."""
    problem = optimum.problem
    ends = np.zeros((2, problem.x.shape[1]))
    ends[:, axis] = problem.x[:, axis].min(), problem.x[:, axis].max()
    found = values(problem.form, boot, ends)
    down, up = np.quantile(found[:, 1] - found[:, 0], [0.025, 0.975])
    return bool(down <= 0 <= up)


def _absent(axis: str, seen: Observations) -> str:
    if axis not in seen.data:
        return f"the table has no column {axis}: the law has no term for {AXIS_WORDS[axis]}"
    value = show(seen.data[axis][0])
    return f"{AXIS_WORDS[axis]} is {value} in all runs: the law has no term for it; {_further(axis, seen)}"


def _further(axis: str, seen: Observations) -> str:
    present = seen.data[axis]
    return _run(axis, (present.min() / 4, present.max() * 4), present)


def _between(axis: str, seen: Observations) -> str:
    present = np.unique(seen.data[axis])
    gap = int(np.argmax(np.diff(np.log(present))))
    return _run(axis, (float(np.sqrt(present[gap] * present[gap + 1])), present.max() * 4), present)


def _near(axis: str, value: float) -> float:
    """A value that can be run: ranks and rows are whole numbers."""
    return float(max(1.0, round(value))) if axis in ("R", "D") else float(f"{value:.2g}")


def _run(axis: str, wanted: Iterable[float], present: np.ndarray) -> str:
    new = [value for value in (_near(axis, value) for value in wanted) if not np.isclose(present, value).any()]
    return "run " + " and ".join(f"{axis} = {show(value)}" for value in new)


def _span(axis: str, seen: Observations) -> str:
    present = seen.data[axis]
    return f"{axis} = {show(present.min())} to {show(present.max())}"


def show(value: float) -> str:
    """A value of an axis as a person writes it.

    Example:
        >>> show(64.0), show(134515008.0)
        ('64', '1.35e8')
    """
    if value == round(value) and abs(value) < 1e6:
        return f"{round(value):,}"
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
