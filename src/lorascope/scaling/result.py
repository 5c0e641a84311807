"""The fitted law: parameters with intervals, predictions with bands, and what the data could not tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import stats

from lorascope.core.errors import DataError, InputError
from lorascope.core.files import read_json, write_json
from lorascope.scaling.laws import LAWS, Form, Numbers, places, values

SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A scaling law fitted to runs.

    Attributes:
        law: ``"additive"`` or ``"multiplicative"``.
        metric: Name of the metric; amplitudes, floor, residuals and predictions are in its unit.
        floor: Whether the law has a floor E.
        params: Fitted parameters: A, B, C (amplitudes), alpha [N], beta [R], gamma [D] (exponents), E (floor). An axis
            that does not vary has none.
        intervals: (low, high) of each parameter at ``level``; not symmetric; infinite where the data say nothing.
        reference: N0, R0, D0, the geometric means of the data; of an axis that is in the data.
        axes: The axes that vary, and so have a term.
        ranges: Smallest and largest value of each axis in the data.
        identified: For each parameter of the law over N, R, D, whether the data tell its value; False for those of an
            axis without a term.
        warnings: Plain statements: what cannot be told, what was left out, and what to run.
        n_runs: Runs that were fitted.
        level: Confidence level of the intervals.
        noise: ``"relative"`` if the scatter is taken as proportional to the metric, else ``"absolute"``.
        sigma: Robust standard deviation of one run about the law: a fraction if relative, else in the metric's unit.
        aicc: Corrected Akaike criterion; smaller is better; comparable between fits of the same runs and metric.
        rmse: Root mean square of the residuals, in the metric's unit.
        r2: Share of the metric's variance that the law accounts for; NaN for a metric that does not vary.
        fitted: The law at each run.
        residuals: Metric minus law at each run.
        data: The runs that were fitted: each axis and the metric, one value a run.
        boot: Bootstrap parameters, (n_boot, parameters) in the order of ``params``.
        rival: Where the runs do not settle whether there is a floor: those of the other choice, (n_boot, parameters) with E
            as the last (0 without a floor); else empty.
        seed: Seed of the bootstrap.
        settings: Further choices: loss, group, bounds.
    """

    law: str
    metric: str
    floor: bool
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    reference: dict[str, float]
    axes: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]
    identified: dict[str, bool]
    warnings: tuple[str, ...]
    n_runs: int
    level: float
    noise: str
    sigma: float
    aicc: float
    rmse: float
    r2: float
    fitted: np.ndarray
    residuals: np.ndarray
    data: dict[str, np.ndarray]
    boot: np.ndarray
    rival: np.ndarray
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    kind: ClassVar[str] = "scaling_fit"

    @property
    def form(self) -> Form:
        """The law's parameters and their order."""
        return Form(self.law, self.axes, self.floor)

    def predict(
        self, N: Numbers | None = None, R: Numbers | None = None, D: Numbers | None = None
    ) -> float | np.ndarray:
        """The law's value.

        Args:
            N: Parameters of the base model; may be left out if N did not vary in the data (and then has no effect).
            R: Rank, likewise.
            D: Training rows, likewise.

        Returns:
            A number, or an array in the broadcast shape of what was given; in the metric's unit.

        Raises:
            InputError: An axis of the law is missing, not positive, or shapes do not go together.
        """
        x = self._places(N, R, D)
        theta = np.array([[self.params[name] for name in self.form.names]])
        found = values(self.form, theta, x.reshape(-1, len(self.axes)))[0].reshape(x.shape[:-1])
        return float(found) if found.ndim == 0 else found

    def sample(self, N: Numbers | None = None, R: Numbers | None = None, D: Numbers | None = None) -> np.ndarray:
        """The law's value under each bootstrap fit: how uncertain the curve is (without a run's noise).

        Returns:
            (fits, ...) with ``n_boot`` fits, or twice as many where the runs do not settle whether there is a floor: first
            those of the law as reported, then those of the other choice.

        Raises:
            InputError: As `predict`, or the fit was made with ``n_boot=0``.
        """
        if not len(self.boot):
            raise InputError("this fit has no bootstrap: fit again with n_boot=200")
        x = self._places(N, R, D)
        flat = x.reshape(-1, len(self.axes))
        found = values(self.form, self.boot, flat)
        if len(self.rival):
            found = np.concatenate([found, values(Form(self.law, self.axes, True), self.rival, flat)])
        return found.reshape(len(found), *x.shape[:-1])

    def predict_interval(
        self,
        N: Numbers | None = None,
        R: Numbers | None = None,
        D: Numbers | None = None,
        *,
        level: float | int | None = None,
        new_run: bool = False,
    ) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Interval of the law's value, or of what one more run would show.

        Formula: percentiles of the bootstrap at Phi(-+ t sqrt(n / (n - 1))) with t of n - 1 degrees of freedom: a bootstrap
        of n runs is that much too narrow (Hesterberg 2015), which shows where the law is extrapolated. Where the runs do
        not settle whether there is a floor, the interval covers that of the law with and that without one.

        Args:
            N: As in `predict`.
            R: As in `predict`.
            D: As in `predict`.
            level: Confidence level; that of the fit if not given.
            new_run: Add the scatter of a single run to the uncertainty of the curve.

        Returns:
            (low, high), each shaped as `predict`; in the metric's unit.

        Raises:
            InputError: As `sample`, or the level is not between 0 and 1.

        References:
            Hesterberg (2015), The American Statistician 69 (expanded percentile intervals).
        """
        level = check_level(self.level if level is None else level)
        drawn = self.sample(N, R, D)
        if self.n_runs <= self.form.size:  # the law passes through every run: there is no error to judge by
            drawn = np.full_like(drawn, np.inf)
            drawn[::2] = -np.inf
            low, high = drawn.min(axis=0), drawn.max(axis=0)
            return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)
        if new_run:
            noise = np.random.default_rng(self.seed).standard_normal((len(drawn), 1))
            flat = drawn.reshape(len(drawn), -1)
            scale = np.abs(flat) if self.noise == "relative" else np.ones_like(flat)
            drawn = (flat + self.sigma * scale * noise).reshape(drawn.shape)
        tail = expanded_tail(level, self.n_runs)
        parts = [drawn[: len(self.boot)], drawn[len(self.boot) :]] if len(self.rival) else [drawn]
        ends = np.array([np.quantile(part, [tail, 1 - tail], axis=0, method="weibull") for part in parts])
        low, high = ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)
        return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)

    def _places(self, N: Numbers | None, R: Numbers | None, D: Numbers | None) -> np.ndarray:
        return places(self.axes, self.reference, {"N": N, "R": R, "D": D})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; infinite bounds become None."""
        found: dict[str, Any] = {"kind": self.kind, "schema_version": self.schema_version}
        for item in fields(self):
            found[item.name] = _plain(getattr(self, item.name))
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the mapping") -> ScalingFit:
        """Read what `to_dict` made.

        Raises:
            DataError: The mapping is no fit of a scaling law, of another version, or not whole.
        """
        if not isinstance(values, Mapping) or values.get("kind") != cls.kind:
            raise DataError(f"'{source}' is no fitted scaling law: give a file that lorascope fit wrote")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values.get('schema_version')!r}, this lorascope reads "
                f"{SCHEMA_VERSION}: use the version of lorascope that wrote it"
            )
        try:
            given = {item.name: values[item.name] for item in fields(cls) if item.name != "rival"}
            form = Form(given["law"], tuple(given["axes"]), given["floor"])
            if given["law"] not in LAWS or set(given["params"]) != set(form.names):
                raise ValueError("law and parameters do not go together")
            given["intervals"] = {k: (_bound(v[0], -1), _bound(v[1], 1)) for k, v in given["intervals"].items()}
            given["ranges"] = {k: (float(v[0]), float(v[1])) for k, v in given["ranges"].items()}
            given["axes"], given["warnings"] = tuple(given["axes"]), tuple(given["warnings"])
            given["data"] = {k: np.asarray(v, dtype=float) for k, v in given["data"].items()}
            for name in ("fitted", "residuals"):
                given[name] = np.asarray(given[name], dtype=float)
            given["boot"] = np.asarray(given["boot"], dtype=float).reshape(-1, form.size)
            # Files of before there was a rival have none.
            size = Form(form.law, form.axes, True).size
            given["rival"] = np.asarray(values.get("rival", []), dtype=float).reshape(-1, size)
            for name in ("aicc", "rmse", "r2", "sigma"):
                given[name] = math.nan if given[name] is None else float(given[name])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"'{source}' is not a whole fitted scaling law ({error}): fit again") from error
        return cls(**given)

    def save(self, path: str | Path) -> Path:
        """Write the fit as JSON, whole or not at all.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        write_json(Path(path), self.to_dict())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> ScalingFit:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing, interrupted, foreign, or of another version.
        """
        return cls.from_dict(read_json(Path(path)), source=str(path))


def check_level(level: float | int) -> float:
    """The confidence level, or an `InputError` if it is not between 0 and 1."""
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise InputError(f"level is {level!r}: give a number between 0 and 1, such as 0.95")
    return float(level)


def expanded_tail(level: float, count: int) -> float:
    """Which part of a bootstrap distribution of so many runs to cut off on each side.

    Example:
        >>> round(expanded_tail(0.95, 27), 4), round(expanded_tail(0.95, 10**6), 4)
        (0.0181, 0.025)
    """
    quantile = stats.t.ppf((1 - level) / 2, count - 1) * math.sqrt(count / (count - 1))
    return float(stats.norm.cdf(quantile))


def _bound(value: float | None, sign: int) -> float:
    return sign * math.inf if value is None else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
