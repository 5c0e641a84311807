"""The model card of an adapter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData

from lorascope.core.metrics import METRICS
from lorascope.tasks.embedded import EMBEDDED_NAME
from lorascope.training.spec import RunSpec

EMBEDDED_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"

_EMBEDDED_NOTE = (
    "The base was the copy of that model that comes inside a Python package: its weights had been quantised to 4 bits "
    "(GGUF Q4_1) and were expanded to float32 again. On the original weights the adapter works, and its numbers will "
    "differ a little."
)


def base_model_id(spec: RunSpec) -> str:
    """What others should load as the base model: the hub id or folder, also for the embedded model.

    Example:
        >>> base_model_id(RunSpec(model="smollm2"))
        'HuggingFaceTB/SmolLM2-135M-Instruct'
    """
    return EMBEDDED_BASE if spec.model == EMBEDDED_NAME else spec.model


def base_model_note(spec: RunSpec) -> str:
    """What an adapter's configuration names as its base model.

    With shared layers this is no name that loads: on the plain base model the adapter would work on other weights than it
    was trained on, and nothing would say so.

    Example:
        >>> base_model_note(RunSpec(model="my/base", share=4))
        'my/base (with layers shared in groups of 4 by lorascope)'
    """
    base = base_model_id(spec)
    return f"{base} (with layers shared in groups of {spec.share} by lorascope)" if _shares(spec) else base


def _shares(spec: RunSpec) -> bool:
    return spec.share is not None and spec.share > 1


def markdown(text: object) -> str:
    r"""Text that Markdown and HTML show as it is, on one line.

    Example:
        >>> markdown("a|b <script>")
        'a\\|b \\<script\\>'
    """
    return re.sub(r"([\\`*_{}\[\]#|<>&~$])", r"\\\1", " ".join(str(text).split()))


def model_card(spec: RunSpec, *, steps: int, totals: Mapping[str, float] | None = None) -> str:
    """Write the model card.

    Args:
        spec: The run.
        steps: Optimiser steps that were done.
        totals: Metric name -> value, once measured.

    Returns:
        Markdown with YAML front matter as model hubs read it. Everything the user gave is escaped.
    """
    base = base_model_id(spec)
    values = {name: value for name, value in (totals or {}).items() if math.isfinite(value)}
    data = ModelCardData(
        library_name="peft",
        base_model=base,
        pipeline_tag="text-generation",
        tags=["lora", "lorascope", "transformers"],
        metrics=list(values) or None,
        model_name=f"LoRA rank {spec.rank} on {' '.join(spec.task.split())}" if values else None,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=spec.task,
                dataset_name=spec.task,
                metric_type=name,
                metric_name=METRICS[name].label if name in METRICS else name,
                metric_value=value,
            )
            for name, value in values.items()
        ]
        or None,
    )
    facts = {
        "Base model": base,
        "Task": spec.task,
        "Prompt": spec.prompt,
        **({"Rows": f"with prompts of {spec.length[0]} to {spec.length[1]} tokens"} if spec.length else {}),
        **({"Shared layers": f"second half, in groups of {spec.share}"} if _shares(spec) else {}),
        "Rank, alpha": f"{spec.rank}, {spec.lora_alpha:g}",
        "Adapted layers": spec.target_modules
        if isinstance(spec.target_modules, str)
        else ", ".join(spec.target_modules),
        "Variant": _variant(spec),
        **({"Quantised base": spec.quantize} if spec.quantize else {}),
        **({"Start": _start(spec)} if spec.init != "default" else {}),
        "Optimiser": f"{spec.optimizer}, learning rate {spec.learning_rate:g}, {spec.schedule}",
        "Training": f"{steps} steps of {spec.batch_size} rows, seed {spec.seed}",
    }
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# LoRA adapter for {markdown(base)}",
        *_loading(spec),
        *([_EMBEDDED_NOTE] if spec.model == EMBEDDED_NAME else []),
        _table(("", ""), [(name, markdown(value)) for name, value in facts.items()]),
    ]
    if values:
        rows = [
            (
                markdown(METRICS[name].label if name in METRICS else name),
                f"{value:.6g}",
                METRICS[name].unit if name in METRICS else "",
            )
            for name, value in values.items()
        ]
        parts += ["## Measured", _table(("Metric", "Value", "Unit"), rows)]
        parts.append("Per-layer values are in `result.json` of the run. Information is in nats.")
    return "\n\n".join(parts) + "\n"


def _variant(spec: RunSpec) -> str:
    """What kind of LoRA it is."""
    connected = {None: "", "both": "elastic ", "u1": "elastic (around A) ", "u2": "elastic (around B) "}[spec.elastic]
    return f"{connected}{'DoRA' if spec.use_dora else 'LoRA'}{', rank-stabilised' if spec.use_rslora else ''}"


def _start(spec: RunSpec) -> str:
    return spec.init if spec.init == "loftq" else f"{spec.init}, by {spec.init_rows} training rows"


def _loading(spec: RunSpec) -> list[str]:
    """How the adapter is loaded."""
    if spec.quantize or spec.elastic:
        how = [f"on a base model quantised to {spec.quantize}"] if spec.quantize else []
        how += ["with elastic connections, which PEFT alone does not know and refuses to load"] if spec.elastic else []
        given = f", quantize={spec.quantize!r}" if spec.quantize else ""
        fold = (
            "`lorascope fold THIS_FOLDER --out DIR` writes it as an ordinary LoRA adapter that plain PEFT loads."
            if spec.elastic
            else "Plain PEFT puts it on any copy of the base; it was trained to go with this one."
        )
        return [
            f"Trained and measured with lorascope, {' and '.join(how)}. It loads with:",
            "```python\nfrom lorascope import attach_adapter, load_model_and_tokenizer\n\n"
            f"model, tokenizer = load_model_and_tokenizer({spec.model!r}{given})\n"
            'model = attach_adapter(model, "PATH_OF_THIS_FOLDER")\n```',
            fold,
        ]
    if not _shares(spec):
        return [
            "Trained and measured with lorascope. It loads with plain PEFT:",
            "```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
            'model = AutoPeftModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")\n```',
        ]
    return [
        "Trained and measured with lorascope, on a base model whose second half of layers shares its weights. It needs the "
        "same sharing again:",
        "```python\nfrom lorascope import attach_adapter, load_model_and_tokenizer\n"
        "from lorascope.adapters import share_layers\n\n"
        f"model, tokenizer = load_model_and_tokenizer({spec.model!r})\n"
        f"share_layers(model, {spec.share})\n"
        'model = attach_adapter(model, "PATH_OF_THIS_FOLDER")\n```',
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
