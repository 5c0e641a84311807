"""Mutual information of a joint and its bounds: closed forms, oracles, invariances, limits, bad input."""

from __future__ import annotations

import math

import infomeasure
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import mutual_info_score

from lorascope.core import InputError
from lorascope.information import kappa, mutual_information, mutual_information_bounds, samplers
from lorascope.information._extreme import integrate_extreme
from lorascope.information.joint import _checked, _integrate
from tests.information.reference import exact_measures, random_joint

LN2 = math.log(2)
SEEDS = st.integers(0, 2**32 - 1)
MANY = settings(max_examples=200, deadline=None)


def truths() -> list[samplers.DiscreteTruth]:
    g = torch.Generator().manual_seed(0)
    p = torch.rand(7, generator=g) + 0.01
    return [
        samplers.independent(p, torch.rand(5, generator=g) + 0.01),
        samplers.diagonal(p),
        samplers.diagonal(torch.ones(64)),
        samplers.diagonal(torch.tensor([1.0, 1e-12, 1e-3])),
        *(samplers.binary_symmetric_channel(flip) for flip in (0.0, 1e-9, 0.1, 0.5, 0.9, 1.0)),
        *(samplers.erasure_channel(loss, p) for loss in (0.0, 0.3, 0.999)),
        *(samplers.random_blocks(k, 6, g) for k in (1, 3, 10)),
    ]


@pytest.mark.parametrize("truth", truths(), ids=lambda t: t.name)
def test_closed_forms(truth: samplers.DiscreteTruth) -> None:
    bounds = mutual_information_bounds(truth.joint)
    assert bounds.mi == pytest.approx(truth.mi, rel=1e-12, abs=1e-15)
    assert bounds.js == pytest.approx(truth.js, rel=1e-12, abs=1e-15)
    assert bounds.max_ratio == pytest.approx(truth.max_ratio, rel=1e-12)
    assert mutual_information(truth.joint) == bounds.mi


@given(SEEDS)
@MANY
def test_exact_reference(seed: int) -> None:
    joint = random_joint(seed)
    mi, js, ratio = exact_measures(joint)
    bounds = mutual_information_bounds(joint)
    # Near independence the ratios themselves are known to 3e-16 only, so that I is to about 1e-15 sqrt(I).
    tolerance = {"rel": 1e-12, "abs": 1e-15 * math.sqrt(max(mi, 0.0)) + 1e-30}
    assert bounds.mi == pytest.approx(mi, **tolerance)
    assert bounds.js == pytest.approx(js, **tolerance)
    assert bounds.max_ratio == pytest.approx(ratio, rel=1e-13)


@given(SEEDS)
@settings(max_examples=1000, deadline=None)
def test_valid_bounds_hold_and_the_papers_does_not(seed: int) -> None:
    joint = random_joint(seed)
    bounds = mutual_information_bounds(joint)
    assert bounds.lower <= bounds.mi <= bounds.upper
    assert 0 <= bounds.js <= LN2 and bounds.max_ratio >= 1
    if bounds.mi > 1e-25:
        assert bounds.mi > bounds.paper * 4.16  # (2 / ln 2) / ln 2 = 4.1627
    # The order is a theorem; the clamp may only repair rounding.
    mi, js, ratio, _ = _integrate(*_checked(joint))
    assert 2 / LN2 * js <= mi * (1 + 1e-12) + 1e-30
    assert mi <= kappa(max(ratio, 1.0)) * js * (1 + 1e-12) + 1e-30


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.one_of(st.just(0.0), st.floats(0, 1.7e308, allow_subnormal=True)),
    ).filter(lambda a: a.any())
)
@MANY
def test_any_finite_joint_gives_finite_ordered_numbers(joint: np.ndarray) -> None:
    b = mutual_information_bounds(joint)
    assert all(map(math.isfinite, (b.mi, b.js, b.lower, b.upper, b.paper)))
    assert b.max_ratio >= 1
    assert 0 <= b.lower <= b.mi <= b.upper
    assert b.mi <= math.log(min(joint.shape)) + 1e-12


@given(SEEDS, st.floats(-290, 290))
@MANY
def test_invariances(seed: int, exponent: float) -> None:
    joint = random_joint(seed)
    rng = np.random.default_rng(seed)
    reference = mutual_information_bounds(joint)
    shuffled = joint[rng.permutation(len(joint))][:, rng.permutation(joint.shape[1])]
    padded = np.pad(joint, 2)
    changed = [joint.T, shuffled, padded, joint * 2.0**7]
    exponents = np.log10(joint[joint > 0]) + exponent
    if exponents.max() < 300 and exponents.min() > -290:  # no entry may over- or underflow
        changed.append(joint * 10.0**exponent)
    for other in map(mutual_information_bounds, changed):
        close = {"rel": 1e-11, "abs": 1e-14 * math.sqrt(reference.mi) + 1e-28}
        assert other.mi == pytest.approx(reference.mi, **close)
        assert other.js == pytest.approx(reference.js, **close)
        assert other.max_ratio == pytest.approx(reference.max_ratio, rel=1e-12)


@given(SEEDS)
@MANY
def test_lumping_values_never_raises_information(seed: int) -> None:
    joint = random_joint(seed)
    rng = np.random.default_rng(seed)
    rows = np.eye(3)[rng.integers(3, size=len(joint))]
    columns = np.eye(3)[rng.integers(3, size=joint.shape[1])]
    before, after = mutual_information_bounds(joint), mutual_information_bounds(rows.T @ joint @ columns)
    assert after.mi <= before.mi * (1 + 1e-12) + 1e-28
    assert after.js <= before.js * (1 + 1e-12) + 1e-28


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_independent_libraries(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 20, size=(5, 4))
    counts[0, 0] += 1
    mi = mutual_information(counts)
    rows, columns = (np.repeat(index, counts.ravel()) for index in (i.ravel() for i in np.indices(counts.shape)))
    assert mi == pytest.approx(float(infomeasure.mutual_information(rows, columns, approach="discrete")), abs=1e-12)
    assert mi == pytest.approx(mutual_info_score(None, None, contingency=counts), abs=1e-12)


def test_independent_library_on_js() -> None:
    counts = np.array([[3, 0, 2], [1, 5, 0], [0, 2, 7]])
    product = np.outer(counts.sum(1), counts.sum(0))
    cells = np.arange(counts.size)
    samples = [np.repeat(cells, weights.ravel()) for weights in (counts, product)]
    expected = float(infomeasure.jensen_shannon_divergence(*samples, approach="discrete"))
    assert mutual_information_bounds(counts).js == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-38, 1.0, 1e38, 1e300, 4e307])
def test_any_scale(scale: float) -> None:
    joint = np.array([[3.0, 1.0], [0.0, 4.0]])
    got, expected = mutual_information_bounds(joint * scale), mutual_information_bounds(joint)
    assert got.mi == pytest.approx(expected.mi, rel=1e-3 if scale < 1e-310 else 1e-14)
    assert got.max_ratio == pytest.approx(2.0, rel=1e-3 if scale < 1e-310 else 1e-14)


SMALL = float(np.nextafter(0, 1))


@pytest.mark.parametrize(
    "joint",
    [
        np.diag([1.0, 1e-300]),
        np.diag([1e300, 1e-300]),
        np.diag([1.7e308, 1e-310, 1.0]),
        np.array([[1e-300, 2e-300], [3e-300, 1e-300]]),
        np.array([[1e300, 2e300], [3e300, 1e-300]]),
        np.array([[1.0, 1e-290], [1e-295, 3e-300]]),
        np.array([[1.0, 0.0, 0.5], [0.0, SMALL, 0.0], [0.25, 0.0, 1.0]]),
        np.array([[1e-280, 1.0], [1e-280, 0.0], [0.0, 0.0]]),
        np.full((2, 2), SMALL),
        np.diag([1.7e308] * 3),
    ],
)
def test_scales_beyond_the_range_of_a_quotient(joint: np.ndarray) -> None:
    mi, js, ratio = exact_measures(joint, digits=1400)
    bounds = mutual_information_bounds(joint)
    assert bounds.mi == pytest.approx(mi, rel=1e-12, abs=1e-320)
    assert bounds.js == pytest.approx(js, rel=1e-12, abs=1e-320)
    assert bounds.max_ratio == pytest.approx(ratio, rel=1e-13)  # inf where it is over the largest float
    assert 0 <= bounds.lower <= bounds.mi <= bounds.upper < math.inf
    assert mutual_information(joint.T) == pytest.approx(bounds.mi, rel=1e-13, abs=1e-320)


@given(SEEDS)
@MANY
def test_mixed_scales_against_the_exact_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    joint = 10.0 ** rng.uniform(-300, 300, size=rng.integers(1, 6, size=2))
    joint *= rng.random(joint.shape) < 0.7
    joint.flat[rng.integers(joint.size)] = 1.0
    mi, js, ratio = exact_measures(joint, digits=120)
    bounds = mutual_information_bounds(joint)
    # A ratio near 1 is known to 1e-16, whose square is what a cell adds.
    assert bounds.mi == pytest.approx(mi, rel=1e-12, abs=1e-30)
    assert bounds.js == pytest.approx(js, rel=1e-12, abs=1e-30)
    assert bounds.max_ratio == pytest.approx(ratio, rel=1e-12)
    log_ratio = _integrate(*_checked(joint))[3]
    assert log_ratio <= 1400 and (log_ratio == pytest.approx(math.log(ratio)) if ratio < math.inf else log_ratio > 709)


def test_both_ways_to_integrate_agree() -> None:
    for seed in range(200):
        joint = random_joint(seed)
        quick, careful = _integrate(*_checked(joint)), integrate_extreme(joint)
        scale = 1e-15 * math.sqrt(quick[0]) + 1e-30
        assert careful[:3] == pytest.approx(quick[:3], rel=1e-11, abs=scale)
        assert careful[3] == pytest.approx(quick[3], abs=1e-14)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint16, np.float16, np.float32, np.float64, bool])
def test_number_types_of_numpy(kind: type) -> None:
    joint = np.array([[1, 0, 1], [1, 1, 0]], dtype=kind)
    assert mutual_information(joint) == pytest.approx(exact_measures(joint.astype(np.float64))[0], rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.float16, torch.float32])
def test_number_types_of_torch(dtype: torch.dtype) -> None:
    joint = torch.tensor([[1, 0, 1], [1, 1, 0]]).to(dtype)
    assert mutual_information(joint) == pytest.approx(exact_measures(joint.double().numpy())[0], rel=1e-13)


def test_views_and_gradients_are_accepted() -> None:
    joint = np.random.default_rng(0).random((6, 8))
    joint.flags.writeable = False
    expected = mutual_information(np.array(joint))
    assert mutual_information(joint) == expected
    assert mutual_information(joint[::-1, ::-1]) == pytest.approx(expected, rel=1e-13)
    assert mutual_information(joint.T) == pytest.approx(expected, rel=1e-13)
    assert mutual_information(torch.tensor(joint, requires_grad=True)) == expected
    assert mutual_information(joint.tolist()) == expected


def test_large_joint_agrees_over_blocks() -> None:
    g = torch.Generator().manual_seed(1)
    joint = torch.rand(1000, 700, generator=g) ** 4
    p = joint.double() / joint.double().sum()
    w = p.sum(1, keepdim=True) * p.sum(0)
    bounds = mutual_information_bounds(joint)
    assert bounds.mi == pytest.approx(float((p * (p / w).log()).sum()), rel=1e-10)
    assert bounds.max_ratio == pytest.approx(float((p / w).max()), rel=1e-12)


def test_small_dependence_keeps_its_digits() -> None:
    """Of I = 5e-13 a naive sum of p ln r would keep three digits."""
    eps = 1e-6
    joint = np.array([[1 + eps, 1 - eps], [1 - eps, 1 + eps]])
    bounds = mutual_information_bounds(joint)
    mi, js, _ = exact_measures(joint)
    assert bounds.mi == pytest.approx(mi, rel=1e-9) and bounds.js == pytest.approx(js, rel=1e-9)
    assert bounds.mi / bounds.js == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        (np.ones(3), "shape (3,)"),
        (np.ones((2, 2, 2)), "shape (2, 2, 2)"),
        (np.ones((0, 3)), "shape (0, 3)"),
        (np.zeros((2, 2)), "all zero"),
        (np.array([[1.0, -0.5]]), "negative entry (-0.5)"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1.0, np.inf]]), "infinite"),
        (np.array([[1.0, 1j]]), "complex"),
        (np.array([["a"]]), "real numbers"),
        (torch.tensor([[1.0 + 1j]]), "complex"),
        (torch.zeros(2, 2, dtype=torch.int64), "all zero"),
        ([[1, 2], [3]], "equal length"),
        ([[1.0, None]], "object"),
        ([[torch.tensor([1.0, 2.0]), torch.tensor([1.0])]], "equal length"),
        ([["1", "2"]], "real numbers"),
        ("joint", "real numbers"),
        (np.array([[1, "a"], [None, 2]], dtype=object), "object"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), "datetime64"),
        (np.ma.masked_array([[1.0, 2.0]], mask=[[True, False]]), "masked array"),
        (torch.ones(2, 2, device="meta"), "meta tensor"),
        (torch.tensor([[1.0, -1.0]]).to_sparse(), "negative entry (-1)"),
        ([], "shape (0,)"),
    ],
)
def test_bad_input_is_named(joint: np.ndarray | torch.Tensor | list | str, message: str) -> None:
    for estimate in (mutual_information_bounds, mutual_information):
        with pytest.raises(InputError) as error:
            estimate(joint)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_any_layout_of_a_tensor() -> None:
    joint = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.5]])
    expected = mutual_information(joint)
    for other in (joint.to_sparse(), joint.to_sparse_csr(), joint.T.contiguous().T, joint.repeat(1, 2)[:, :3]):
        assert mutual_information(other) == expected
    learned = joint.clone().requires_grad_()
    assert mutual_information(learned) == mutual_information(learned.to_sparse()) == expected


def test_both_constants_are_the_best_possible() -> None:
    """The joints of docs/science/information.md that come as close to either bound as one likes."""
    n = 1000
    off_diagonal = mutual_information_bounds(1 - np.eye(n))
    assert off_diagonal.mi == pytest.approx(off_diagonal.lower, rel=2e-3)
    rare, ratio = 1e-7, 50.0
    both = ratio * rare**2
    corner = mutual_information_bounds([[both, rare - both], [rare - both, 1 - 2 * rare + both]])
    assert corner.max_ratio == pytest.approx(ratio, rel=1e-6)
    assert corner.mi == pytest.approx(corner.upper, rel=1e-3)
