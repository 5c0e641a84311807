"""Inputs of adapted layers and gradients at their outputs, handed on while the backward pass runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils.hooks import RemovableHandle

from lorascope.adapters import Component
from lorascope.core.errors import ModelError
from lorascope.tasks.evaluate import evaluation_mode, four_bit_layers

Consume = Callable[[Component, Tensor, Tensor], None]


class GradientCapture:
    """Hands each layer's input and the gradient at its output to a consumer, layer by layer, in the backward pass.

    No parameter needs a gradient: the first hooked layer's output starts the graph. Only the inputs of the hooked layers
    are kept, once where layers share one, and each is let go when its gradient has come.

    Args:
        components: The layers to hook.
        consume: Called with ``(component, input, gradient)``, both as the layer saw them.

    Attributes:
        leaders: Layer -> the first layer that had the same input tensor, filled in by every forward pass.
    """

    def __init__(self, components: Sequence[Component], consume: Consume) -> None:
        self.components = components
        self.leaders: dict[str, str] = {}
        self._consume = consume
        self._handles: list[RemovableHandle] = []
        self._inputs: list[tuple[Tensor, str]] = []

    def __enter__(self) -> GradientCapture:
        for component in self.components:
            self._handles.append(component.module.register_forward_hook(self._hook(component), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()
        # The consumer may refer to this object: gigabytes of sums would wait for the garbage collector.
        self._consume = lambda *_: None

    def _lead(self, component: Component, x: Tensor) -> None:
        """Note whose input this is; layers that share one follow each other closely."""
        owner = next((name for tensor, name in self._inputs if tensor is x), component.name)
        known = self.leaders.setdefault(component.name, owner)
        if known != owner and owner == component.name:
            raise ModelError(
                f"layer '{component.name}' shares its input with '{known}' in some passes and not in others: take modes "
                "without an activation factor, such as fisher"
            )
        self._inputs = [*self._inputs[-3:], (x, owner)]

    def _hook(self, component: Component) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            x = args[0] if args else next(iter(kwargs.values()))
            self._lead(component, x)
            if not is_grad_enabled():
                return None  # of gradient checkpointing, which runs the layer again with gradients
            adapted: Tensor = output if output.requires_grad else output.detach().requires_grad_()
            kept, version = x.detach(), x._version

            def on_gradient(gradient: Tensor | None) -> None:
                if gradient is None:
                    raise ModelError(
                        f"no gradient reaches layer '{component.name}': a layer behind it computes without gradients, such "
                        "as a kernel for inference only; load the model again for training"
                    )
                if kept._version != version:
                    raise ModelError(
                        f"the input of layer '{component.name}' was changed in place: it can't be measured"
                    )
                self._consume(component, kept, gradient.detach())

            adapted.register_hook(on_gradient)  # type: ignore[no-untyped-call]
            return adapted

        return hook


@contextlib.contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """The model without dropout, cache and gradients of parameters for a while; then everything as it was.

    Gradient checkpointing goes on where it was on: transformers checkpoints layers in training mode only, so that flag
    stays on those layers themselves, unless they draw dropout of their own.
    """
    needed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    caches = [(c, c.use_cache) for c in configs.values() if getattr(c, "use_cache", None)]
    checkpointing = [
        module
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and module.training and not _drops(module)
    ]
    handle = None
    with evaluation_mode(model), _unpacked(model):
        try:
            for parameter in needed:
                parameter.requires_grad_(False)
            for config, _ in caches:
                config.use_cache = False
            for module in checkpointing:
                module.training = True
            if checkpointing:
                handle = _gradients_from_the_embeddings(model)
            yield
        finally:
            if handle is not None:
                handle.remove()
            for config, use_cache in caches:
                config.use_cache = use_cache
            for parameter in needed:
                parameter.requires_grad_(True)


@contextlib.contextmanager
def _unpacked(model: nn.Module) -> Iterator[None]:
    """4-bit layers as gradients need them; those that an earlier evaluation packed for inference are packed again after."""
    packed: list[tuple[Any, Tensor, dict[str, Any]]] = []
    for layer in four_bit_layers(model):
        weight: Any = layer.weight
        state = weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            packed.append((weight, weight.data, dict(vars(state))))
            layer.state_dict()  # saving unpacks the codes in place; scales that are not nested stay turned round
            if not state.nested and state.absmax.dim() == 2:
                state.absmax = state.absmax.T.reshape(-1).float()
    try:
        yield
    finally:
        for weight, data, before in packed:
            weight.data = data
            vars(weight.quant_state).clear()
            vars(weight.quant_state).update(before)


def _drops(module: nn.Module) -> bool:
    """Whether a module draws dropout in its own forward, by the rates it keeps."""
    return any("dropout" in name and isinstance(rate, float) and rate > 0 for name, rate in vars(module).items())


def _gradients_from_the_embeddings(model: nn.Module) -> RemovableHandle | None:
    """Let checkpointed layers see an input that needs gradients, without which they would give none."""
    untyped: Any = model
    try:
        embeddings = untyped.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.is_leaf:
            output.requires_grad_()

    handle: RemovableHandle = embeddings.register_forward_hook(hook)
    return handle
