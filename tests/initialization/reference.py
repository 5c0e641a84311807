"""Statistics by autograd alone, in float64: what the pass is held against."""

from __future__ import annotations

from typing import Any

import torch

from lorascope.adapters import components
from lorascope.initialization import NEEDS, LayerStatistics
from lorascope.initialization.accumulators import ProductSum


def matrices(found: LayerStatistics) -> dict[str, torch.Tensor]:
    """A, G, F_in, F_out and M as they stand."""
    made = {}
    for name in NEEDS:
        total = getattr(found, name)
        made[name] = total.matrix(found.tokens) if isinstance(total, ProductSum) else total.sum / found.tokens
    return made


def reference(model: Any, batches: list[dict[str, Any]], loss: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The same by autograd in float64: every input and output gradient is kept, and the sums formed afterwards."""
    model = model.double()
    rows: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for batch in batches:
        kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        handles = []
        for component in components(model):

            def hook(_m: Any, args: Any, output: torch.Tensor, name: str = component.name, kept: Any = kept) -> None:
                output.retain_grad()
                kept[name] = (args[0].detach(), output)

            handles.append(component.module.register_forward_hook(hook))
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        loss(model, inputs).backward()
        for handle in handles:
            handle.remove()
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        for name, (x, output) in kept.items():
            assert output.grad is not None
            pair = (x, output.grad)
            if mask is not None and x.dim() == 3:
                pair = tuple(t[mask] for t in pair)
            rows.setdefault(name, []).append(tuple(t.reshape(-1, t.shape[-1]) for t in pair))
    found = {}
    for name, pairs in rows.items():
        a, g = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        n, wa, wg = len(a), a.square().sum(1, keepdim=True), g.square().sum(1, keepdim=True)
        found[name] = {
            "input": a.T @ a / n,
            "output": g.T @ g / n,
            "input_fisher": (wg * a).T @ a / n,
            "output_fisher": (wa * g).T @ g / n,
            "mean_gradient": g.T @ a / n,
            "tokens": torch.tensor(n),
        }
    return found


def summed(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The model's own loss, times the number of its terms."""
    labels = batch["labels"]
    out = model(**batch)
    return out.loss * ((labels[:, 1:] != -100).sum() if out.logits.dim() == 3 else len(labels))


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())
