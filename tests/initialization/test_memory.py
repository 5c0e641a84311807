"""What a pass may keep: live bytes of every tensor that torch makes, against the prediction and the user's limit."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_outputs import SequenceClassifierOutput

from lorascope import initialize_lora_fisher
from lorascope.adapters import components
from lorascope.core.errors import InputError
from lorascope.initialization import collect_statistics
from lorascope.initialization.memory import Tokens, parse_memory, plan_chunks, statistics_bytes


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make while they live, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made


class Wide(nn.Module):
    """Two blocks as in a language model: three layers share an input, then one back, one up and one down."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        names = {"q": (width, width), "k": (width, width // 4), "v": (width, width // 4)}
        names |= {"up": (width, inner), "down": (inner, width)}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(i, o, bias=False) for n, (i, o) in names.items()}) for _ in range(2)
        )
        self.head = nn.Linear(width, 8)

    def forward(self, pixel_values: torch.Tensor) -> SequenceClassifierOutput:
        x = pixel_values
        for block in self.blocks:
            gate = (block["k"](x) * block["v"](x)).sum(-1, keepdim=True)
            x = x + torch.tanh(block["q"](x) * gate)
            x = x + block["down"](torch.relu(block["up"](x)))
        return SequenceClassifierOutput(logits=self.head(x))


def wide(width: int = 128, inner: int = 240, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Wide(width, inner).to(dtype)
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q", "k", "v", "up", "down"])).eval()


def rows(width: int = 128, count: int = 2, size: int = 40, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randn(size, width, generator=generator).to(dtype),
            "labels": torch.randint(0, 8, (size,), generator=generator),
        }
        for _ in range(count)
    ]


def peak(call: Any) -> int:
    with LiveBytes() as counter:
        call()
    return counter.peak


NEED = {
    "fisher": ("input_fisher",),
    "activation": ("input",),
    "gradient": ("mean_gradient",),
    "fisher_batch": ("input_fisher", "mean_gradient"),
    "natural_gradient": ("input", "output", "mean_gradient"),
    "fisher_select": ("input", "output"),
    "fisher_whitened": ("input", "output"),
}


def own(model: Any, data: Any) -> int:
    """The peak of the model's own pass, in which nothing but three numbers a layer is kept."""
    return peak(lambda: collect_statistics(model, data, need=(), progress=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", list(NEED))
def test_the_prediction_holds_in_one_pass_and_in_chunks(mode: str, dtype: torch.dtype) -> None:
    data = rows(dtype=dtype)
    need = NEED[mode]
    base = own(wide(dtype=dtype), data)
    found = collect_statistics(wide(dtype=dtype), data, need=need, max_memory="1GB", progress=False)
    assert found.counts["passes"] == 1
    whole = found.counts["predicted_bytes"]
    for limit in (whole, whole * 85 // 100):
        model, kept = wide(dtype=dtype), []

        def call(model: Any = model, kept: list[Any] = kept, limit: int = limit) -> None:
            kept.append(initialize_lora_fisher(model, data, mode, max_memory=limit, progress=False))

        taken = peak(call) - base
        counts = kept[0].counts
        assert (counts["passes"] > 1) == (limit < whole)
        assert counts["predicted_bytes"] <= limit
        # What LAPACK takes inside is predicted and not seen here: half of it where the width is small.
        assert 0.4 * counts["predicted_bytes"] < taken <= counts["predicted_bytes"], "close, and never above"


def test_more_passes_and_sketches_give_the_same_directions() -> None:
    data = rows()
    models = [wide(), wide(), wide()]
    truth = collect_statistics(wide(), data, progress=False).layers
    whole = initialize_lora_fisher(models[0], data, progress=False)
    assert whole.counts["passes"] == 1
    chunked = initialize_lora_fisher(models[1], data, max_memory=1_800_000, progress=False)
    assert chunked.counts["passes"] > 2
    sketched = initialize_lora_fisher(models[2], data, max_memory=700_000, sketch=32, progress=False)
    assert any("2 layers were sketched with 32 columns" in note for note in sketched.warnings)
    assert [found.counts["sketched"] for found in (whole, chunked, sketched)] == [0, 0, 2]
    for one, two, three in zip(*(components(model) for model in models), strict=True):
        first, second, third = (c.module.lora_A["default"].weight.detach().double() for c in (one, two, three))
        assert torch.allclose(first, second, atol=1e-5)
        total = truth[one.name].input_fisher
        held, held_by_sketch = (float((a @ total.sum.double() @ a.T).trace()) for a in (first, third))
        assert held_by_sketch > 0.95 * held, "random layers are the hardest: their spectrum is flat"


def test_layers_that_share_an_input_stay_together_only_where_its_factor_counts() -> None:
    found = components(wide())
    leaders = {name: "blocks.0.q" for name in ("blocks.0.q", "blocks.0.k", "blocks.0.v")}
    tokens = Tokens(40, 4)

    def names(need: tuple[str, ...], limit: int | None) -> list[set[str]]:
        chunks = plan_chunks(found, leaders, need, tokens=tokens, limit=limit, sketch=64, exact_width=4096)
        assert all(chunk.bytes <= (limit or chunk.bytes) for chunk in chunks)
        return [{c.name for c in chunk.components} for chunk in chunks]

    shared = {"blocks.0.q", "blocks.0.k", "blocks.0.v"}
    assert names(("input",), None) == [{c.name for c in found}]
    widest = 2_000_000  # of one layer alone, by its decomposition
    together, apart = names(("input",), widest), names(("input_fisher",), widest)
    assert len(together) > 1
    assert sum(bool(shared & chunk) for chunk in together) == 1
    assert set().union(*together) == set().union(*apart) == {c.name for c in found}
    for need, passes in ((("input",), 1), (("input_fisher",), 3)):
        tight = plan_chunks(found[:3], leaders, need, tokens=tokens, limit=500_000, sketch=64, exact_width=4096)
        assert len(tight) == passes, "one factor for three layers, or one each"


def test_a_model_of_seven_billion_fits_what_the_user_names() -> None:
    """Shapes of Llama-2-7B, by the plan alone: 22 GB of input and 42 GB of output factors in one pass, 4 GB in several."""
    from lorascope.adapters import Component

    layer = nn.Identity()
    shapes = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
    shapes |= {"gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}
    found = [
        Component(f"{i}.{name}", i, name, 8, *shape, "default", layer, layer, False)
        for i in range(32)
        for name, shape in shapes.items()
    ]
    leaders = {f"{i}.{name}": f"{i}.{first}" for i in range(32) for name, first in zip("qkv", "qqq", strict=True)}
    leaders |= {f"{i}.{name}": f"{i}.gate" for i in range(32) for name in ("gate", "up")}
    inputs = sum(
        statistics_bytes(c.d_in, c.d_out, ("input",), shared_input=leaders.get(c.name, c.name) != c.name) for c in found
    )
    outputs = sum(statistics_bytes(c.d_in, c.d_out, ("output",)) for c in found)
    assert inputs == pytest.approx(22e9, rel=0.02) and outputs == pytest.approx(42e9, rel=0.02)
    tokens = Tokens(2048, 2)
    for need, passes in ((("input_fisher",), 6), (("input", "output", "mean_gradient"), 30)):
        chunks = plan_chunks(found, leaders, need, tokens=tokens, limit=4 * 10**9, sketch=256, exact_width=4096)
        assert 1 < len(chunks) <= passes
        assert all(chunk.bytes <= 4 * 10**9 for chunk in chunks)
        wide = {c.name for c in found if max(c.d_in if n != "output" else c.d_out for n in need) > 4096}
        assert wide <= set().union(*(chunk.sketched for chunk in chunks))


@pytest.mark.parametrize("text", ["0", "-1GB", "much", "3 s"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_memory(text)
    assert "\n" not in str(caught.value)


def test_sums_go_with_the_result_and_wait_for_no_garbage_collector() -> None:
    model, batches = wide(), rows(size=4)
    gc.collect()
    gc.disable()
    try:
        found = collect_statistics(model, batches, need=("input",), progress=False)
        sums = [weakref.ref(s.input.sum) for s in found.layers.values() if s.input is not None]
        del found
        assert sums and all(held() is None for held in sums)
    finally:
        gc.enable()


def test_a_later_batch_that_is_larger_is_named() -> None:
    data = [*rows(size=10), *rows(size=40)]
    found = collect_statistics(wide(), data, max_memory="1GB", progress=False)
    assert any("a batch is 4.0 times as large as the first" in note for note in found.warnings)
    assert not any("as large as the first" in n for n in collect_statistics(wide(), data, progress=False).warnings)
