"""The start of LoftQ: the adapter makes good what quantising its layer lost, as far as its rank goes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapters._initial import write_factors
from lorascope.adapters._peft import components
from lorascope.core.errors import AdapterError
from lorascope.quantization import IcqLinear


def leading_factors(
    matrix: Float[Tensor, "out inp"], rank: int
) -> tuple[Float[Tensor, "rank inp"], Float[Tensor, "out rank"]]:
    r"""A and B with B A the best approximation of a matrix of that rank, the singular values shared equally.

    :math:`B = U_r \sqrt{S_r}`, :math:`A = \sqrt{S_r} V_r^T`, by the eigenvectors of the smaller Gram matrix in float64.

    Args:
        matrix: Any matrix.
        rank: At most its smaller side.

    Returns:
        A and B in float32.

    Example:
        >>> a, b = leading_factors(torch.ones(4, 6), 1)
        >>> torch.allclose(b @ a, torch.ones(4, 6))
        True

    References:
        LoftQ, arXiv 2310.08659; `peft.replace_lora_weights_loftq` does the same with a full SVD, on a GPU.
    """
    exact = matrix.double()
    wide = exact.shape[0] <= exact.shape[1]
    gram = exact @ exact.T if wide else exact.T @ exact
    values, vectors = torch.linalg.eigh(gram)
    leading = vectors[:, -rank:].flip(1)
    roots = values[-rank:].flip(0).clamp_min(0).pow(0.25).clamp_min(1e-150)
    if wide:
        return ((leading.T @ exact) / roots[:, None]).float(), (leading * roots).float()
    return (leading * roots).T.float(), ((exact @ leading) / roots).float()


def start_loftq(model: PeftModel, dense: nn.Module, adapter: str = "default") -> dict[str, float]:
    """Give each quantised layer's adapter the leading part of what quantising lost.

    The scaling is taken into account: at the start the layer computes with Q(W) + the best approximation of W - Q(W), for
    any alpha. The base stays as it is (one step of LoftQ's alternation).

    Args:
        model: Over a quantised base, with a fresh adapter; changed in place.
        dense: The base before it was quantised.
        adapter: Its name.

    Returns:
        ``relative_error`` (Frobenius norm of W - Q(W) over that of W, over all layers), ``relative_error_started`` (with
        the adapter) and ``layers``.

    Raises:
        AdapterError: No adapted layer is quantised.

    References:
        LoftQ, arXiv 2310.08659.
    """
    whole = lost = left = 0.0
    count = 0
    for component in components(model):
        quantised = _dequantised(component.base, component.name)
        if quantised is None:
            continue
        module: Any = dense.get_submodule(component.name)
        weight = module.weight.detach().float().to(quantised.device)
        missing = (weight.T if isinstance(module, Conv1D) else weight) - quantised.float()
        layer: Any = component.module
        a, b = leading_factors(missing, int(layer.r[adapter]))
        write_factors(component, adapter, a, b / float(layer.scaling[adapter]))
        whole += float(weight.double().square().sum())
        lost += float(missing.double().square().sum())
        left += float((missing - b @ a).double().square().sum())
        count += 1
    if not count:
        raise AdapterError(
            "init 'loftq' found no quantised layer under the adapter: quantise the base, such as to 'nf4'"
        )
    return {
        "relative_error": (lost / whole) ** 0.5,
        "relative_error_started": (left / whole) ** 0.5,
        "layers": float(count),
    }


def _dequantised(base: nn.Module, name: str) -> Tensor | None:
    """The weight that a quantised layer uses, (d_out, d_in); None for dense layers."""
    if isinstance(base, IcqLinear):
        return base.dequantize(torch.float32)
    weight: Any = getattr(base, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is None:
        return None
    if getattr(state, "packing_format_for_cpu", False):
        raise AdapterError(
            f"bitsandbytes has repacked layer '{name}' for use: load the quantised model anew for 'loftq'"
        )
    from bitsandbytes.functional import dequantize_4bit

    dense: Tensor = dequantize_4bit(weight.data, state)
    return dense
