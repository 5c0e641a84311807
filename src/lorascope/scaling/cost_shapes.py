"""The dimensions of a decoder, read from its configuration: what a cost model needs and no weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.core.errors import InputError, ModelError, unknown_name
from lorascope.core.files import read_json


@dataclass(frozen=True)
class Projection:
    """One dense layer of a block.

    Attributes:
        name: Path inside the block, for example ``"self_attn.q_proj"``.
        d_in: Features in.
        d_out: Features out.
        stage: 0 reads the block's input, 1 what attention returns, 2 the feed-forward's input, 3 its inner features.
        bias: Whether it has a bias vector.
        copies: How many there are: the experts of a mixture, stacked in one tensor.
        active: How many of them a token passes.
        adaptable: Whether an adapter can sit on it: not on a router.
        saved_as: Path under which PEFT saves its adapter; empty means ``name``.
    """

    name: str
    d_in: int
    d_out: int
    stage: int
    bias: bool = False
    copies: int = 1
    active: int = 1
    adaptable: bool = True
    saved_as: str = ""

    @property
    def stacked(self) -> bool:
        """Whether it holds several experts in one tensor, which is no module."""
        return self.copies > 1

    @property
    def size(self) -> int:
        """Parameters of all copies."""
        return self.copies * (self.d_in * self.d_out + self.bias * self.d_out)


@dataclass(frozen=True)
class _Layout:
    """How an architecture names its parts. ``inner`` is how many floats of the feed-forward's width are kept a token."""

    blocks: str
    norms: int  # normalisations a block has
    norm_vectors: int  # vectors a normalisation has: 1 scale, 2 scale and shift
    inner: int
    gated: bool
    tied: bool


_LAYOUTS: dict[str, _Layout] = {
    "llama": _Layout("model.layers", 2, 1, 4, True, False),
    "phi3": _Layout("model.layers", 2, 1, 4, True, False),
    "gpt2": _Layout("transformer.h", 2, 2, 5, False, True),
    "opt": _Layout("model.decoder.layers", 2, 2, 1, False, True),
    "gpt_neox": _Layout("gpt_neox.layers", 2, 2, 2, False, False),
    "mixtral": _Layout("model.layers", 2, 1, 4, True, False),
    "qwen2_moe": _Layout("model.layers", 2, 1, 4, True, False),
}
_MIXTURE = ("experts", "experts_per_token", "shared_intermediate_size")
_ALIKE = {"mistral": "llama", "qwen2": "llama", "granite": "llama"}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The dimensions of a decoder.

    Attributes:
        hidden_size: Width of the residual stream.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key and value heads; None means ``heads``.
        head_dim: Width of a head; None means ``hidden_size / heads``.
        intermediate_size: Width of the feed-forward's inner features; of one expert's in a mixture.
        vocab_size: Tokens in the vocabulary.
        parameters: Distinct parameters; None counts them from the other numbers. Give it for a model that shares layers.
        positions: Learned positions (GPT-2, OPT); 0 where positions are rotations.
        layout: ``llama`` (also Mistral, Qwen2), ``phi3``, ``gpt2``, ``opt``, ``gpt_neox``, or, for a mixture of experts in
            every block, ``mixtral`` or ``qwen2_moe``.
        tied: Whether the output head is the embedding; None means as the architecture usually is.
        qkv_bias: Whether queries, keys and values have biases.
        mlp_bias: Whether the feed-forward and the output of attention have biases.
        experts: Experts of a block; None where it has one feed-forward.
        experts_per_token: How many of them a token passes.
        shared_intermediate_size: Width of the expert that every token passes beside those (Qwen2-MoE).

    Raises:
        InputError: A dimension is not a whole number of at least 1, the layout is unknown, or its experts are missing.

    Example:
        >>> shape = ModelShape(hidden_size=576, layers=30, heads=9, kv_heads=3, intermediate_size=1536,
        ...                    vocab_size=49152, tied=True)
        >>> shape.distinct_parameters
        134515008
    """

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocab_size: int
    kv_heads: int | None = None
    head_dim: int | None = None
    parameters: int | None = None
    positions: int = 0
    layout: str = "llama"
    tied: bool | None = None
    qkv_bias: bool = False
    mlp_bias: bool = False
    experts: int | None = None
    experts_per_token: int | None = None
    shared_intermediate_size: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise unknown_name("layout of a model", self.layout, _LAYOUTS)
        for field in dataclasses.fields(self):
            value, smallest = getattr(self, field.name), 0 if field.name == "positions" else 1
            if field.type.startswith("int") and value is not None and (isinstance(value, bool) or value < smallest):
                raise InputError(f"{field.name} {value!r} must be a whole number of at least {smallest}")
        needed = {"mixtral": _MIXTURE[:2], "qwen2_moe": _MIXTURE}.get(self.layout, ())
        for name in _MIXTURE:
            if (getattr(self, name) is not None) != (name in needed):
                raise InputError(f"layout '{self.layout}' {'needs' if name in needed else 'has no'} {name}")
        if self.experts is not None and (self.experts_per_token or 0) > self.experts:
            raise InputError(f"experts_per_token {self.experts_per_token} is more than the {self.experts} experts")

    @property
    def width(self) -> int:
        """Features of all query heads together."""
        return self.heads * (self.head_dim or self.hidden_size // self.heads)

    @property
    def kv_width(self) -> int:
        """Features of all key heads together, and of all value heads."""
        return (self.kv_heads or self.heads) * (self.head_dim or self.hidden_size // self.heads)

    @property
    def inner_kept(self) -> int:
        """Numbers of the feed-forward's inside that training keeps of each token for the backward pass."""
        inner = _LAYOUTS[self.layout].inner
        if self.experts is None:
            return inner * self.intermediate_size
        routed = (self.experts_per_token or 0) * (inner * self.intermediate_size + self.hidden_size)
        return routed + self.experts + inner * (self.shared_intermediate_size or 0)

    @property
    def parallel(self) -> bool:
        """Whether attention and feed-forward read the same input, as GPT-NeoX's do."""
        return self.layout == "gpt_neox"

    @property
    def block_path(self) -> str:
        """Module path of the list of blocks."""
        return _LAYOUTS[self.layout].blocks

    def projections(self) -> tuple[Projection, ...]:
        """The dense layers of one block, in the order in which they run."""
        h, w, kv, i = self.hidden_size, self.width, self.kv_width, self.intermediate_size
        a, m = self.qkv_bias, self.mlp_bias
        attention = (
            Projection("self_attn.q_proj", h, w, 0, a),
            Projection("self_attn.k_proj", h, kv, 0, a),
            Projection("self_attn.v_proj", h, kv, 0, a),
            Projection("self_attn.o_proj", w, h, 1, m),
        )
        if self.experts is not None:
            return (*attention, *self._experts())
        if self.layout == "llama":
            return (
                *attention,
                Projection("mlp.gate_proj", h, i, 2, m),
                Projection("mlp.up_proj", h, i, 2, m),
                Projection("mlp.down_proj", i, h, 3, m),
            )
        if self.layout == "phi3":
            return (
                Projection("self_attn.qkv_proj", h, w + 2 * kv, 0, a),
                Projection("self_attn.o_proj", w, h, 1, m),
                Projection("mlp.gate_up_proj", h, 2 * i, 2, m),
                Projection("mlp.down_proj", i, h, 3, m),
            )
        if self.layout == "gpt2":
            return (
                Projection("attn.c_attn", h, 3 * h, 0, True),
                Projection("attn.c_proj", h, h, 1, True),
                Projection("mlp.c_fc", h, i, 2, True),
                Projection("mlp.c_proj", i, h, 3, True),
            )
        if self.layout == "opt":
            return (
                *(Projection(f"self_attn.{n}_proj", h, h, 0, a) for n in "qkv"),
                Projection("self_attn.out_proj", h, h, 1, m),
                Projection("fc1", h, i, 2, m),
                Projection("fc2", i, h, 3, m),
            )
        return (
            Projection("attention.query_key_value", h, 3 * h, 0, a),
            Projection("attention.dense", h, h, 1, a),
            Projection("mlp.dense_h_to_4h", h, i, 2, True),
            Projection("mlp.dense_4h_to_h", i, h, 3, True),
        )

    def _experts(self) -> tuple[Projection, ...]:
        """The router, the stacked experts, and the expert that all tokens share, if there is one."""
        h, i, every, taken = self.hidden_size, self.intermediate_size, self.experts or 0, self.experts_per_token or 0
        found = [
            Projection("mlp.gate", h, every, 2, adaptable=False),
            Projection("mlp.experts.gate_up_proj", h, 2 * i, 2, False, every, taken, saved_as="mlp.experts.base_layer"),
            Projection("mlp.experts.down_proj", i, h, 3, False, every, taken, saved_as="mlp.experts"),
        ]
        if self.shared_intermediate_size is not None:
            shared = self.shared_intermediate_size
            found += [
                Projection("mlp.shared_expert.gate_proj", h, shared, 2),
                Projection("mlp.shared_expert.up_proj", h, shared, 2),
                Projection("mlp.shared_expert.down_proj", shared, h, 3),
                Projection("mlp.shared_expert_gate", h, 1, 2),
            ]
        return tuple(found)

    @property
    def is_tied(self) -> bool:
        """Whether the output head is the embedding."""
        return _LAYOUTS[self.layout].tied if self.tied is None else self.tied

    @property
    def distinct_parameters(self) -> int:
        """``parameters``, or their count from the dimensions: embeddings, blocks, norms and head."""
        if self.parameters is not None:
            return self.parameters
        layout = _LAYOUTS[self.layout]
        norm = layout.norm_vectors * self.hidden_size
        block = sum(p.size for p in self.projections()) + layout.norms * norm
        embeddings = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        return embeddings + self.positions * self.hidden_size + self.layers * block + norm

    @property
    def active_parameters(self) -> int:
        """Distinct parameters that one token passes: all of them but the experts that it is not sent to."""
        idle = sum((p.copies - p.active) * p.size // p.copies for p in self.projections())
        return self.distinct_parameters - self.layers * idle

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any], *, parameters: int | None = None) -> ModelShape:
        """Read the dimensions from a ``config.json`` of transformers.

        Args:
            config: The file, a folder that holds it, or its content.
            parameters: Distinct parameters, for a model that shares layers; None counts them.

        Returns:
            The shape.

        Raises:
            DataError: The file is missing or not JSON.
            ModelError: The architecture is not one that the cost model knows, or a dimension is missing.

        Example:
            >>> ModelShape.from_config({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12,
            ...                         "n_head": 12, "n_positions": 1024}).distinct_parameters
            124439808
        """
        source = "configuration"
        if not isinstance(config, Mapping):
            path = Path(config)
            path = path / "config.json" if path.is_dir() else path
            source, values = str(path), read_json(path)
            if not isinstance(values, dict):
                raise ModelError(f"'{path}' is not the configuration of a model: give a config.json of transformers")
        else:
            values = dict(config)
        kind = values.get("model_type")
        layout = _ALIKE.get(str(kind), str(kind))
        if layout not in _LAYOUTS:
            known = ", ".join(sorted({*_LAYOUTS, *_ALIKE}))
            raise ModelError(f"the cost model does not know model_type {kind!r} of {source}: it knows {known}")

        def whole(*names: str, default: int | None = None) -> int:
            for name in names:
                if isinstance(values.get(name), int) and not isinstance(values[name], bool):
                    return int(values[name])
            if default is None:
                raise ModelError(f"{source} has no '{names[0]}': give the configuration of a {kind} model")
            return default

        hidden, heads = whole("hidden_size", "n_embd"), whole("num_attention_heads", "n_head")
        if values.get("word_embed_proj_dim", hidden) != hidden:
            raise ModelError(f"{source}: the cost model does not cover embeddings narrower than the hidden size")
        positions = 0
        if layout == "gpt2":
            positions = whole("n_positions", "max_position_embeddings")
        elif layout == "opt":
            positions = whole("max_position_embeddings") + 2
        bias = bool(values.get("attention_bias", layout == "gpt_neox" or kind == "qwen2"))
        mixture: dict[str, int] = {}
        if layout in ("mixtral", "qwen2_moe"):
            mixture["experts"] = whole("num_local_experts", "num_experts")
            mixture["experts_per_token"] = whole("num_experts_per_tok")
        if layout == "qwen2_moe":
            if values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1:
                raise ModelError(f"{source}: the cost model covers mixtures with experts in every block")
            mixture["shared_intermediate_size"] = whole("shared_expert_intermediate_size")
            bias = bool(values.get("qkv_bias", True))
        if layout == "opt":
            bias = bool(values.get("enable_bias", True))
        tied = values.get("tie_word_embeddings")
        return cls(
            hidden_size=hidden,
            layers=whole("num_hidden_layers", "n_layer"),
            heads=heads,
            kv_heads=whole("num_key_value_heads", default=heads),
            head_dim=whole("head_dim", default=hidden // heads),
            intermediate_size=whole("moe_intermediate_size")
            if layout == "qwen2_moe"
            else whole("intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
            vocab_size=whole("vocab_size"),
            parameters=parameters,
            positions=positions,
            layout=layout,
            tied=tied if isinstance(tied, bool) else None,
            qkv_bias=bias,
            mlp_bias=bool(values.get("mlp_bias", layout == "opt" and bias)),
            **mixture,
        )
