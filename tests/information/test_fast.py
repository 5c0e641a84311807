"""The fast path from logits: the same numbers as the careful one, for tiny, peaked and mixed shifts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.information import jensen_shannon, probability_jensen_shannon, softmax_jensen_shannon

LN2 = math.log(2)


def careful(o: torch.Tensor, l: torch.Tensor) -> torch.Tensor:  # noqa: E741
    return jensen_shannon(torch.log_softmax(o.double(), -1), torch.log_softmax(l.double(), -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shift", [10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_fast_equals_careful(dtype: torch.dtype, shift: float, scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    o = (scale * torch.randn(50, 300, generator=g)).to(dtype)
    l = o + (shift * torch.randn(50, 300, generator=g)).to(dtype)  # noqa: E741
    expected = careful(o, l)
    got = softmax_jensen_shannon(o, l)
    # A float32 softmax carries 1e-7 in each probability, a share 1e-7 / shift of the difference.
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(
        probability_jensen_shannon(o.softmax(-1), l.softmax(-1)).double(), expected, rtol=2e-2, atol=1e-9
    )


@given(st.integers(0, 100_000), st.floats(-3, 4), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=100, deadline=None)
def test_fast_is_bounded_and_never_nan(seed: int, exponent: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(seed)
    o, l = (10**exponent * torch.randn(2, 4, 33, generator=g)).to(dtype)  # noqa: E741
    js = softmax_jensen_shannon(o, l).double()
    assert bool(((js >= 0) & (js <= LN2 + 1e-6)).all())
    torch.testing.assert_close(js, careful(o, l), rtol=1e-3, atol=1e-6)
    assert float(softmax_jensen_shannon(o, o).amax()) == 0.0
