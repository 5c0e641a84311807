from __future__ import annotations

from pathlib import Path

import pytest

from lorascope.core.errors import DataError
from lorascope.simulation import simulate_finetune, simulate_pipeline, simulate_pretrain
from lorascope.theory.comparison import allowance
from lorascope.theory.points import SimulationPoint, load_points, points_table, save_points, write_points_csv


def within(point: SimulationPoint, quantity: str, expected: float) -> bool:
    """Whether the mean is within three standard errors and the finite-size allowance, 3.4 / d of the value."""
    error = point.error(quantity)
    assert error is not None
    return abs(point.mean(quantity) - expected) <= allowance(expected, error, point.dim)


def test_pretraining_follows_the_theory() -> None:
    point = simulate_pretrain(alpha=0.1, tokens=3, kappa0=1.0, noise=0.5, ridge=0.1, dim=40, seeds=6)
    assert not point.notes
    # The brief of the model: Q 1.268, M 1.411, Deff 0.6955 (at d = 40 the simulation lies 7.8 % above), 0.1957 on reuse.
    for quantity, expected in {"Q": 1.268, "M": 1.411, "delta_eff": 0.6955, "delta_reuse": 0.1957}.items():
        assert within(point, quantity, expected), (quantity, point.mean(quantity))
    assert point.mean("delta_eff") > 0.6955


def test_ridge_at_its_best_penalty_has_m_equal_to_q() -> None:
    noise, kappa0, tokens = 0.5, 0.5, 2
    best = noise / (tokens**2 * (1 + kappa0))
    point = simulate_pretrain(
        alpha=0.4, tokens=tokens, kappa0=kappa0, noise=noise, ridge=best, penalty="frobenius", dim=40, seeds=6
    )
    assert within(point, "M", point.mean("Q"))


def test_fine_tuning_follows_the_theory() -> None:
    point = simulate_finetune(alpha=4.0, tokens=2, ridge=0.5, noise=0.7, dim=120, seeds=8)
    for quantity, expected in {"m": 0.970, "q": 0.978, "alignment": 0.981, "test_error": 0.1122}.items():
        assert within(point, quantity, expected), (quantity, point.mean(quantity))


@pytest.mark.parametrize("rank", [1, 2])
def test_starts_without_the_answer_reach_the_informed_solution_where_data_are_plenty(rank: int) -> None:
    settings = {"alpha": 6.0, "tokens": 2, "ridge": 0.5, "noise": 0.3, "rank": rank, "dim": 40, "seeds": 3}
    informed = simulate_finetune(**settings)
    for start in ("spectral", "best"):
        found = simulate_finetune(**settings, start=start)
        assert found.samples["train_loss"] == pytest.approx(informed.samples["train_loss"], rel=1e-3)
        assert found.samples["alignment"] == pytest.approx(informed.samples["alignment"], abs=5e-3)


def test_pipeline_orders_the_kinds_of_data() -> None:
    settings = {"alpha": 0.3, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "ridge": 0.03, "dim": 40, "seeds": 4}
    points = simulate_pipeline(
        **settings, alpha_finetune=3, ridge_finetune=0.5, data=["fresh", "reused", "recalibrated", "active"]
    )
    found = {point.settings["data"]: point for point in points}
    assert list(found) == ["fresh", "reused", "recalibrated", "active"]
    assert found["reused"].mean("alignment") > found["fresh"].mean("alignment")
    assert found["recalibrated"].mean("test_error") < found["fresh"].mean("test_error")
    for point in points:
        # The correction is the leading part of what the overlaps leave out.
        gap = [a - b for a, b in zip(point.samples["test_error"], point.samples["test_error_overlaps"], strict=True)]
        assert max(map(abs, gap)) < 0.2
        assert point.samples["Q"] == found["fresh"].samples["Q"]


def test_pipeline_with_softmax() -> None:
    (point,) = simulate_pipeline(
        alpha=0.5,
        tokens=2,
        kappa0=0.5,
        noise=0.5,
        ridge=0.03,
        alpha_finetune=3,
        ridge_finetune=0.05,
        activation="softmax",
        dim=50,
        seeds=6,
        test_sequences=500,
    )
    assert within(point, "Q", 1.0446) and within(point, "M", 1.176)
    assert within(point, "alignment", 0.9236) and within(point, "test_error", 0.1067)


def test_points_survive_files(tmp_path: Path) -> None:
    point = simulate_finetune(alpha=3.0, tokens=2, ridge=0.5, noise=0.3, dim=20, seeds=2)
    (back,) = load_points(save_points([point], tmp_path / "points.json"))
    assert back == point
    row = points_table([point])[0]
    assert row["alignment"] == point.mean("alignment") and row["alignment_se"] == point.error("alignment")
    assert "alignment_se" in write_points_csv([point], tmp_path / "points.csv").read_text().splitlines()[0]
    assert simulate_finetune(alpha=3.0, tokens=2, ridge=0.5, noise=0.3, dim=20, seeds=1).error("m") is None


@pytest.mark.parametrize(
    "change", [{"kind": "other"}, {"schema_version": 99}, {"samples": {"m": [float("nan")]}}, {"samples": {"m": "x"}}]
)
def test_foreign_points_are_refused(change: dict) -> None:
    whole = SimulationPoint(stage="finetune", settings={}, dim=3, samples={"m": [1.0]}).to_dict()
    with pytest.raises(DataError):
        SimulationPoint.from_dict({**whole, **change})
