"""Cross-entropy and perplexity against the library's own loss."""

from __future__ import annotations

import math

import pytest
import torch

from lorascope.core import InputError
from lorascope.information import perplexity, token_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_cross_entropy_is_shifted_and_skips_ignored_labels(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(3, 7, 11, generator=g)).to(dtype)
    labels = torch.randint(0, 11, (3, 7), generator=g)
    labels[0, :4] = labels[2, 5:] = -100
    nats, n = token_cross_entropy(logits, labels)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    assert nats == pytest.approx(float(expected), rel=1e-6) and n == 3 * 6 - 3 - 2
    assert token_cross_entropy(logits, torch.full((3, 7), -100)) == (0.0, 0)


def test_cross_entropy_of_certain_and_impossible_tokens_and_refusals() -> None:
    logits = torch.tensor([[[1e4, 0.0], [0.0, 0.0]]])
    assert token_cross_entropy(logits, torch.tensor([[0, 0]])) == (0.0, 1)
    assert token_cross_entropy(logits, torch.tensor([[0, 1]])) == (1e4, 1)
    for label in (-1, 2):
        with pytest.raises(InputError, match="vocabulary of 2"):
            token_cross_entropy(logits, torch.tensor([[0, label]]))
    with pytest.raises(InputError, match="NaN"):
        token_cross_entropy(logits * math.nan, torch.tensor([[0, 1]]))


def test_perplexity() -> None:
    assert perplexity(10 * math.log(7), 10) == pytest.approx(7)
    assert perplexity(1e6, 1) == math.inf
    for nats, n in ((1.0, 0), (-1.0, 2), (math.nan, 2)):
        with pytest.raises(InputError, match="perplexity"):
            perplexity(nats, n)
