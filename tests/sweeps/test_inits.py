from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorascope.core.errors import InputError
from lorascope.figures.inits import gains_info, plot_gains, plot_steps, steps_info
from lorascope.report.inits import headline, inits_sections
from lorascope.report.page import render_page
from lorascope.results import RunRecord
from lorascope.sweeps import SweepFolder
from lorascope.sweeps.inits import compare_inits, inits_table, metric_label, summarise_inits, tuning_table
from lorascope.sweeps.inits_plan import InitsPlan, full_plan, reduced_plan
from lorascope.training.spec import INITS


def plan(**changes: Any) -> InitsPlan:
    given: dict[str, Any] = {
        "methods": ("fisher",),
        "rates": (1e-3, 1e-2),
        "tune_seeds": (9,),
        "seeds": (0, 1),
        "base": {"preset": "quick", "rank": 2, "max_steps": 4, "probe_steps": [1, 4]},
    }
    return InitsPlan(**{**given, **changes})


class Pretender:
    """An executor that writes records instead of training: losses that are known beforehand."""

    slots = 1

    def __init__(self, broken: tuple[str, float] | None = None) -> None:
        self.done: list[Any] = []
        self.asked: list[str] = []
        self.broken = broken

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...

    def submit(self, folder: str, name: str, seen: int) -> None:
        from lorascope.sweeps.executors import Finished

        place = SweepFolder(folder)
        spec = place.cell(name).spec
        self.asked.append(name)
        if (spec.init, spec.learning_rate) == self.broken:
            place.fail(name, "the loss is nan: use a smaller learning_rate")
            self.done.append(Finished(name, "failed"))
            return
        best = {"default": 1e-3, "fisher": 1e-2, "eva": 1e-3}[spec.init]
        gain = 0.299 + 0.002 * (spec.seed % 2)  # -0.3 on average over seeds 0 and 1
        loss = 2.0 - gain * (spec.init == "fisher") + 0.5 * abs(math.log10(spec.learning_rate / best))
        loss += 0.01 * spec.seed
        history = [{"step": s, "held_out_loss": loss + 1 / s} for s in spec.probe_steps]
        totals = {"accuracy": 0.5 + 0.1 * (spec.init == "fisher"), "ce": loss, "miub_js": 0.1, "text_ppl": 30.0}
        settings = {"init": {"seconds": 3.0}, "costs": {"seconds_training": 9.0}} if spec.init != "default" else {}
        place.store.write_spec(name, {})
        place.store.finish(RunRecord(name=name, totals=totals, layers=[], history=history, settings=settings))
        self.done.append(Finished(name, "done"))

    def wait(self, timeout: float) -> list[Any]:
        found, self.done = self.done, []
        return found


def test_rates_are_chosen_on_other_seeds_than_methods_are_compared_on(tmp_path: Path) -> None:
    machines = Pretender()
    found = compare_inits(plan(), tmp_path, executor=machines)
    assert len(machines.asked) == 4 + 4
    chosen = found.tuning[found.tuning["chosen"]].set_index("method")["learning_rate"].to_dict()
    assert chosen == {"default": 1e-3, "fisher": 1e-2}
    specs = [SweepFolder(tmp_path).cell(name).spec for name in machines.asked]
    assert {s.seed for s in specs[:4]} == {9}
    assert {s.seed for s in specs[4:]} == {0, 1}
    assert all(s.probe_steps == (4,) for s in specs[:4])
    final = found.summary[found.summary["metric"] == "held_out_loss@4"].set_index("method")
    assert final.loc["fisher", "difference"] == pytest.approx(-0.3)
    assert final.loc["fisher", "helped"] == "yes"
    assert final.loc["default", "helped"] == ""
    costs = found.summary[found.summary["metric"] == "seconds_init"].set_index("method")
    assert costs.loc["fisher", "mean"] == 3.0
    assert costs.loc["fisher", "helped"] == ""
    assert any("at an end of the sweep" in note for note in found.notes)
    again = Pretender()
    same = compare_inits(plan(), tmp_path, executor=again)
    assert again.asked == [], "nothing is done twice"
    pd.testing.assert_frame_equal(same.summary, found.summary)
    more = Pretender()
    grown = compare_inits(plan(methods=("fisher", "eva"), seeds=(0, 1, 2)), tmp_path, executor=more)
    assert len(more.asked) == 2 + 2 + 3
    assert grown.summary["pairs"].max() == 3


def test_rates_that_diverge_lose_and_are_named(tmp_path: Path) -> None:
    found = compare_inits(plan(), tmp_path, executor=Pretender(broken=("fisher", 1e-2)))
    chosen = found.tuning[found.tuning["chosen"]].set_index("method")["learning_rate"].to_dict()
    assert chosen["fisher"] == 1e-3
    assert math.isinf(found.tuning.set_index(["method", "learning_rate"])["loss"]["fisher", 1e-2])
    assert len(found.failed) == 1
    only = compare_inits(plan(rates=(1e-2,)), tmp_path / "b", executor=Pretender(broken=("fisher", 1e-2)))
    assert any("no rate worked for fisher" in note for note in only.notes)
    assert set(only.runs["method"]) == {"default"}
    with pytest.raises(InputError, match="no learning rate of"):
        compare_inits(plan(rates=(1e-2,)), tmp_path / "c", executor=Pretender(broken=("default", 1e-2)))


def test_missing_runs_leave_fewer_pairs(tmp_path: Path) -> None:
    asked = plan()
    compare_inits(asked, tmp_path, executor=Pretender())
    chosen = {"default": 1e-3, "fisher": 1e-2}
    place = SweepFolder(tmp_path)
    (lost,) = [c.name for c in asked.final_sweep(chosen).expand() if (c.spec.init, c.spec.seed) == ("fisher", 1)]
    (place.store.path(lost) / "result.json").unlink()
    runs = inits_table(asked, chosen, tmp_path)
    assert len(runs) == 3
    summary = summarise_inits(runs)
    assert set(summary[summary["method"] == "fisher"]["helped"]) <= {"undecided", ""}
    assert len(tuning_table(asked, tmp_path)) == 4


def test_a_damaged_result_is_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    asked = plan()
    compare_inits(asked, tmp_path, executor=Pretender())
    place = SweepFolder(tmp_path)
    names = [c.name for c in asked.final_sweep({"default": 1e-3, "fisher": 1e-2}).expand() if c.spec.init == "fisher"]
    (place.store.path(names[1]) / "result.json").write_text('{"na')
    found = compare_inits(asked, tmp_path, executor=Pretender())
    assert list(found.failed) == [names[1]] and "delete" in found.failed[names[1]]
    assert len(found.runs) == 3 and any("fisher" in note for note in found.notes)


def test_differences_are_paired_by_seed() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(6):
        shift = rng.normal(0, 5)  # a lucky seed is lucky for all
        rows.append({"method": "default", "seed": seed, "ce": 10 + shift})
        rows.append({"method": "eva", "seed": seed, "ce": 10 + shift - 0.1 + 0.01 * rng.normal()})
    row = summarise_inits(pd.DataFrame(rows)).set_index("method").loc["eva"]
    assert row["helped"] == "yes"
    assert row["high"] - row["low"] < 0.05
    assert row["noise"] > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("fischer",)}, "did you mean 'fisher'"),
        ({"methods": ()}, "methods is empty"),
        ({"rates": (1e-3, 1e-3)}, "has a value twice"),
        ({"rates": (-1.0,)}, "above 0"),
        ({"seeds": (9, 1)}, "seed 9 would choose learning rates and then compare"),
    ],
)
def test_bad_plans_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(**changes)


def test_probes_must_be_there_and_within_training() -> None:
    with pytest.raises(InputError, match="probe_steps is empty"):
        plan(base={"max_steps": 4}).tuning_sweep()
    with pytest.raises(InputError, match="go beyond max_steps 4"):
        plan(base={"max_steps": 4, "probe_steps": [1, 30]}).tuning_sweep()


def test_presets() -> None:
    small, large = reduced_plan(), full_plan(seeds=5)
    assert small.methods[0] == "default"
    assert set(large.methods) == set(INITS)
    assert large.base["probe_steps"] == [1, 10, 30, 100]
    cells = [*large.tuning_sweep().expand(), *large.final_sweep(dict.fromkeys(INITS, 1e-3)).expand()]
    assert len({cell.name for cell in cells}) == len(INITS) * (6 * 2 + 5)
    assert metric_label("held_out_loss@1") == "Validation loss after 1 step"
    with pytest.raises(InputError, match="seeds 0"):
        reduced_plan(seeds=0)


def test_page_says_what_the_tables_say_and_escapes(tmp_path: Path) -> None:
    found = compare_inits(plan(), tmp_path, executor=Pretender())
    labels = {metric: metric_label(metric) for metric in found.summary["metric"].unique()}
    says = headline(found.summary, "held_out_loss@4", labels)
    assert says.startswith("Validation loss after 4 steps: helped beyond noise: fisher")
    sections = inits_sections(
        found.summary,
        found.runs,
        found.tuning,
        labels=labels,
        label="what <b>was</b> run",
        notes=("a note",),
        failed={"cell": "<script>"},
    )
    page = render_page(sections, title="t", headline=says)
    assert "what &lt;b&gt;was&lt;/b&gt; run" in page
    assert '<script>"' not in page.split("</head>")[1].split("Runs that failed")[1][:200]
    assert "-0.3" in page or "−0.3" in page
    assert "a note" in page


def test_figures_show_gains_with_better_to_the_right() -> None:
    rows = [
        {
            "method": "a",
            "metric": "ce",
            "better": "lower",
            "difference": -0.2,
            "low": -0.3,
            "high": -0.1,
            "helped": "yes",
        },
        {
            "method": "b",
            "metric": "ce",
            "better": "lower",
            "difference": 0.1,
            "low": None,
            "high": None,
            "helped": "no",
        },
        {"method": "a", "metric": "accuracy", "better": "higher", "difference": 0.2, "low": 0.1, "high": 0.3},
        {"method": "default", "metric": "ce", "better": "lower", "difference": None},
    ]
    info = gains_info(rows, "ce")
    assert info.methods == ("a", "b")
    assert info.gains == (0.2, -0.1)
    assert (info.lows, info.highs) == ((0.1, None), (0.3, None))
    assert gains_info(rows, "accuracy").lows == (0.1,)
    figure = plot_gains(info)
    assert [trace.x[0] for trace in figure.data] == [0.2, -0.1]
    assert figure.data[0].error_x.array[0] == pytest.approx(0.1)
    with pytest.raises(InputError, match="no method has a difference"):
        gains_info(rows, "text_ppl")
    steps = steps_info({"default": {1: 3.0, 10: 2.0}, "a": {1: math.nan, 10: 1.0}})
    assert steps.curves["a"] == (None, 1.0)
    assert len(plot_steps(steps).data) == 2
    with pytest.raises(InputError, match="no method has a held-out loss"):
        steps_info({})
