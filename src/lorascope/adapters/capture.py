"""Capturing the frozen and the adapted output of every LoRA layer while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorascope.adapters._peft import Component, adapters_disabled, components

Consume = Callable[[Component, Tensor, Tensor], None]


def _features_last(component: Component, output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    if isinstance(component.base, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        tensor = tensor.movedim(1, -1)
    return tensor


class Capture:
    """Hands frozen and adapted outputs of each LoRA layer to a consumer, layer by layer, while the model runs.

    A PEFT layer computes its frozen output ``W0 x + b`` on the way to the adapted one, so both are there for the
    taking: one hook inside, one outside, no second product with the factors. This holds for every variant of LoRA (rsLoRA,
    DoRA, several adapters at once), since nothing is assumed about how the layer gets from one to the other.

    Variant ``local`` takes one pass: the frozen output is computed on the stream that adapters upstream already
    changed. Variant ``base`` takes two: the frozen output is that of the model with all adapters switched off.

    Args:
        model: Model with active LoRA layers, neither merged nor switched off.
        consume: Called once a layer and pass with ``(component, frozen, adapted)``, both with the features last.
        variant: ``local`` or ``base``.

    Raises:
        AdapterError: As `components`.

    Example:
        ``with Capture(model, consume) as capture: outputs = capture.forward(batch)``
    """

    def __init__(self, model: nn.Module, consume: Consume, variant: str = "local") -> None:
        self.model = model
        self.components = components(model)
        self._consume = consume
        self._variant: str = variant
        self._handles: list[RemovableHandle] = []
        self._frozen: dict[str, list[tuple[Tensor, int]]] = {}
        self._recording = False

    def __enter__(self) -> Capture:
        for component in self.components:
            if self._variant == "local" and not component.whole_module:
                self._handles.append(component.base.register_forward_hook(self._on_base(component)))
            self._handles.append(component.module.register_forward_hook(self._on_layer(component), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._frozen.clear()

    def forward(self, batch: Mapping[str, Any]) -> Any:
        """Run the model on one batch without gradients.

        Args:
            batch: Keyword arguments of the model.

        Returns:
            The adapted model's output.
        """
        with torch.no_grad():
            if self._variant == "base":
                self._recording = True
                try:
                    with adapters_disabled(self.model):
                        self.model(**batch)
                finally:
                    self._recording = False
            outputs = self.model(**batch)
        self._frozen.clear()
        return outputs

    def _on_base(self, component: Component) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._keep(component, _features_last(component, output))

        return hook

    def _keep(self, component: Component, output: Tensor) -> None:
        self._frozen.setdefault(component.name, []).append((output, output._version))

    def _on_layer(self, component: Component) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            adapted = _features_last(component, output)
            if self._recording:
                self._keep(component, adapted.clone())  # the model may go on with it in place
                return
            if self._variant == "local" and component.whole_module:
                frozen = _features_last(component, component.base(*args, **kwargs))
            else:
                # The base variant has one entry a call, in the order of the calls; the local one has just one.
                frozen, version = self._frozen[component.name].pop(0)
                if self._variant == "local" and frozen._version != version:
                    # The layer added its update in place (AdaLoRA): the frozen output has to be computed again.
                    frozen = _features_last(component, component.base(*args, **kwargs))
                    self._frozen[component.name].clear()
            self._consume(component, frozen, adapted)

        return hook
