"""The slow, obvious way to the same numbers: keep every layer's input, call the layer again, use float64 and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from scipy.special import rel_entr, softmax


def outputs_again(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer name -> (frozen, adapted) rows of all tokens, by running each layer a second time on its own input."""
    inputs: dict[str, Any] = {}
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: inputs.__setitem__(name, args[0]))
        for name, module in layers.items()
    ]
    with torch.no_grad():
        model(**{k: v for k, v in batch.items() if k != "labels"})
        for handle in handles:
            handle.remove()
        found = {}
        for name, module in layers.items():
            frozen, adapted = module.get_base_layer()(inputs[name]), module(inputs[name])
            found[name] = tuple(x.reshape(-1, x.shape[-1]).double().numpy() for x in (frozen, adapted))
    return found


def js_rows(o: np.ndarray, l: np.ndarray) -> np.ndarray:  # noqa: E741
    """JS divergence in nats of each row's softmaxes, from SciPy's relative entropies."""
    p, q = softmax(o, axis=1), softmax(l, axis=1)
    m = (p + q) / 2
    return np.maximum((rel_entr(p, m) + rel_entr(q, m)).sum(axis=1) / 2, 0.0)


def joint_information(o: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """I(I; J) in nats of the joint distribution mean_t p_t q_t^T, by SciPy."""
    joint = softmax(o, axis=1).T @ softmax(l, axis=1) / len(o)
    return float(rel_entr(joint, np.outer(joint.sum(1), joint.sum(0))).sum())
