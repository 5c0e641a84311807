"""A linear layer whose weight stays quantised: decoded for each pass, and again for the backward pass."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lorascope.core.errors import InputError, ModelError
from lorascope.quantization.codebooks import CODEBOOKS, codebook
from lorascope.quantization.icq import IcqTensor, code_entropy_bits, decode, quantize_icq
from lorascope.quantization.packing import packed_size, unpack
from lorascope.quantization.storage import Stored


class IcqLinear(nn.Module):
    """y = x W^T + b with W kept as ICQ codes.

    The state is a few tensors of whole numbers: ``weight`` (packed codes, uint8), ``weight_scale`` and ``weight_shift``
    (uint8), and the floats of their groups as the bit patterns of float32 in int32, which no change of the model's type can
    round. ``weight_format`` says how to read them (see `format_of`), so that a configuration that says otherwise is noticed.
    Nothing dense is kept, and autograd saves nothing dense: the backward pass decodes the weight again.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias.
        bits: Bits a code.
        block_size: Weights a block, in row-major order of W (out_features, in_features).
        codebook_kind: ``"nf"`` or ``"int"``.
        shifted: Whether blocks have a shift.
        double_quant: Whether scales and shifts are in 8 bits.
        group_size: Blocks that share a float then.
        device: Where to put the state.
        dtype: Type of the bias, and of outputs for whole-numbered input; that of the input otherwise.

    Example:
        >>> layer = IcqLinear.from_weight(torch.eye(64), None, bits=4)
        >>> bool((layer(torch.ones(1, 64)) - 1).abs().max() < 0.2), layer.weight.dtype
        (True, torch.uint8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int = 4,
        block_size: int = 64,
        codebook_kind: str = "nf",
        shifted: bool = True,
        double_quant: bool = True,
        group_size: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.bias: nn.Parameter | None
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.block_size, self.codebook_kind = bits, block_size, codebook_kind
        self.double_quant, self.group_size, self.shifted = double_quant, group_size, shifted
        blocks = -(-in_features * out_features // block_size)
        groups = -(-blocks // group_size)
        packed = torch.zeros(packed_size(in_features * out_features, bits), dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        for name in ("scale", "shift") if shifted else ("scale",):
            codes = torch.zeros(blocks, dtype=torch.uint8 if double_quant else torch.int32, device=device)
            self.register_buffer(f"weight_{name}", codes)
            if double_quant:
                self.register_buffer(f"weight_{name}_groups", torch.zeros(groups, dtype=torch.int32, device=device))
        self.register_buffer("weight_format", self._format().to(device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.compute_dtype = dtype or torch.get_default_dtype()
        # Whether the checkpoint that is quantised on load has the weight as (in_features, out_features), as GPT-2 does.
        self.transposed = False

    @classmethod
    def from_weight(
        cls,
        weight: Float[Tensor, "out_features in_features"],
        bias: Float[Tensor, " out_features"] | None,
        **options: Any,
    ) -> IcqLinear:
        """Quantise a weight into a layer.

        Args:
            weight: Dense weight.
            bias: Kept as it is.
            **options: Of `quantize_icq`.

        Raises:
            InputError: As `quantize_icq`.
        """
        return cls.from_quantized(quantize_icq(weight, **options), bias)

    @classmethod
    def from_quantized(cls, quantized: IcqTensor, bias: Float[Tensor, " out_features"] | None) -> IcqLinear:
        """A layer that holds a quantised weight of two axes.

        Raises:
            InputError: The weight has another number of axes.
        """
        if quantized.codes.dim() != 2:
            raise InputError(f"a linear layer needs a weight of two axes, not of shape {tuple(quantized.codes.shape)}")
        rows, columns = quantized.codes.shape
        layer = cls(
            columns,
            rows,
            bias=bias is not None,
            bits=quantized.bits,
            block_size=quantized.block_size,
            codebook_kind=quantized.codebook,
            shifted=quantized.shift is not None,
            double_quant=quantized.scale.groups is not None,
            group_size=quantized.scale.group_size or 256,
            device=quantized.codes.device,
            dtype=quantized.dtype,
        )
        for name, value in state_of(quantized).items():
            getattr(layer, name).data.copy_(value)
        if bias is not None and layer.bias is not None:
            layer.bias.data.copy_(bias.detach())
        return layer

    def _format(self) -> Tensor:
        group_size = self.group_size if self.double_quant else 0
        return format_of(self.codebook_kind, self.bits, self.block_size, group_size, self.shifted, 0)

    def _stored(self, name: str) -> Stored | None:
        codes: Tensor | None = getattr(self, f"weight_{name}", None)
        if codes is None:
            return None
        if not self.double_quant:
            return Stored(codes.view(torch.float32), None, 0, name == "shift")
        groups: Tensor = getattr(self, f"weight_{name}_groups")
        return Stored(codes, groups.view(torch.float32), self.group_size, name == "shift")

    def codes(self) -> UInt8[Tensor, "out_features in_features"]:
        """One code a weight."""
        return unpack(self.weight.data, self.bits, self.in_features * self.out_features).view(
            self.out_features, self.in_features
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "out_features in_features"]:
        """The weight that the layer uses.

        Args:
            dtype: Type of the result; None means the layer's.
        """
        scale, shift = self._stored("scale"), self._stored("shift")
        assert scale is not None
        dense = decode(
            self.weight.data,
            None if shift is None else shift.values(),
            scale.values(),
            block_size=self.block_size,
            values=codebook(self.codebook_kind, self.bits),
            shape=(self.out_features, self.in_features),
        )
        return dense.to(dtype or self.compute_dtype)

    @property
    def W_q(self) -> Tensor:
        """The packed codes, by HQQ's name: PEFT asks a layer that has it to `dequantize` itself, for DoRA."""
        return self.weight

    @property
    def bits_per_weight(self) -> float:
        """All that is stored for the weight, over the number of weights, without the seven numbers of ``weight_format``."""
        stored = [s for s in (self._stored("scale"), self._stored("shift")) if s is not None]
        return (8 * self.weight.numel() + sum(s.bits for s in stored)) / (self.in_features * self.out_features)

    def block_entropy_bits(self) -> Float[Tensor, " blocks"]:
        """Entropy of the codes of each block, in bits."""
        flat = self.codes().flatten().long()
        whole = flat.numel() - flat.numel() % self.block_size
        found = [code_entropy_bits(flat[:whole].view(-1, self.block_size), 2**self.bits)] if whole else []
        if whole < flat.numel():
            found.append(code_entropy_bits(flat[whole:].view(1, -1), 2**self.bits))
        return torch.cat(found)

    def check(self, name: str) -> None:
        """Refuse a state that no quantisation wrote.

        Args:
            name: The layer, for the message.

        Raises:
            ModelError: A tensor has another size or type than it must, the tensors are of another kind than the layer or not
                those of their checksum, or a float of a scale or a shift is not finite, or not above 0 where it must be.
        """
        blocks = -(-self.in_features * self.out_features // self.block_size)
        sizes = {"weight": (packed_size(self.in_features * self.out_features, self.bits), torch.uint8)}
        for kind in ("scale", "shift") if self.shifted else ("scale",):
            sizes[f"weight_{kind}"] = (blocks, torch.uint8 if self.double_quant else torch.int32)
            if self.double_quant:
                sizes[f"weight_{kind}_groups"] = (-(-blocks // self.group_size), torch.int32)
        for key, (size, dtype) in sizes.items():
            tensor: Tensor = getattr(self, key)
            if tensor.shape != (size,) or tensor.dtype != dtype:
                raise ModelError(
                    f"'{key}' of quantised layer '{name}' has {tensor.numel()} numbers of {_name(tensor.dtype)} where "
                    f"{size} of {_name(dtype)} belong: the checkpoint is damaged or of another model; "
                    "quantise the base model again"
                )
        written = self.get_buffer("weight_format").cpu()
        if not torch.equal(written[:-1], self._format()[:-1]):
            raise ModelError(
                f"quantised layer '{name}' was written as {_described(written)} and would be read as "
                f"{_described(self._format())}: its configuration was changed; quantise the base model again"
            )
        for kind in ("scale", "shift"):
            stored = self._stored(kind)
            if stored is None:
                continue
            floats = stored.codes if stored.groups is None else stored.groups
            signed = kind == "shift" and stored.groups is None
            least = -torch.inf if signed else 0.0 if stored.groups is None else torch.finfo(torch.float32).tiny
            if not bool((torch.isfinite(floats) & (floats >= least)).all()):
                raise ModelError(
                    f"the {kind}s of quantised layer '{name}' are missing or damaged: quantise the base model again"
                )
        if int(written[-1]) != checksum(getattr(self, key) for key in sizes if key != "weight_format"):
            raise ModelError(
                f"the codes or scales of quantised layer '{name}' are not those that were written: the checkpoint is "
                "damaged; quantise the base model again"
            )

    def forward(self, x: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        """Apply the layer, in the type of its input (or of autocast)."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y: Tensor = _Decoded.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """For printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"codes={self.codebook_kind}{self.bits}, block_size={self.block_size}"
        )


def checksum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 of the bytes of tensors, one after the other, as a signed number of 32 bits.

    Example:
        >>> checksum([torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([3], dtype=torch.uint8)])
        1438416925
    """
    total = 0
    for tensor in tensors:
        total = zlib.crc32(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data, total)
    return total - 2**32 if total >= 2**31 else total


def format_of(
    codebook_kind: str, bits: int, block_size: int, group_size: int, shifted: bool, check: int
) -> Int32[Tensor, " 7"]:
    """Seven numbers that say how to read the tensors of a layer, and whether they are whole.

    Args:
        codebook_kind: ``"nf"`` or ``"int"``.
        bits: Bits a code.
        block_size: Weights a block.
        group_size: Blocks that share a float; 0 if scales and shifts are floats themselves.
        shifted: Whether blocks have a shift.
        check: `checksum` of the tensors.

    Returns:
        The version of this format (1) and the six values, code books by their place in `CODEBOOKS`.

    Example:
        >>> format_of("nf", 4, 64, 256, True, -7).tolist()
        [1, 0, 4, 64, 256, 1, -7]
    """
    values = (1, CODEBOOKS.index(codebook_kind), bits, block_size, group_size, int(shifted), check)
    return torch.tensor(values, dtype=torch.int32, device="cpu")


def _described(written: Tensor) -> str:
    version, kind, bits, block_size, group_size, shifted, _ = written.tolist()
    if version != 1 or kind not in range(len(CODEBOOKS)):
        return f"an unknown kind ({version}, {kind})"
    scales = f"groups of {group_size} scales" if group_size else "float scales"
    return f"{CODEBOOKS[kind]}{bits} in blocks of {block_size}, {scales}, {'shifted' if shifted else 'no shifts'}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Decoded(torch.autograd.Function):
    """x W^T with W decoded for this call only, forward and backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: IcqLinear) -> Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        return nn.functional.linear(x, layer.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = grads
        return (grad @ ctx.layer.dequantize(grad.dtype) if ctx.needs_input_grad[0] else None), None


def state_of(quantized: IcqTensor) -> dict[str, Tensor]:
    """The tensors of a layer that holds this weight, by their names in `IcqLinear`."""
    group_size = quantized.scale.group_size if quantized.scale.groups is not None else 0
    shifted = quantized.shift is not None
    state = {"weight": quantized.packed}
    for name, stored in (("scale", quantized.scale), ("shift", quantized.shift)):
        if stored is None:
            continue
        if stored.groups is None:
            state[f"weight_{name}"] = stored.codes.view(torch.int32)
        else:
            state[f"weight_{name}"] = stored.codes
            state[f"weight_{name}_groups"] = stored.groups.view(torch.int32)
    kind = format_of(
        quantized.codebook, quantized.bits, quantized.block_size, group_size, shifted, checksum(state.values())
    )
    return state | {"weight_format": kind.to(quantized.packed.device)}
