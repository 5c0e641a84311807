"""Quantise a whole model into a folder, and say what each layer lost."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCardData
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorascope.core.errors import DataError, LorascopeError, ModelError
from lorascope.core.files import appearing_folder, atomic_write_text, explain_write_errors, read_json, write_json
from lorascope.core.provenance import collect
from lorascope.quantization.icq import IcqTensor, quantize_icq
from lorascope.quantization.linear import IcqLinear
from lorascope.quantization.plugin import ICQConfig, icq_layers, is_quantizable, watch_quantization

SCHEMA_VERSION = 1
REPORT_NAME = "quantization.json"


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What quantising a model kept and lost.

    Attributes:
        layers: One record a quantised layer: ``name``, ``shape``, ``weights``, ``bits_per_weight``, ``norm`` (Frobenius),
            ``entropy_bits`` (mean over its blocks) and ``relative_error`` (norm of the difference over that of the weight);
            with ``_plain`` behind the name, the same without a search.
        totals: The same over all layers (entropies weighted by weights, errors by squares), with ``quantized_weights``,
            ``kept_weights`` (left dense), ``bytes_before`` and ``bytes_after`` (all tensors of the model) and ``seconds``.
        kept: Dense weights that were left alone -> why.
        config: The options of `ICQConfig`.
        provenance: Versions, machine, command (`lorascope.core.provenance.collect`).
        schema_version: Version of this layout.
    """

    layers: list[dict[str, Any]]
    totals: dict[str, int | float]
    kept: dict[str, str]
    config: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of every field."""
        return {"kind": "quantization", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, *, source: str = "mapping") -> QuantizationReport:
        """Build a report from what `to_dict` made.

        Raises:
            DataError: The mapping is no such report, or of another version.
        """
        if not isinstance(values, Mapping) or values.get("kind") != "quantization":
            raise DataError(f"'{source}' is not a report of lorascope quantize")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values.get('schema_version')!r}, this lorascope reads {SCHEMA_VERSION}: "
                "use the version of lorascope that wrote it"
            )
        try:
            return cls(**{item.name: values[item.name] for item in fields(cls)})
        except KeyError as error:
            raise DataError(f"'{source}' is not a whole report: {error} is missing") from error

    @classmethod
    def load(cls, folder: str | Path) -> QuantizationReport:
        """Read the report of a folder that `quantize_model` wrote.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = Path(folder) / REPORT_NAME
        return cls.from_dict(read_json(path), source=str(path))


def quantize_model(
    source: str | Path,
    out: str | Path,
    config: ICQConfig,
    *,
    dtype: str = "auto",
    compare: bool = True,
    progress: bool = False,
) -> QuantizationReport:
    """Quantise a model on load and save it, with its tokenizer or image processor and a report.

    The folder appears whole or not at all: it is written under another name beside it and renamed. Weights are read one by
    one, so that no dense copy of the model is ever in memory.

    Args:
        source: Folder or hub id of a model that is not quantised; code from the hub is never executed.
        out: Folder for the quantised model; it may exist if it is empty.
        config: How to quantise.
        dtype: Type of what stays dense: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        compare: Quantise each layer without a search too, for the report.
        progress: Show a progress bar.

    Returns:
        The report, which is also in ``out`` as ``quantization.json``.

    Raises:
        ModelError: The model cannot be loaded, is quantised already, or has no layer that can be quantised.
        InputError: A weight cannot be quantised: it holds NaN or infinity; the message names the layer.
        OutputError: The folder is not empty, or cannot be written.

    Example:
        >>> quantize_model("path", "out", ICQConfig(bits=4))  # doctest: +SKIP
    """
    out = Path(out)
    with appearing_folder(out) as work:
        follower = _Follower(config, compare=compare, progress=progress)
        started = time.perf_counter()
        with follower:
            model = load_model(source, dtype=dtype, config=config)
        seconds = time.perf_counter() - started
        if not icq_layers(model):
            raise ModelError(f"'{source}' has no linear layer that can be quantised: nothing was written")
        report = _report(model, follower, config, str(source), seconds)
        with explain_write_errors(out):
            model.save_pretrained(work)
            _save_companion(str(source), work)
            atomic_write_text(work / "README.md", _card(type(model).__name__, config, report))
            write_json(work / REPORT_NAME, report.to_dict())
    return report


class _Follower:
    """Keeps a record of each layer while transformers quantises them."""

    def __init__(self, config: ICQConfig, *, compare: bool, progress: bool) -> None:
        self.records: list[dict[str, Any]] = []
        self._plain = {**config.quantize_options, "objective": "none", "search": "shift"} if compare else None
        self._bar: Any = tqdm(desc="quantise", unit="layer", disable=not progress, leave=False)
        self._watch = watch_quantization(self._record)

    def __enter__(self) -> _Follower:
        self._watch.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._bar.close()
        self._watch.__exit__(*exc)

    def _record(self, model: nn.Module, name: str, weight: Tensor, result: IcqTensor) -> None:
        if self._bar.total is None:
            self._bar.total = len(icq_layers(model))
        record = {"name": name, "shape": list(result.codes.shape), "weights": result.codes.numel()}
        record |= measure_loss(weight, result)
        if self._plain is not None:
            plain = measure_loss(weight, quantize_icq(weight, **self._plain))
            record |= {f"{key}_plain": plain[key] for key in ("entropy_bits", "relative_error")}
        self.records.append(record)
        self._bar.update()


def measure_loss(weight: Tensor, quantized: IcqTensor) -> dict[str, float]:
    """What a quantised weight stores and loses.

    Args:
        weight: The dense weight.
        quantized: What it became.

    Returns:
        ``bits_per_weight``; ``norm``: Frobenius norm of the weight; ``entropy_bits``: mean entropy of the codes of a block;
        ``relative_error``: norm of the difference over that of the weight, 0 for a weight of zeros.

    Example:
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> round(measure_loss(weight, quantize_icq(weight, objective="none"))["relative_error"], 3)
        0.092
    """
    dense = weight.detach().to(torch.float64)
    lost = (quantized.dequantize(torch.float64) - dense).square().sum()
    whole = dense.square().sum()
    return {
        "bits_per_weight": quantized.bits_per_weight,
        "norm": math.sqrt(float(whole)),
        "entropy_bits": float(quantized.block_entropy_bits.mean()),
        "relative_error": math.sqrt(float(lost / whole)) if float(whole) > 0 else 0.0,
    }


def load_model(source: str | Path, *, dtype: str = "auto", config: ICQConfig | None = None) -> PreTrainedModel:
    """Load a dense model by the class that saved it, and quantise it on the way if asked.

    Args:
        source: Folder or hub id; code from the hub is never executed.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        config: How to quantise; None keeps it dense.

    Raises:
        ModelError: The model cannot be loaded, or is quantised already.
        InputError: A weight cannot be quantised; the message names the layer.
    """
    options = {} if config is None else {"quantization_config": config}
    try:
        known = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if getattr(known, "quantization_config", None) is not None:
            raise ModelError(f"'{source}' is quantised already: give the dense model that it was made from")
        named = (getattr(known, "architectures", None) or [""])[0]
        auto: Any = getattr(transformers, named, AutoModelForCausalLM) if named else AutoModelForCausalLM
        model: PreTrainedModel = auto.from_pretrained(source, dtype=dtype, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, LorascopeError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"cannot load the model '{source}' ({reason}): give the folder of a whole model saved with save_pretrained, "
            "or a hub id that can be reached from here"
        ) from error
    model.train(False)
    return model


def quantizable_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and weight, as (out, in), of the layers that quantising on load would take.

    Args:
        model: A dense model.
    """
    untyped: Any = model
    head = untyped.get_output_embeddings()
    for name, module in model.named_modules():
        if module is not head and is_quantizable(name, module):
            weight: Tensor = module.get_parameter("weight").detach()
            yield name, weight.T if isinstance(module, Conv1D) else weight


def _card(kind: str, config: ICQConfig, report: QuantizationReport) -> str:
    """The model card of a quantised model of a class of transformers."""
    data = ModelCardData(library_name="transformers", tags=["lorascope", "icq", "quantized"])
    how = "plain" if config.objective == "none" else f"calibrated (ICQ, IR-QLoRA, arXiv 2402.05445; {config.objective})"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# A model in {config.bits} bits",
        f"Linear layers are {how} {config.codebook}{config.bits} codes, {report.totals['bits_per_weight']:.3f} bits a "
        f"weight with scales and shifts; the rest is dense. Relative error of the weights: "
        f"{report.totals['relative_error']:.4f}; every layer is in `quantization.json`. It loads where lorascope is "
        "installed:",
        f"```python\nimport lorascope.quantization\nfrom transformers import {kind}\n\n"
        f'model = {kind}.from_pretrained("PATH_OF_THIS_FOLDER")\n```',
        "Adapters train on it as on any frozen model; `model.dequantize()` gives the dense weights that the codes stand "
        "for.",
    ]
    return "\n\n".join(parts) + "\n"


def _save_companion(source: str, folder: Path) -> None:
    """Save the tokenizer or image processor, where the source has one."""
    auto: Any
    for auto in (AutoTokenizer, AutoImageProcessor):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ImportError):
            auto.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)


def _report(
    model: PreTrainedModel, follower: _Follower, config: ICQConfig, source: str, seconds: float
) -> QuantizationReport:
    records = follower.records
    weights = sum(record["weights"] for record in records)
    squares = sum(record["norm"] ** 2 for record in records)
    totals: dict[str, int | float] = {"quantized_weights": weights}
    for key in ("bits_per_weight", "entropy_bits", "entropy_bits_plain"):
        if key in records[0]:
            totals[key] = sum(record[key] * record["weights"] for record in records) / weights
    for key in ("relative_error", "relative_error_plain"):
        if key in records[0]:
            lost = sum((record[key] * record["norm"]) ** 2 for record in records)
            totals[key] = math.sqrt(lost / squares) if squares else 0.0
    kept = kept_dense(model)
    layers = icq_layers(model)
    quantized = {id(p) for layer in layers.values() for p in layer.parameters() if p is layer.weight}
    dense = [p for p in model.parameters() if id(p) not in quantized]
    dense_bytes = sum(p.numel() * p.element_size() for p in dense)
    stored = sum(layer.bits_per_weight * layer.in_features * layer.out_features / 8 for layer in layers.values())
    width = next(iter(dense)).element_size() if dense else 4
    totals |= {
        "kept_weights": sum(p.numel() for p in dense),
        "bytes_before": dense_bytes + weights * width,
        "bytes_after": dense_bytes + round(stored),
        "seconds": seconds,
    }
    return QuantizationReport(
        layers=records,
        totals=totals,
        kept=kept,
        config={name: value for name, value in config.to_dict().items() if name != "quant_method"},
        provenance=collect(extra={"model": source}),
    )


def kept_dense(model: PreTrainedModel) -> dict[str, str]:
    """The weights of two or more axes that quantising left alone, and why.

    Args:
        model: A model that was quantised on load.

    Returns:
        Name of the module or parameter -> reason.
    """
    untyped: Any = model
    head = untyped.get_output_embeddings()
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        own = [key for key, p in module.named_parameters(recurse=False) if p.dim() >= 2]
        if isinstance(module, IcqLinear) or not own:
            continue
        if module is head:
            reasons[name] = "output head: small errors there change the next token directly"
        elif isinstance(module, nn.Embedding):
            reasons[name] = "embedding: looked up, not multiplied"
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            reasons[name] = "convolution: no linear layer"
        elif isinstance(module, nn.Linear):
            reasons[name] = "linear layer left alone: router, head of a classifier, or named"
        else:
            reasons |= {f"{name}.{key}": "no linear layer holds it, such as fused experts" for key in own}
    return reasons
