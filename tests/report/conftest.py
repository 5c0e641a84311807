"""Records of the shape that real runs have, with numbers that are easy to check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorascope.results import RunRecord

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ACCURACY = {0: 0.49, 4: 0.66, 16: 0.63, 64: 0.70}
CE = {0: 6.51, 4: 2.48, 16: 2.35, 64: 2.38}
TEXT = {0: 21.4, 4: 22.0, 16: 22.9, 64: 25.3}
SHIFT = {0: 0.0, 4: 0.0031, 16: 0.0085, 64: 0.0392}
JOINT = {0: 31.80, 4: 31.55, 16: 31.18, 64: 30.22}
JS = {0: 7.204, 4: 7.154, 16: 7.129, 64: 6.934}
EFFECTIVE = {4: 3.4, 16: 9.6, 64: 21.5}


def outcomes(share: float, count: int = 100) -> list[bool]:
    """The first questions answered correctly, so that paired differences are the plain ones."""
    return [index < round(share * count) for index in range(count)]


def make_run(rank: int, *, layers: int = 30, **spec: Any) -> RunRecord:
    """A run as the quickstart makes it; rank 0 is the base model."""
    generator = np.random.default_rng(rank)
    places = [(layer, name) for layer in range(layers) for name in PROJECTIONS] if rank else []
    weights = np.exp(generator.normal(size=len(places)) + np.linspace(0, 2, len(places)))
    weights = weights / weights.sum() if places else weights
    totals = {
        "miub_js": SHIFT.get(rank, 0.01),
        "mi_joint": JOINT.get(rank, 31.0),
        "joint_js": JS.get(rank, 7.1),
        "mi_joint_lower": JS.get(rank, 7.1) * 2 / np.log(2),
        "mi_joint_upper": 80.0,
        "miub_joint": JS.get(rank, 7.1) * np.log(2),
        "accuracy": ACCURACY.get(rank, 0.6),
        "accuracy_norm": ACCURACY.get(rank, 0.6) - 0.02,
        "ce": CE.get(rank, 2.4),
        "text_ppl": TEXT.get(rank, 23.0),
    }
    if rank:
        totals |= {"update_ratio": 0.009 * rank**0.5, "effective_rank": EFFECTIVE.get(rank, 3.0), "stable_rank": 1.5}
    return RunRecord(
        name=f"rank-{rank}" if rank else "base",
        totals=totals,
        layers=[
            {
                "name": f"model.layers.{layer}.{'self_attn' if len(name) == 6 else 'mlp'}.{name}",
                "layer": layer,
                "projection": name,
                "rank": rank,
                "d_in": 576,
                "d_out": 1536 if name in ("gate_proj", "up_proj") else 576,
                "adapter": "default",
                "miub_js": float(totals["miub_js"] * weight),
                "mi_joint": float(0.1 + 0.05 * weight),
                "joint_js": float(0.03 + 0.01 * weight),
                "mi_joint_lower": float(0.09 + 0.02 * weight),
                "mi_joint_upper": float(0.3 + weight),
                "miub_joint": float(0.02 + 0.007 * weight),
                "update_ratio": float(0.01 + weight),
                "effective_rank": float(totals.get("effective_rank", 0) * (0.9 + 0.2 * generator.random())),
            }
            for (layer, name), weight in zip(places, weights, strict=True)
        ],
        counts={"samples": 48, "tokens": 1120, "components": len(places), "questions": 100},
        settings={"variant": "local", "tokens": "all", "reduction": "mean", "evaluation": {"errors": {"ce": 0.25}}},
        warnings=["mi_joint: 30 components wider than 1024 were lumped into 1024 groups"] if rank else [],
        provenance={
            "created": "2026-11-22T19:09:00+00:00",
            "command": f"lorascope train --rank {rank}",
            "versions": {"python": "3.11.7", "torch": "2.13.0", "lorascope": "0.1.0"},
            "machine": {"cpu": "Example CPU", "cores": 2, "memory_gib": 15.6},
            "seed": spec.get("seed", 0),
            "sha256": {"adapter_model.safetensors": f"{rank:02d}" * 32},
        },
        spec={
            "model": "SmolLM2-135M-Instruct",
            "task": "towns",
            "rank": rank,
            "alpha": 2 * rank or None,
            "learning_rate": 0.001,
            "batch_size": 16,
            "max_steps": 20 if rank else None,
            "seed": 0,
        }
        | spec,
        history=[
            {"step": step, "loss": float(2.3 + 4 * np.exp(-step / 5) + 0.05 * generator.normal())}
            for step in range(1, 21)
            if rank
        ],
        correct=outcomes(ACCURACY.get(rank, 0.6)),
    )


@pytest.fixture(scope="session")
def runs() -> list[RunRecord]:
    return [make_run(rank) for rank in (0, 4, 16, 64)]
