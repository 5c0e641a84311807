"""Numbers from whatever a user passes: tensors of any layout, arrays, nested lists; all else is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorascope.core.errors import InputError


def real_tensor(values: Any, name: str) -> Tensor:
    """Dense tensor of real numbers, of the type it came in; a gradient is kept.

    Args:
        values: Tensor (sparse ones are densified), array or nested list of numbers or booleans.
        name: What it is called in messages.

    Returns:
        The tensor. Numbers that are neither float32 nor float64 in NumPy become float64.

    Raises:
        InputError: Complex or masked numbers, texts, objects, rows of unequal length, or a tensor without data.
    """
    if isinstance(values, Tensor):
        if values.is_meta or values.is_nested or values.is_quantized:
            kind = "meta" if values.is_meta else "nested" if values.is_nested else "quantised"
            raise InputError(f"{name} is a {kind} tensor: pass a plain tensor of real numbers")
        try:
            tensor = values if values.layout == torch.strided else values.to_dense()
        except RuntimeError as error:  # no memory for it
            raise InputError(
                f"{name} is a sparse tensor of shape {tuple(values.shape)}, which does not fit as a dense one: lump its "
                "rows and columns first"
            ) from error
    elif isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array: fill it first, with joint.filled(0) for example")
    else:
        try:
            array = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{name} is no array of numbers ({reason}): pass rows of equal length") from error
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name} has entries of type '{array.dtype}': pass real numbers")
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float64)
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if tensor.dtype.is_complex:
        raise InputError(f"{name} has entries of type '{tensor.dtype}': pass real numbers")
    return tensor


def require_same_shape(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Refuse two tensors of different shapes, which torch would stretch to fit each other.

    Raises:
        InputError: The shapes differ; both are named.
    """
    if first.shape != second.shape:
        raise InputError(
            f"{names[0]} has shape {tuple(first.shape)} and {names[1]} {tuple(second.shape)}: pass equal shapes"
        )
