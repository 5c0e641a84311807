"""Accumulators: merging shards equals one shot, checkpoints, lumping, dtypes, refusals."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.core import InputError
from lorascope.information import (
    Accumulator,
    JointAccumulator,
    MeanAccumulator,
    MomentAccumulator,
    RatioAccumulator,
    linear_cka,
    mutual_information,
    mutual_information_bounds,
)

MANY = settings(max_examples=30, deadline=None)


def data(n: int = 60, d: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    o = 3 * torch.randn(n, d, generator=g)
    return o, o + torch.randn(n, d, generator=g)


def feed(accumulator: Accumulator, o: torch.Tensor, l: torch.Tensor) -> None:  # noqa: E741
    if isinstance(accumulator, JointAccumulator):
        accumulator.update(o.softmax(-1), l.softmax(-1))
    elif isinstance(accumulator, MomentAccumulator):
        accumulator.update(o, l)
    elif isinstance(accumulator, RatioAccumulator):
        accumulator.update((l - o).square(), o.square())
    elif isinstance(accumulator, MeanAccumulator):
        accumulator.update(l[:, 0], o[:, 0].abs())


def agree(accumulators: list[Accumulator]) -> None:
    """What `MomentAccumulator.agree` does in processes: each hands in its totals, and all get the sum."""
    moments = [accumulator for accumulator in accumulators if isinstance(accumulator, MomentAccumulator)]
    handed_in: list[torch.Tensor] = []
    for accumulator in copy.deepcopy(moments):
        accumulator.agree(handed_in.append)
    for accumulator in moments:
        accumulator.agree(lambda totals: totals.copy_(sum(handed_in)))


def result(accumulator: Any) -> list[float]:
    if isinstance(accumulator, JointAccumulator):
        bounds = accumulator.compute()
        return [bounds.mi, bounds.js, bounds.max_ratio]
    if isinstance(accumulator, MomentAccumulator):
        return [accumulator.cka(), *accumulator.gaussian()]
    return [accumulator.compute()]


MAKERS = {
    "mean": MeanAccumulator,
    "ratio": RatioAccumulator,
    "joint": lambda: JointAccumulator(10, 10),
    "joint64": lambda: JointAccumulator(10, 10, dtype=torch.float64),
    "lumped": lambda: JointAccumulator(10, 10, groups=4, seed=3),
    "moments": lambda: MomentAccumulator(10),
    "projected": lambda: MomentAccumulator(10, project=4, seed=3),
}


@pytest.mark.parametrize("kind", MAKERS)
@given(cuts=st.lists(st.integers(0, 60), min_size=1, max_size=4), seed=st.integers(0, 1000))
@MANY
def test_merged_shards_equal_one_shot(kind: str, cuts: list[int], seed: int) -> None:
    o, l = data(seed=seed)  # noqa: E741
    whole = MAKERS[kind]()
    feed(whole, o, l)
    edges = [0, *sorted(cuts), 60]
    shards = []
    for start, stop in itertools.pairwise(edges):
        shards.append(MAKERS[kind]())
        feed(shards[-1], o[start:stop], l[start:stop])
    first, *others = copy.deepcopy(shards)
    agree(shards)
    summed = shards[0] if isinstance(shards[0], MomentAccumulator) else MAKERS[kind]()
    for tensors in zip(summed.tensors(), *(shard.tensors() for shard in shards), strict=True):
        tensors[0].copy_(sum(tensors[1:]))  # what an all-reduce does
    for shard in others:
        first.merge(shard)
    tolerance = 2e-6 if kind in ("joint", "lumped") else 1e-10  # float32 sums
    assert result(first) == pytest.approx(result(whole), rel=tolerance)
    assert result(summed) == pytest.approx(result(whole), rel=tolerance)


@pytest.mark.parametrize("kind", MAKERS)
def test_checkpoint_resumes_exactly(kind: str, tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    o, l = data()  # noqa: E741
    whole, before, after = MAKERS[kind](), MAKERS[kind](), MAKERS[kind]()
    for part in (slice(0, 25), slice(25, 60)):
        feed(whole, o[part], l[part])
    feed(before, o[:25], l[:25])
    save_file(before.state_dict(), tmp_path / "state.safetensors")
    after.load_state_dict(load_file(tmp_path / "state.safetensors"))
    feed(after, o[25:], l[25:])
    assert result(after) == result(whole)


def test_states_that_do_not_fit_are_refused() -> None:
    lumped, other = JointAccumulator(10, 10, groups=4, seed=1), JointAccumulator(10, 10, groups=4, seed=2)
    with pytest.raises(InputError, match="cannot merge JointAccumulator"):
        lumped.merge(other)
    with pytest.raises(InputError, match="same arguments"):
        lumped.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="does not fit"):
        MeanAccumulator().load_state_dict(RatioAccumulator().state_dict())
    with pytest.raises(InputError, match="cannot merge"):
        MomentAccumulator(10).merge(MomentAccumulator(10, project=3))
    # A seed that is not used makes no difference.
    JointAccumulator(10, 10, seed=1).merge(JointAccumulator(10, 10, seed=2))


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6, 1e9])
def test_moments_far_from_zero_keep_their_digits(mean: float) -> None:
    """Features of mean 1e6 and deviation 1, in uneven batches, in two processes one of which starts late."""
    g = torch.Generator().manual_seed(0)
    o = torch.randn(400, 6, generator=g, dtype=torch.float64)
    l = o + 0.3 * torch.randn(400, 6, generator=g, dtype=torch.float64)  # noqa: E741
    near = MomentAccumulator(6)
    near.update(o, l)
    o, l = o + mean, l - 2 * mean  # noqa: E741
    lost = 1e-12 + 1e-15 * mean  # of the data itself, by rounding at that mean
    batches = list(zip(o.split([1, 7, 200, 192]), l.split([1, 7, 200, 192]), strict=True))
    whole, halves = MomentAccumulator(6), [MomentAccumulator(6), MomentAccumulator(6)]
    for index, (a, b) in enumerate(batches):
        whole.update(a, b)
        halves[index % 2].update(a, b)
    late = MomentAccumulator(6)
    merged = copy.deepcopy(halves[1])
    merged.merge(halves[0])
    merged.merge(late)
    late.merge(merged)
    agree([*halves, MomentAccumulator(6)])
    for mine, theirs in zip(halves[0].tensors(), halves[1].tensors(), strict=True):
        mine += theirs
    for moments in (whole, merged, late, halves[0]):
        assert moments.cka() == pytest.approx(near.cka(), rel=lost)
        assert moments.cka() == pytest.approx(linear_cka(o, l), rel=lost)
        assert moments.gaussian() == pytest.approx(near.gaussian(), rel=lost)
        torch.testing.assert_close(moments.compute().cov_ol, near.compute().cov_ol, rtol=lost, atol=lost)


def test_joint_is_the_mean_of_outer_products() -> None:
    o, l = data(d=6)  # noqa: E741
    p, q = o.softmax(-1), l.softmax(-1)
    accumulator = JointAccumulator(6, 6)
    for rows in torch.arange(60).split(7):
        accumulator.update(p[rows], q[rows])
    expected = torch.stack([torch.outer(a, b) for a, b in zip(p.double(), q.double(), strict=True)]).mean(0)
    assert accumulator.compute().mi == pytest.approx(mutual_information(expected), rel=1e-5)


def test_joint_limits() -> None:
    """Equal tokens tell nothing; n distinct, certain tokens tell ln n, the most that n tokens can."""
    same = JointAccumulator(8, 8)
    p, q = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    same.update(p.expand(50, 8), q.expand(50, 8))
    assert same.compute().mi < 1e-12
    certain = JointAccumulator(8, 8)
    certain.update(torch.eye(8)[:5], torch.eye(8)[[3, 2, 1, 0, 7]])
    assert certain.compute().mi == pytest.approx(math.log(5), rel=1e-7)


@given(st.integers(0, 10_000), st.integers(1, 12))
@MANY
def test_lumping_never_raises_information(seed: int, groups: int) -> None:
    o, l = data(seed=seed)  # noqa: E741
    full, lumped = (JointAccumulator(10, 10, groups=g, seed=seed, dtype=torch.float64) for g in (None, groups))
    feed(full, o.double(), l.double())
    feed(lumped, o.double(), l.double())
    assert lumped.matrix.shape == (min(groups, 10),) * 2 and lumped.lumped == (groups < 10)
    assert float(lumped.matrix.sum()) == pytest.approx(60, rel=1e-12)
    assert lumped.compute().mi <= full.compute().mi * (1 + 1e-12)


def test_lumping_is_a_balanced_partition_of_its_seed() -> None:
    sizes = JointAccumulator(11, 11, groups=4, seed=0)
    sizes.update(torch.full((1, 11), 1 / 11), torch.full((1, 11), 1 / 11))
    assert sorted((sizes.matrix.sum(1) * 11).round().int().tolist()) == [2, 3, 3, 3]
    o, l = data()  # noqa: E741
    values = []
    for seed in (0, 0, 1):
        accumulator = JointAccumulator(10, 10, groups=3, seed=seed)
        feed(accumulator, o, l)
        values.append(accumulator.compute().mi)
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaked_rows_give_numbers(dtype: torch.dtype) -> None:
    logits = 200 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    accumulator = JointAccumulator(30, 30)
    accumulator.update(logits.softmax(-1).to(dtype), (logits + 1).softmax(-1).to(dtype))
    bounds = accumulator.compute()
    assert 0 < bounds.lower <= bounds.mi <= bounds.upper < math.inf
    assert bounds.mi <= math.log(30)


def test_mean_weights_and_refusals() -> None:
    mean = MeanAccumulator()
    mean.update(torch.tensor([1.0, 5.0, math.nan]), torch.tensor([True, True, False]))
    mean.update(torch.tensor([2.0], dtype=torch.bfloat16), torch.tensor([2.0]))
    assert mean.compute() == 2.5 and mean.sum() == 10.0
    with pytest.raises(InputError, match=r"values has shape \(2,\) and weights \(1,\)"):
        mean.update(torch.ones(2), torch.ones(1))
    empty = MeanAccumulator()
    empty.update(torch.ones(2), torch.zeros(2))
    with pytest.raises(InputError, match="no token"):
        empty.compute()
    mean.update(torch.tensor([math.nan]))
    with pytest.raises(InputError, match="nan"):
        mean.compute()


def test_mean_sums_in_float64() -> None:
    mean = MeanAccumulator()
    for _ in range(20):
        mean.update(torch.full((100_000,), 0.1))
    assert mean.compute() == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_ratio_refusals() -> None:
    ratio = RatioAccumulator()
    with pytest.raises(InputError, match=r"frozen output is zero .* so is the update \(0 / 0\)"):
        ratio.compute()
    endless = RatioAccumulator()
    endless.update(torch.tensor([1.0]), torch.tensor([0.0]))
    with pytest.raises(InputError, match=r"frozen output is zero .* the update is not"):
        endless.compute()
    ratio.update(torch.tensor([0.0]), torch.tensor([4.0]))
    assert ratio.compute() == 0.0
    ratio.update(torch.tensor([math.inf]), torch.tensor([4.0]))
    with pytest.raises(InputError, match="the update is inf"):
        ratio.compute()


def test_sizes_are_checked() -> None:
    with pytest.raises(InputError, match="groups is 0"):
        JointAccumulator(3, 3, groups=0)
    with pytest.raises(InputError, match="project is 0"):
        MomentAccumulator(3, project=0)
    with pytest.raises(InputError, match="expected 3 and 3"):
        JointAccumulator(3, 3).update(torch.ones(1, 3) / 3, torch.ones(1, 2) / 2)
    with pytest.raises(InputError, match="expected 3"):
        MomentAccumulator(3).update(torch.ones(1, 2), torch.ones(1, 2))
    for empty in (JointAccumulator(3, 3), MomentAccumulator(3)):
        with pytest.raises(InputError, match="no token"):
            empty.compute()


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 8.0, 20.0, 60.0])
def test_large_joints_in_float32_agree_with_float64(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    o = torch.randn(40, 700, generator=generator) * scale
    p, q = torch.softmax(o, -1), torch.softmax(o + 0.1 * torch.randn(40, 700, generator=generator), -1)
    p[:, 3], q[:, 5] = 0, 0  # features that no token has
    joint = JointAccumulator(700, 700)
    joint.update(p, q)
    quick, careful = joint.compute(), mutual_information_bounds(joint.matrix)
    for name in ("mi", "js", "lower", "upper", "paper", "max_ratio"):
        assert getattr(quick, name) == pytest.approx(getattr(careful, name), rel=2e-6)
    assert quick.lower <= quick.mi <= quick.upper
