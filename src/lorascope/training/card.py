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
        "Rank, alpha": f"{spec.rank}, {spec.lora_alpha:g}",
        "Adapted layers": spec.target_modules
        if isinstance(spec.target_modules, str)
        else ", ".join(spec.target_modules),
        "Variant": ("DoRA" if spec.use_dora else "LoRA") + (", rank-stabilised" if spec.use_rslora else ""),
        "Optimiser": f"{spec.optimizer}, learning rate {spec.learning_rate:g}, {spec.schedule}",
        "Training": f"{steps} steps of {spec.batch_size} rows, seed {spec.seed}",
    }
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# LoRA adapter for {markdown(base)}",
        "Trained and measured with lorascope. It loads with plain PEFT:",
        "```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")\n```',
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


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
