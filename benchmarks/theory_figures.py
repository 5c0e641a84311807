"""The simulations on the figures of ``lorascope theory figures``, made once and shipped with the package.

Every simulation is kept in FOLDER, so that the script can be stopped and started; --slice SECONDS ends it cleanly after that
time. With --write the points go into one file and a table beside the theory. With --table nothing is simulated: the table is
made anew from the points that come with the package, after a change of the theory or of its flags.

    python benchmarks/theory_figures.py --out FOLDER [--slice 900] [--write] [--only PRESET ...]
    python benchmarks/theory_figures.py --table
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lorascope.core.files import atomic_write_text, read_json, write_json
from lorascope.core.provenance import collect
from lorascope.simulation import Adam, keep_pretrained, simulate_finetune, simulate_pipeline, simulate_pretrain
from lorascope.theory.comparison import compare
from lorascope.theory.points import SimulationPoint, load_points, save_points
from lorascope.theory.presets import POINTS_FILE, PRESETS, SCHEMA_VERSION, Line, Preset, at

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "src" / "lorascope" / "theory" / POINTS_FILE
TABLE = ROOT / "docs" / "benchmarks" / "theory_figures.md"
KEPT = ("Q", "M", "delta_eff", "delta_reuse", "alignment", "m", "q", "test_error", "train_loss")


def simulate(line: Line, value: float) -> SimulationPoint:
    given = {**at(line, value, int(line.options.get("dim", 100))), **line.options}
    if "adam" in given:
        given["optimiser"] = Adam(**given.pop("adam"))
    if line.stage == "pretrain":
        return simulate_pretrain(**given)
    return simulate_finetune(**given) if line.stage == "finetune" else simulate_pipeline(**given)[0]


def order(item: Preset) -> list[tuple[int, Line, float]]:
    """Simulations with the same pre-training one after the other."""
    found = [(index, line, value) for index, line in enumerate(item.lines) for value in line.simulated]
    return sorted(found, key=lambda case: case[2]) if item.lines[0].over == "ridge" else found


def small(point: SimulationPoint) -> dict[str, Any]:
    """A point with the quantities that figures show, to six digits; provenance stands once in the file."""
    values = point.to_dict()
    values["samples"] = {k: [float(f"{x:.6g}") for x in v] for k, v in point.samples.items() if k in KEPT}
    values["provenance"] = {"seeds": point.provenance.get("seeds")}
    values["seconds"] = round(point.seconds, 2)
    return values


def table(entries: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = [
        "# Simulations on the theory's figures",
        "",
        "Made by `benchmarks/theory_figures.py`; the same numbers come with the package and are drawn by "
        "`lorascope theory figures`. Simulated / predicted (standard error). Outside: the difference is over three standard "
        "errors plus the share 3.4/d of the theory's value. The settings of the article are named by it; its body was not "
        "available to us, so that the choice of axes, and every simulation, is ours.",
        "",
    ]
    for item in PRESETS:
        mine = [entry for entry in entries if entry["preset"] == item.name]
        if not mine:
            continue
        lines += [f"## {item.title}", "", item.words, ""]
        ys = [y for y in (*item.ys, *(("alignment",) if item.x == "alignment" else ())) if y != "jump"]
        lines += [
            f"| line | {mine[0]['over']} | d, seeds | " + " | ".join(ys) + " | flags |",
            "|---" * (len(ys) + 4) + "|",
        ]
        for entry in mine:
            point = SimulationPoint.from_dict(entry["point"])
            rows, words = compare(point, samples=2**11)
            found = {row.quantity: row for row in rows}
            cells = []
            for y in ys:
                row = found.get(y)
                if row is None:
                    cells.append("-")
                    continue
                theory = "-" if row.theory is None else f"{row.theory:.4g}"
                error = "" if row.error is None else f" ({row.error:.2g})"
                cells.append(f"{row.simulated:.4g} / {theory}{error}{'' if row.within in (True, None) else ' outside'}")
            place = f"{entry['line']} | {entry['value']:g} | {point.dim}, {point.seeds}"
            lines.append(f"| {place} | " + " | ".join(cells) + f" | {'; '.join(words)} |")
        lines.append("")
    lines += ["```json", json.dumps(facts, indent=1), "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder that keeps each simulation")
    parser.add_argument("--table", action="store_true", help="write the table of the shipped points and stop")
    parser.add_argument(
        "--slice", type=float, default=float("inf"), help="seconds after which to stop before the next one"
    )
    parser.add_argument("--only", nargs="+", help="presets")
    parser.add_argument("--write", action="store_true", help=f"write {SHIPPED.name} and {TABLE.name}")
    options = parser.parse_args()
    if options.table:
        shipped = read_json(SHIPPED)
        atomic_write_text(TABLE, table(shipped["points"], shipped["provenance"]))
        return
    if options.out is None:
        parser.error("give --out or --table")
    end = time.monotonic() + options.slice
    for item in PRESETS:
        with keep_pretrained(8):
            for index, line, value in order(item):
                kept = options.out / f"{item.name}-{index}-{value:g}.json"
                if kept.exists() or time.monotonic() > end or (options.only and item.name not in options.only):
                    continue
                point = simulate(line, value)
                save_points([point], kept)
                print(f"{item.name}, {line.name}, {line.over} {value:g}: {point.seconds:.1f} s", flush=True)
    entries: list[dict[str, Any]] = []
    for item in PRESETS:
        for index, line in enumerate(item.lines):
            for value in line.simulated:
                kept = options.out / f"{item.name}-{index}-{value:g}.json"
                if kept.exists():
                    (point,) = load_points(kept)
                    head = {"preset": item.name, "line": line.name, "over": line.over, "value": value}
                    entries.append({**head, "point": small(point)})
    wanted = sum(len(line.simulated) for item in PRESETS for line in item.lines)
    print(f"{len(entries)} of {wanted} simulations, {sum(e['point']['seconds'] for e in entries):.0f} s in all")
    if options.write:
        facts = collect()
        facts = {key: facts[key] for key in ("created", "versions", "machine")}
        write_json(SHIPPED, {"schema_version": SCHEMA_VERSION, "provenance": facts, "points": entries})
        print(f"wrote {SHIPPED}", flush=True)
        atomic_write_text(TABLE, table(entries, facts))
        print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
