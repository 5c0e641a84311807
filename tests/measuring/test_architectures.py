"""Every architecture, against the slow and obvious way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorascope.measuring import measure
from tests.measuring.architectures import ARCHITECTURES, adapted, batch_for, randomise
from tests.measuring.reference import joint_information, js_rows, outputs_again

EVERYTHING = (
    "miub_js",
    "mi_joint",
    "update_ratio",
    "spectrum",
    "cka",
    "mi_gaussian",
    "matrix_entropy",
    "ce",
    "accuracy",
)
PLAIN = [name for name in ARCHITECTURES if name != "mixtral"]


def real_rows(name: str, batch: dict[str, torch.Tensor], rows: np.ndarray) -> np.ndarray:
    mask = batch.get("attention_mask")
    return rows if mask is None or len(rows) != mask.numel() else rows[mask.reshape(-1).bool().numpy()]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_components_and_finite_totals(name: str) -> None:
    model, batch = adapted(name), batch_for(name)
    for variant in ("local", "base"):
        result = measure(model, [batch], metrics=EVERYTHING, variant=variant, progress=False)
        assert result.counts["components"] == ARCHITECTURES[name].components == len(result.layers)
        assert result.counts["samples"] == 3
        assert result.totals["miub_js"] > 1e-6
        assert all(np.isfinite(value) for value in result.totals.values())
        assert result.totals["mi_joint_lower"] <= result.totals["mi_joint"] <= result.totals["mi_joint_upper"]
        assert result.totals["miub_joint"] < result.totals["mi_joint"]
        assert {"ce"} <= set(result.totals)
        assert ("accuracy" in result.totals) == (ARCHITECTURES[name].kind != "causal")


@pytest.mark.parametrize("name", PLAIN)
def test_agrees_with_the_slow_way(name: str) -> None:
    model, batch = adapted(name), batch_for(name)
    result = measure(model, [batch], metrics=("miub_js", "mi_joint"), progress=False)
    records = {record["name"]: record for record in result.layers}
    for layer, (frozen, shifted) in outputs_again(model, batch).items():
        o, l = real_rows(name, batch, frozen), real_rows(name, batch, shifted)  # noqa: E741
        assert records[layer]["miub_js"] == pytest.approx(js_rows(o, l).mean(), rel=1e-4, abs=1e-9)
        assert records[layer]["mi_joint"] == pytest.approx(joint_information(o, l), rel=1e-4, abs=1e-9)
    assert result.totals["miub_js"] == pytest.approx(sum(r["miub_js"] for r in result.layers))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_update_of_zero_moves_nothing(name: str) -> None:
    model, batch = adapted(name), batch_for(name)
    randomise(model, 0.0)
    for variant in ("local", "base"):
        result = measure(model, [batch], metrics=("miub_js", "update_ratio", "cka"), variant=variant, progress=False)
        assert result.totals["miub_js"] == 0.0
        assert result.totals["update_ratio"] == 0.0
        assert result.totals["cka"] == pytest.approx(1.0, abs=1e-6)
        assert any("changes nothing" in note for note in result.warnings)


@pytest.mark.parametrize(
    "name", [n for n, a in ARCHITECTURES.items() if a.kind == "causal" and n not in ("mixtral", "qwen2_moe")]
)
def test_padding_never_counts(name: str) -> None:
    model, batch = adapted(name), batch_for(name)
    padded = measure(model, [batch], metrics=("miub_js", "mi_joint", "ce"), progress=False)
    rows = [
        {key: value[i : i + 1, : int(batch["attention_mask"][i].sum())] for key, value in batch.items()}
        for i in range(3)
    ]
    single = measure(model, rows, metrics=("miub_js", "mi_joint", "ce"), progress=False)
    assert single.counts["tokens"] == padded.counts["tokens"] == 18
    for metric in ("miub_js", "mi_joint", "ce"):
        assert padded.totals[metric] == pytest.approx(single.totals[metric], rel=1e-4)


def test_base_variant_compares_with_the_model_without_adapters() -> None:
    model, batch = adapted("llama"), batch_for("llama", padded=False)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    outputs: dict[str, list[torch.Tensor]] = {}
    layers = {n: m for n, m in model.named_modules() if n.endswith("down_proj")}
    for name, module in layers.items():
        module.register_forward_hook(lambda _m, _a, out, name=name: outputs.setdefault(name, []).append(out))
    with torch.no_grad():
        with model.disable_adapter():
            model(**inputs)
        model(**inputs)
    result = {r["name"]: r["miub_js"] for r in measure(model, [batch], variant="base", progress=False).layers}
    for name, (frozen, shifted) in ((n, pair[:2]) for n, pair in outputs.items()):
        o, l = (x.reshape(-1, x.shape[-1]).double().numpy() for x in (frozen, shifted))  # noqa: E741
        assert result[name.removeprefix("base_model.model.")] == pytest.approx(js_rows(o, l).mean(), rel=1e-4)


def test_local_and_base_agree_where_no_adapter_is_upstream_and_differ_after() -> None:
    model, batch = adapted("llama"), batch_for("llama")
    local, base = (measure(model, [batch], variant=v, progress=False).layers for v in ("local", "base"))
    assert local[0]["projection"] == "self_attn.q_proj"
    assert local[0]["miub_js"] == pytest.approx(base[0]["miub_js"], rel=1e-5)
    assert local[-1]["miub_js"] != pytest.approx(base[-1]["miub_js"], rel=1e-2)
