"""Is the theory right? Its predictions beside simulations at d of 40 to 400, with the deviation of each.

Every case is simulated once and kept in FOLDER, so that the script can be stopped and started; --slice SECONDS ends it
cleanly after that time. A deviation is fine up to three standard errors plus the share 3.4 / d of the value (the leading
finite-size effect seen in the stage-1 noise).

    python benchmarks/simulation_verification.py --out FOLDER [--slice 900] [--write docs/benchmarks/theory_verification.md]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.core.provenance import collect
from lorascope.simulation import simulate_finetune, simulate_pipeline, simulate_pretrain
from lorascope.theory import predict
from lorascope.theory.comparison import ALLOWANCE, allowance
from lorascope.theory.points import SimulationPoint, load_points, save_points

COMPARED = {
    "pretrain": ("Q", "M", "delta_eff", "delta_reuse"),
    "finetune": ("m", "q", "alignment", "train_loss", "test_error"),
    "pipeline": ("Q", "M", "delta_eff", "m", "q", "alignment", "train_loss", "test_error", "test_error_overlaps"),
}


@dataclass(frozen=True)
class Case:
    """One simulation; ``start`` cases ask where descent from other starts ends, and do not test the theory."""

    name: str
    title: str
    stage: str
    arguments: dict[str, Any]
    group: str = "theory"


def _finetune(tokens: int, alpha: float, ridge: float, noise: float) -> Case:
    arguments = {"tokens": tokens, "alpha": alpha, "ridge": ridge, "noise": noise, "dim": 400}
    title = f"Stage 2, T={tokens}, alpha'={alpha:g}, lambda'={ridge:g}, Dn={noise:g}"
    return Case(f"finetune-{tokens}-{alpha:g}", title, "finetune", arguments)


_STAGE1 = {"alpha": 0.1, "tokens": 3, "kappa0": 1.0, "noise": 0.5, "ridge": 0.1}
_PIPE = {"alpha": 0.3, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "ridge": 0.03}
_SOFT = {"alpha": 0.5, "tokens": 2, "kappa0": 0.5, "ridge": 0.03, "ridge_finetune": 0.05, "activation": "softmax"}
_MISMATCH = {"alpha": 0.1, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "alpha_finetune": 1.5, "ridge_finetune": 0.5}
_KINDS = ["fresh", "reused", "recalibrated", "active"]

CASES = [
    _finetune(2, 1.2, 0.5, 0.7),
    _finetune(2, 2.0, 0.5, 0.7),
    _finetune(2, 4.0, 0.5, 0.7),
    _finetune(3, 1.0, 0.5, 0.7),
    _finetune(3, 2.0, 0.5, 0.7),
    *(
        Case(
            f"pretrain-{dim}",
            "Stage 1, T=3, alpha=.1, Delta=.5, kappa0=1, lambda=.1",
            "pretrain",
            {**_STAGE1, "dim": dim},
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
            f"softmax-active-{'largest' if largest else 'smallest'}{'' if dim == 100 else f'-{dim}'}",
            "Softmax, T=2, alpha=.5, Delta=0, kappa0=.5, lambda=.03, alpha'=2, lambda'=.05; active takes the "
            f"{'largest' if largest else 'smallest'} tenth",
            "pipeline",
            {
                **_SOFT,
                "noise": 0.0,
                "alpha_finetune": 2,
                "dim": dim,
                "data": ["active"] if largest else ["fresh", "active"],
                "largest": largest,
            },
        )
        for dim, largest in ((100, False), (100, True), (200, False))
    ),
    Case(
        "pipeline-200",
        "Both stages, T=2, alpha=.3, Delta=kappa0=.5, lambda=.03, alpha'=3, lambda'=.5",
        "pipeline",
        {**_PIPE, "alpha_finetune": 3, "ridge_finetune": 0.5, "dim": 200, "data": _KINDS},
    ),
    *(
        Case(
            f"mismatch-{ridge:g}",
            f"Reused data, T=2, alpha=.1, Delta=kappa0=.5, alpha'=1.5, lambda'=.5, lambda={ridge:g}",
            "pipeline",
            {**_MISMATCH, "ridge": ridge, "data": ["reused"], "dim": 200},
        )
        for ridge in (0.01, 0.1, 0.4)
    ),
    *(
        Case(
            "softmax" if dim == 160 else f"softmax-{dim}",
            "Softmax, T=2, alpha=.5, Delta=kappa0=.5, lambda=.03, alpha'=3, lambda'=.05",
            "pipeline",
            {**_SOFT, "noise": 0.5, "alpha_finetune": 3, "dim": dim, "data": ["fresh", "reused"]},
        )
        for dim in (160, 200)
    ),
    Case(
        "starts-2",
        "alpha'=3: best of the spectral and 4 random starts",
        "finetune",
        {"tokens": 2, "alpha": 3.0, "ridge": 0.5, "noise": 0.7, "dim": 200, "start": "best"},
        "starts",
    ),
    Case(
        "starts-low",
        "alpha'=1.2: one random start",
        "finetune",
        {"tokens": 2, "alpha": 1.2, "ridge": 0.5, "noise": 0.7, "dim": 200, "start": "random", "starts": 1},
        "starts",
    ),
    Case(
        "starts-low-best",
        "alpha'=1.2: best of the spectral and 8 random starts",
        "finetune",
        {"tokens": 2, "alpha": 1.2, "ridge": 0.5, "noise": 0.7, "dim": 200, "start": "best", "starts": 8},
        "starts",
    ),
]


def simulate(case: Case, seeds: int) -> list[SimulationPoint]:
    if case.stage == "pretrain":
        return [simulate_pretrain(**case.arguments, seeds=seeds)]
    if case.stage == "finetune":
        return [simulate_finetune(**case.arguments, seeds=seeds)]
    return simulate_pipeline(**case.arguments, seeds=seeds)


def rows(points: dict[str, list[SimulationPoint]]) -> list[dict[str, Any]]:
    found = []
    for case in CASES:
        for point in points.get(case.name, []):
            prediction = predict(point)
            theory = {name: value for name, value in prediction.values.items() if name in COMPARED[case.stage]}
            for quantity, value in theory.items():
                mean, error = point.mean(quantity), point.error(quantity) or 0.0
                gap = mean - value
                found.append(
                    {
                        "case": case.title,
                        "group": case.group,
                        "data": point.settings.get("data", ""),
                        "d": point.dim,
                        "quantity": quantity,
                        "theory": value,
                        "mean": mean,
                        "error": error,
                        "gap": gap,
                        "allowed": allowance(value, error, point.dim),
                        "inside": abs(gap) <= allowance(value, error, point.dim),
                        "inside_absolute": abs(gap) <= 3 * error + ALLOWANCE / point.dim,
                        "inside_3se": abs(gap) <= 3 * error,
                        "warnings": prediction.warnings,
                    }
                )
    return found


def table(chosen: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| case | data | d | quantity | theory | simulation (standard error) | deviation | allowed | inside |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in chosen:
        lines.append(
            f"| {row['case']} | {row['data']} | {row['d']} | {row['quantity']} | {row['theory']:.4f} | "
            f"{row['mean']:.4f} ({row['error']:.4f}) | {row['gap']:+.4f} | {row['allowed']:.4f} | "
            f"{'yes' if row['inside'] else '**no**'} |"
        )
    return [*lines, ""]


def document(points: dict[str, list[SimulationPoint]], seeds: int) -> str:
    whole = rows(points)
    tested = [row for row in whole if row["group"] == "theory"]
    plain, flagged = [row for row in tested if not row["warnings"]], [row for row in tested if row["warnings"]]
    large = [row for row in plain if row["d"] >= 200]

    def count(chosen: list[dict[str, Any]], key: str) -> str:
        return f"{sum(row[key] for row in chosen)} of {len(chosen)}"

    lines = [
        "# Theory and simulation side by side",
        "",
        f"{seeds} seeds each; stage 1 by FISTA on S >= 0, stage 2 by L-BFGS from the informed start. Every theory value is "
        "computed by `lorascope.theory.predict` (default number of quasi-random points) when this page is written.",
        "",
        f"- Without a warning of the theory, d >= 200: within 3 standard errors + {ALLOWANCE}/d "
        "of the value "
        f"**{count(large, 'inside')}**, + {ALLOWANCE}/d absolute {count(large, 'inside_absolute')}, 3 standard errors "
        f"alone {count(large, 'inside_3se')}.",
        f"- Without a warning, every d: {count(plain, 'inside')}, {count(plain, 'inside_absolute')}, "
        f"{count(plain, 'inside_3se')}.",
        f"- With a warning (see below): {count(flagged, 'inside')}, {count(flagged, 'inside_absolute')}, "
        f"{count(flagged, 'inside_3se')}.",
        "",
        "`test_error_overlaps` is the test error that Q, M, m and q of a simulation give; `test_error` is the exact one, "
        "which at finite d also has the cross terms between S - S0 and the update.",
        "",
        *table(plain),
        "## Cases that the theory flags",
        "",
        *(
            f"- {text}"
            for text in dict.fromkeys(f"{r['case']} ({r['data']}): {'; '.join(r['warnings'])}" for r in flagged)
        ),
        "",
        *table(flagged),
        "## Starts that do not know the answer",
        "",
        "T=2, lambda'=.5, Dn=.7. The theory describes the informed solution; these rows say where descent from other starts "
        "ends. Not a test of the theory.",
        "",
        *table([row for row in whole if row["group"] == "starts"]),
        "## Time",
        "",
        "| case | d | seeds | seconds |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        for point in points.get(case.name, [])[-1:]:
            lines.append(f"| {case.title} | {point.dim} | {point.seeds} | {point.seconds:.1f} |")
    lines += [
        "",
        "Times are of a shared machine with other jobs beside; a pipeline's include all its kinds of data.",
        "",
    ]
    missing = [f"{case.title} (d={case.arguments['dim']})" for case in CASES if case.name not in points]
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
