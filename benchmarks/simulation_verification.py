"""Is the theory right? Its predictions beside simulations at d of 100 to 400, with the deviation of each.

Every case is simulated once and kept in FOLDER, so that the script can be stopped and started; --slice SECONDS ends it
cleanly after that time. A deviation is fine up to three standard errors plus 3.4 / d (the leading finite-size effect seen in
the stage-1 noise).

    python benchmarks/simulation_verification.py --out FOLDER [--slice 900]
        [--write docs/benchmarks/simulation_verification.md]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.core.provenance import collect
from lorascope.simulation import simulate_finetune, simulate_pipeline, simulate_pretrain
from lorascope.theory.points import SimulationPoint, load_points, save_points

ALLOWANCE = 3.4


@dataclass(frozen=True)
class Case:
    """One simulation and what the theory says about it."""

    name: str
    title: str
    stage: str
    arguments: dict[str, Any]
    predicted: dict[str, dict[str, float]] = field(default_factory=dict)
    """Kind of data (or empty) -> quantity -> the value of the model's brief, used where the theory room gives none."""


def _finetune(tokens: int, alpha: float, ridge: float, noise: float, o: float, e: float) -> Case:
    arguments = {"tokens": tokens, "alpha": alpha, "ridge": ridge, "noise": noise, "dim": 400}
    title = f"Stage 2, T={tokens}, alpha'={alpha:g}, lambda'={ridge:g}, Dn={noise:g}"
    return Case(f"finetune-{tokens}-{alpha:g}", title, "finetune", arguments, {"": {"alignment": o, "test_error": e}})


_STAGE1 = {"alpha": 0.1, "tokens": 3, "kappa0": 1.0, "noise": 0.5, "ridge": 0.1}
_PIPE = {"alpha": 0.3, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "ridge": 0.03}
_SOFT = {"alpha": 0.5, "tokens": 2, "kappa0": 0.5, "ridge": 0.03, "ridge_finetune": 0.05, "activation": "softmax"}
_MISMATCH = {"alpha": 0.1, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "alpha_finetune": 1.5, "ridge_finetune": 0.5}

CASES = [
    _finetune(2, 1.2, 0.5, 0.7, 0.8847, 0.5916),
    _finetune(2, 2.0, 0.5, 0.7, 0.9503, 0.2783),
    _finetune(2, 4.0, 0.5, 0.7, 0.9808, 0.1122),
    _finetune(3, 1.0, 0.5, 0.7, 0.9417, 0.3083),
    _finetune(3, 2.0, 0.5, 0.7, 0.9795, 0.1109),
    *(
        Case(
            f"pretrain-{dim}",
            f"Stage 1, T=3, alpha=.1, Delta=.5, kappa0=1, lambda=.1, d={dim}",
            "pretrain",
            {**_STAGE1, "dim": dim},
            {"": {"Q": 1.268, "M": 1.411, "delta_eff": 0.6955, "delta_reuse": 0.1957}},
        )
        for dim in (40, 80, 120, 200)
    ),
    Case(
        "ridge-200",
        "Stage 1, ridge at the best penalty Delta/(T^2 Q0), T=2, alpha=.3, Delta=kappa0=.5",
        "pretrain",
        {**_PIPE, "ridge": 0.5 / (4 * 1.5), "penalty": "frobenius", "dim": 200},
    ),
    *(
        Case(
            f"mismatch-{ridge:g}",
            f"Reused data, T=2, alpha=.1, alpha'=1.5, lambda'=.5, lambda={ridge:g}",
            "pipeline",
            {**_MISMATCH, "ridge": ridge, "data": ["reused"], "dim": 200},
            {"reused": {"alignment": o, "test_error": e}},
        )
        for ridge, o, e in ((0.01, 0.9907, 1.242), (0.1, 0.9829, 0.927), (0.4, 0.9450, 1.487))
    ),
    Case(
        "pipeline-200",
        "Both stages, T=2, alpha=.3, Delta=kappa0=.5, lambda=.03, alpha'=3, lambda'=.5",
        "pipeline",
        {
            **_PIPE,
            "alpha_finetune": 3,
            "ridge_finetune": 0.5,
            "dim": 200,
            "data": ["fresh", "reused", "recalibrated", "active"],
        },
        {
            "fresh": {"alignment": 0.9839, "test_error": 0.3229},
            "reused": {"alignment": 0.9939, "test_error": 0.2705},
            "recalibrated": {"alignment": 0.9842, "test_error": 0.3074},
            "active": {"alignment": 0.9842, "test_error": 0.3211},
        },
    ),
    *(
        Case(
            f"softmax-active-{'largest' if largest else 'smallest'}",
            f"Softmax, T=2, alpha=.5, Delta=0, alpha'=2, lambda'=.05; active takes the "
            f"{'largest' if largest else 'smallest'} tenth",
            "pipeline",
            {
                **_SOFT,
                "noise": 0.0,
                "alpha_finetune": 2,
                "dim": 100,
                "data": ["active"] if largest else ["fresh", "active"],
                "largest": largest,
            },
            {"active": {"alignment": 0.9318, "test_error": 0.0595}}
            if largest
            else {
                "fresh": {"alignment": 0.9898, "test_error": 0.0175},
                "active": {"alignment": 0.9953, "test_error": 0.0122},
            },
        )
        for largest in (False, True)
    ),
    Case(
        "softmax",
        "Softmax, both stages, T=2, alpha=.5, Delta=kappa0=.5, lambda=.03, alpha'=3, lambda'=.05",
        "pipeline",
        {**_SOFT, "noise": 0.5, "alpha_finetune": 3, "dim": 160, "data": ["fresh"]},
        {"fresh": {"Q": 1.0446, "M": 1.176, "alignment": 0.9236, "test_error": 0.1067}},
    ),
    Case(
        "starts-2",
        "Starts that do not know the answer, T=2, alpha'=3, Dn=.7: best of the spectral and 4 random ones",
        "finetune",
        {"tokens": 2, "alpha": 3.0, "ridge": 0.5, "noise": 0.7, "dim": 200, "start": "best"},
    ),
    Case(
        "starts-low",
        "The same at alpha'=1.2, where descent from a random start is trapped",
        "finetune",
        {"tokens": 2, "alpha": 1.2, "ridge": 0.5, "noise": 0.7, "dim": 200, "start": "random", "starts": 1},
    ),
    Case(
        "starts-low-best",
        "The same with the best of the spectral and 8 random starts",
        "finetune",
        {"tokens": 2, "alpha": 1.2, "ridge": 0.5, "noise": 0.7, "dim": 200, "start": "best", "starts": 8},
    ),
]


def simulate(case: Case, seeds: int) -> list[SimulationPoint]:
    if case.stage == "pretrain":
        return [simulate_pretrain(**case.arguments, seeds=seeds)]
    if case.stage == "finetune":
        return [simulate_finetune(**case.arguments, seeds=seeds)]
    return simulate_pipeline(**case.arguments, seeds=seeds)


def predictions(point: SimulationPoint, case: Case) -> tuple[dict[str, float], str]:
    """What the theory says about a point: computed where the theory room covers it, else the brief's number."""
    found = computed(point)
    brief = case.predicted.get(str(point.settings.get("data", "")), {})
    return (found, "computed") if found else (brief, "brief")


def computed(point: SimulationPoint) -> dict[str, float]:
    """Predictions of `lorascope.theory`."""
    try:
        from lorascope.theory import finetune, pretrain
    except ImportError:
        return {}
    settings = dict(point.settings)
    if point.stage == "pretrain" and settings.pop("activation") == "linear":
        found = pretrain(**settings)
        return {name: getattr(found, name) for name in ("Q", "M", "delta_eff", "delta_reuse", "error")}
    if point.stage == "finetune" and settings["rank"] == 1:
        names = ("alpha", "tokens", "ridge", "noise", "base_error")
        second = finetune(**{name: settings[name] for name in names})
        return {name: getattr(second, name) for name in ("m", "q", "alignment", "train_loss", "test_error")}
    if point.stage == "pipeline" and settings["activation"] == "linear" and settings["data"] != "active":
        names = ("alpha", "tokens", "kappa0", "noise", "ridge", "penalty")
        first = pretrain(**{name: settings[name] for name in names})
        q0 = 1 + settings["kappa0"]
        base, dn = q0 - 2 * first.M + first.Q, first.delta_eff
        if settings["data"] == "reused":
            dn = first.delta_reuse
        if settings["data"] == "recalibrated":
            base = q0 - first.M**2 / first.Q
            dn = settings["noise"] / 2 + base
        second = finetune(
            alpha=settings["alpha_finetune"],
            tokens=settings["tokens"],
            ridge=settings["ridge_finetune"],
            noise=dn,
            base_error=base,
        )
        head = {name: getattr(first, name) for name in ("Q", "M", "delta_eff", "delta_reuse")}
        return head | {name: getattr(second, name) for name in ("m", "q", "alignment", "train_loss", "test_error")}
    return {}


def rows(points: dict[str, list[SimulationPoint]]) -> list[dict[str, Any]]:
    found = []
    for case in CASES:
        for point in points.get(case.name, []):
            predicted, source = predictions(point, case)
            for quantity, theory in predicted.items():
                if quantity not in point.samples:
                    continue
                mean, error = point.mean(quantity), point.error(quantity) or 0.0
                allowed = 3 * error + ALLOWANCE / point.dim
                found.append(
                    {
                        "case": case.title,
                        "data": point.settings.get("data", ""),
                        "d": point.dim,
                        "seeds": point.seeds,
                        "quantity": quantity,
                        "theory": theory,
                        "source": source,
                        "mean": mean,
                        "error": error,
                        "deviation": mean - theory,
                        "allowed": allowed,
                        "inside": abs(mean - theory) <= allowed,
                        "inside_3se": abs(mean - theory) <= 3 * error,
                    }
                )
    return found


def document(points: dict[str, list[SimulationPoint]], seeds: int) -> str:
    table = rows(points)
    inside, strict = sum(row["inside"] for row in table), sum(row["inside_3se"] for row in table)
    lines = [
        "# Theory and simulation side by side",
        "",
        f"{len(table)} comparisons, {seeds} seeds each; stage 1 by FISTA on S >= 0, stage 2 by L-BFGS from the informed "
        f"start unless said otherwise. "
        f"Within 3 standard errors + {ALLOWANCE}/d: **{inside} of {len(table)}**; within 3 standard "
        f"errors alone: {strict}. Theory `computed` comes from lorascope.theory at the time of writing; `brief` is a number "
        "that the model's brief states to four digits.",
        "",
        "| case | data | d | quantity | theory | from | simulation (standard error) | deviation | allowed | inside |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        lines.append(
            f"| {row['case']} | {row['data']} | {row['d']} | {row['quantity']} | {row['theory']:.4f} | {row['source']} | "
            f"{row['mean']:.4f} ({row['error']:.4f}) | {row['deviation']:+.4f} | {row['allowed']:.4f} | "
            f"{'yes' if row['inside'] else '**no**'} |"
        )
    lines += ["", "## Time", "", "| case | d | seeds | seconds |", "|---|---|---|---|"]
    for case in CASES:
        for point in points.get(case.name, [])[-1:]:
            lines.append(f"| {case.title} | {point.dim} | {point.seeds} | {point.seconds:.1f} |")
    lines += [
        "",
        "Times are of a shared machine, with other jobs beside; a pipeline's include all its kinds of data.",
        "",
    ]
    missing = [case.title for case in CASES if case.name not in points]
    if missing:
        lines += ["## Not simulated", "", *(f"- {title}" for title in missing), ""]
    notes = [f"- {case.title}: {note}" for case in CASES for point in points.get(case.name, []) for note in point.notes]
    lines += ["## Notes of the solvers", "", *(dict.fromkeys(notes) or ["None: every solver converged."]), ""]
    lines += ["```json", json.dumps(collect(seed=0), indent=1), "```", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--slice", type=float, default=float("inf"), help="Start no case after this many seconds.")
    parser.add_argument("--only", default="", help="Cases whose name starts so.")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    points: dict[str, list[SimulationPoint]] = {}
    for case in CASES:
        path = options.out / f"{case.name}-{options.seeds}.json"
        if not path.is_file():
            if time.perf_counter() - begun > options.slice or not case.name.startswith(options.only):
                continue
            print(f"{case.name} ...", flush=True)
            save_points(simulate(case, options.seeds), path)
        points[case.name] = load_points(path)
    text = document(points, options.seeds)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")
        save_points([point for found in points.values() for point in found], options.write.with_suffix(".json"))
    else:
        print(text)


if __name__ == "__main__":
    main()
