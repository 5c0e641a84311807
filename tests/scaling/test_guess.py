"""A first guess of the rank from the spectra of one run."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig

from lorascope.core import InputError
from lorascope.core.errors import DataError
from lorascope.results import RunRecord
from lorascope.scaling.guess import first_guess
from lorascope.scaling.plan_result import Plan


def layers(*effective: float, rank: int = 16, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": f"l{i}", "rank": rank, "effective_rank": e, "update_ratio": 0.1, **more}
        for i, e in enumerate(effective)
    ]


@pytest.mark.parametrize(
    ("effective", "rank", "expected"),
    [
        ([3.0] * 10, 16, 4),
        ([4.0] * 10, 16, 4),
        ([4.1] * 10, 16, 8),
        ([2.0] * 9 + [9.0], 16, 4),  # one layer in ten does not decide
        ([2.0] * 5 + [9.0] * 5, 16, 16),
        ([15.0] * 10, 16, 32),  # saturated: doubled
        ([1.0] * 3, 4, 1),
        ([5.0] * 4, 6, 12),
        ([4.5] * 4, 6, 6),  # not above the rank that was run unless it is saturated
    ],
)
def test_quantile_of_effective_rank_rounded_up(effective: list[float], rank: int, expected: int) -> None:
    plan = first_guess({"layers": layers(*effective, rank=rank)})
    assert plan.rank == expected
    assert plan.model["saturated"] is (expected > rank)


def test_it_is_marked_as_a_guess() -> None:
    plan = first_guess(
        {"layers": layers(15.0, stable_rank=2.0), "spec": {"rank": 16, "alpha": 8, "seed": 3, "use_dora": True}}
    )
    assert plan.basis == "one run"
    assert not plan.settled
    text = plan.summary()
    assert text.startswith("First guess, not a recommendation: rank 32.")
    assert "Saturated" in text and "doubling" in text and "Stable rank" in text
    assert plan.predicted is None
    assert [cell["R"] for cell in plan.next_cells] == [16, 32, 64]
    assert plan.next_cells[0]["seed"] == 3
    config = LoraConfig(**plan.lora_config())
    assert (config.r, config.lora_alpha, config.use_dora) == (32, 8.0, True)
    assert Plan.from_dict(plan.to_dict()).to_dict() == plan.to_dict()


def test_a_record_and_idle_layers() -> None:
    found = layers(3.0, 3.5)
    idle = [{"name": "idle", "rank": 16, "effective_rank": 16.0, "update_ratio": 0.0}]
    record = RunRecord(name="r", totals={}, layers=[*found, *idle], spec={"rank": 16})
    plan = first_guess(record)
    assert plan.rank == 4
    assert any("1 layers whose update is zero" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ({}, DataError, "no layers"),
        ({"layers": [{"rank": 4}]}, DataError, "no layer has an effective rank"),
        ({"layers": [{"rank": 4, "effective_rank": float("nan")}]}, DataError, "no layer has an effective rank"),
        ({"layers": [], "spec": {"rank": 0}}, InputError, "rank 0"),
    ],
)
def test_bad_records(record: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        first_guess(record)
