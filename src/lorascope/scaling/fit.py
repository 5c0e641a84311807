"""`fit_scaling_law`: a table of runs in, a law with intervals and plain statements out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.seeds import derive_seed
from lorascope.scaling.bootstrap import residuals_of, wild
from lorascope.scaling.laws import Form, check_law, default_floor
from lorascope.scaling.optimum import best_fit
from lorascope.scaling.result import ScalingFit, check_level
from lorascope.scaling.solve import LOSSES
from lorascope.scaling.table import as_table, observe

NOISES = ("auto", "relative", "absolute")
SIGNS = ("auto", "positive", "free")


def fit_scaling_law(
    table: pd.DataFrame | Mapping[str, Any] | str | Path,
    law: str = "additive",
    metric: str = "ce",
    *,
    floor: bool | None = None,
    n_boot: int = 200,
    seed: int = 0,
    level: float = 0.95,
    group: str | None = None,
    loss: str = "bisquare",
    noise: str = "auto",
    signs: str = "auto",
) -> ScalingFit:
    """Fit a scaling law to runs."""
    check_law(law)
    level = check_level(level)
    floor = default_floor(law) if floor is None else bool(floor)
    for kind, value, known in (("loss", loss, LOSSES), ("noise", noise, NOISES), ("signs", signs, SIGNS)):
        if value not in known:
            raise unknown_name(kind, str(value), known)
    if isinstance(n_boot, bool) or not isinstance(n_boot, int) or n_boot < 0:
        raise InputError(f"n_boot is {n_boot!r}: give a whole number, 0 for no intervals")
    seen = observe(as_table(table), metric, group)
    form = Form(law, seen.axes, floor)
    relative = noise == "relative" or (noise == "auto" and bool((seen.y > 0).all() or (seen.y < 0).all()))
    unit = float(np.median(seen.y)) or float(np.abs(seen.y).max()) or 1.0
    y = seen.y / unit
    found = best_fit(form, seen.x, y, loss=loss, relative=relative, signs=signs)
    rng = np.random.default_rng(derive_seed(seed, "scaling", law, metric))
    boot = wild(found, y, seen.groups, n_boot, rng)
    back = np.ones(form.size)
    back[list(form.linear)] = unit
    params = found.theta * back
    boot = boot * back
    residuals = residuals_of(found, y) * unit
    total = float(((seen.y - seen.y.mean()) ** 2).sum())
    low, high = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2], axis=0) if n_boot else (params, params)
    return ScalingFit(
        law=law,
        metric=metric,
        floor=floor,
        params=dict(zip(form.names, params.tolist(), strict=True)),
        intervals={name: (float(low[i]), float(high[i])) for i, name in enumerate(form.names)},
        reference=seen.reference,
        axes=seen.axes,
        ranges={axis: (float(column.min()), float(column.max())) for axis, column in seen.data.items()},
        identified=dict.fromkeys(form.names, True),
        warnings=seen.notes,
        n_runs=len(y),
        level=level,
        noise="relative" if relative else "absolute",
        sigma=found.sigma * (1.0 if relative else abs(unit)),
        aicc=0.0,
        rmse=float(np.sqrt((residuals**2).mean())),
        r2=1 - float((residuals**2).sum()) / total if total else float("nan"),
        fitted=seen.y - residuals,
        residuals=residuals,
        data={**seen.data, metric: seen.y},
        boot=boot,
        seed=seed,
        settings={"loss": loss, "group": group, "signs": signs},
    )
