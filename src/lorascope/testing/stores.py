"""What every store of runs must do: subclass `RunStoreConformance` under pytest and say how to make yours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lorascope.core.errors import DataError, InputError
from lorascope.results import RunRecord


@runtime_checkable
class Store(Protocol):
    """The operations of a store of runs."""

    def is_done(self, name: str) -> bool:
        """Whether the run has its result."""

    def write_spec(self, name: str, spec: Mapping[str, Any]) -> Any:
        """Keep what was asked."""

    def append_metrics(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep one step's numbers."""

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """All steps' numbers in order."""

    def finish(self, record: RunRecord) -> Any:
        """Keep the result, which makes the run done."""

    def load(self, name: str) -> RunRecord:
        """The result of a run."""

    def records(self) -> list[RunRecord]:
        """The results of all runs that are done."""


def example_record(name: str = "rank-4", rank: int = 4) -> RunRecord:
    """A small record with every field filled, an unknown value (NaN) and text that is not ASCII."""
    return RunRecord(
        name=name,
        totals={"miub_js": 0.25, "accuracy": 0.5, "ce": math.nan},
        layers=[{"name": "layers.0.q", "layer": 0, "projection": "q", "rank": rank, "miub_js": 0.25}],
        counts={"samples": 8, "questions": 2},
        settings={"variant": "local"},
        warnings=["näïve warning"],
        provenance={"seed": 0},
        spec={"model": "tiny", "task": "towns", "rank": rank},
        history=[{"step": 1, "loss": 2.0}],
        correct=[True, False],
    )


class RunStoreConformance:
    """Tests of a store of runs.

    Example:
        >>> class TestMyStore(RunStoreConformance):
        ...     def make_store(self, root):
        ...         return MyStore(root)
    """

    def make_store(self, root: Path) -> Store:
        """Open the store under a folder; opening it twice gives the same runs."""
        raise NotImplementedError("say how to open your store: def make_store(self, root)")

    def test_a_record_comes_back_equal(self, tmp_path: Path) -> None:
        """What was finished is what another opening of the store loads, with NaN for what was unknown."""
        record = example_record()
        self.make_store(tmp_path).finish(record)
        loaded = self.make_store(tmp_path).load(record.name)
        assert loaded.to_dict() == record.to_dict()
        assert isinstance(loaded, RunRecord)
        assert math.isnan(loaded.totals["ce"])

    def test_only_a_result_makes_a_run_done(self, tmp_path: Path) -> None:
        """A run with a specification and steps but no result is not done and not among the records."""
        store = self.make_store(tmp_path)
        store.write_spec("rank-4", {"rank": 4})
        store.append_metrics("rank-4", {"step": 1})
        assert not store.is_done("rank-4")
        assert store.records() == []
        store.finish(example_record())
        assert store.is_done("rank-4")
        assert [record.name for record in store.records()] == ["rank-4"]

    def test_steps_come_back_in_order(self, tmp_path: Path) -> None:
        """Appended steps survive reopening, NaN as None; a run without steps has none."""
        self.make_store(tmp_path).append_metrics("a", {"step": 1, "loss": 2.5})
        self.make_store(tmp_path).append_metrics("a", {"step": 2, "loss": math.nan})
        assert self.make_store(tmp_path).metrics("a") == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
        assert self.make_store(tmp_path).metrics("b") == []

    def test_records_are_ordered_by_rank(self, tmp_path: Path) -> None:
        """The base comes first, then the ranks as numbers, not as text."""
        store = self.make_store(tmp_path)
        for name, rank in (("rank-16", 16), ("rank-4", 4), ("base", 0)):
            store.finish(example_record(name, rank))
        assert [record.name for record in store.records()] == ["base", "rank-4", "rank-16"]

    def test_names_that_leave_the_store_are_refused(self, tmp_path: Path) -> None:
        """Separators, parents, hidden and empty names raise InputError, and nothing is written."""
        store = self.make_store(tmp_path / "store")
        for name in ("..", "../up", "a/b", "a\\b", "", ".hidden", "a\nb", "a\0b", "x" * 300):
            assert _raises(InputError, lambda name=name: store.append_metrics(name, {"step": 1})), name
        assert list(tmp_path.rglob("*.jsonl")) == []

    def test_a_missing_run_is_said(self, tmp_path: Path) -> None:
        """Loading what is not there raises DataError in one line that names the run."""
        error = _raises(DataError, lambda: self.make_store(tmp_path).load("nothing"))
        assert "nothing" in str(error)
        assert "\n" not in str(error)

    def test_results_are_plain_json(self, tmp_path: Path) -> None:
        """What is kept has no NaN or infinity in it."""
        self.make_store(tmp_path).finish(example_record())
        text = json.dumps(self.make_store(tmp_path).load("rank-4").to_dict(), allow_nan=False)
        assert json.loads(text)["totals"]["ce"] is None


def _raises(kind: type[Exception], call: Any) -> Exception | None:
    try:
        call()
    except kind as error:
        return error
    return None
