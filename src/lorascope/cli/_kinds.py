"""What ``lorascope measure`` does differently for each kind of adapter: loading, data and scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

DEFAULT_METRICS = ("miub_js", "mi_joint", "update_ratio", "spectrum", "ce")


@dataclass(frozen=True)
class Request:
    """The options that depend on the kind, as the user gave them."""

    adapter: str
    base: str
    task: str | None
    metrics: list[str] | None
    prompt: str
    data_dir: str | None
    split: str | None
    limit: int | None
    score: bool
    score_limit: int | None
    tokens: str
    lm_eval: str | None
    max_length: int | None
    overlong: str
    pad_token: str | None
    batch_size: int
    any_base: bool
    dtype: str
    seed: int
    progress: bool
    quantize: str | None = None

    @property
    def lengths(self) -> dict[str, Any]:
        """The options about the length of a row and its padding."""
        return {"max_length": self.max_length, "overlong": self.overlong, "pad_token": self.pad_token}


@dataclass(frozen=True)
class Prepared:
    """An adapted model, its data, and how to score it.

    Attributes:
        model: The model with its adapter.
        data: What `lorascope.measure` takes.
        metrics: What to measure.
        score: Scores the task: an `Evaluation`.
        options: Options of `lorascope.measure` that belong to the data.
        sources: File or package -> hash or version.
        settings: Facts to keep beside the options.
        counts: What encoding left out.
        notes: What a reader must know.
    """

    model: Any
    data: Any
    metrics: list[str]
    score: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def language_model(request: Request) -> Prepared:
    """A causal language model with its task."""
    from lorascope.adapters import attach_adapter, read_adapter_record
    from lorascope.measuring import load_model_and_tokenizer
    from lorascope.measuring.processes import device
    from lorascope.tasks import evaluate_task, load_task

    task = load_task(
        request.task if request.task is not None else "towns",
        prompt=request.prompt,
        data_dir=request.data_dir,
        seed=request.seed,
    )
    split = request.split or ("all" if "all" in task.splits else "test")
    known = read_adapter_record(request.adapter)
    base, tokenizer = load_model_and_tokenizer(
        request.base,
        dtype=request.dtype,
        device=device(),
        share=known.get("share"),
        quantize=_quantize(request, known.get("quantization_config")),
    )
    model = attach_adapter(base, request.adapter, any_base=request.any_base)
    common: dict[str, Any] = {"split": split, **request.lengths}
    scoring = {**common, "limit": request.score_limit, "seed": request.seed, "progress": request.progress}
    return Prepared(
        model,
        task,
        request.metrics if request.metrics is not None else [*DEFAULT_METRICS, "ppl"],
        lambda: evaluate_task(model, tokenizer, task, **scoring),
        {**common, "tokenizer": tokenizer, "limit": request.limit},
        dict(task.sources),
    )


def _quantize(request: Request, recorded: Any) -> Any:
    """How to quantise the base: as asked, or as the adapter was trained, unless it is quantised already."""
    from lorascope.measuring.quantized import is_quantised_model
    from lorascope.tasks.embedded import resolve_model

    if request.quantize == "none":
        return None
    if request.quantize is not None:
        return request.quantize
    return recorded if recorded and not is_quantised_model(resolve_model(request.base)) else None


def classifier(request: Request, kind: str, trained: Sequence[str]) -> Prepared:
    """A classifier of texts or images with its rows.

    Args:
        request: The options.
        kind: ``sequence`` or ``image``.
        trained: Modules that the adapter trained whole (``modules_to_save``).
    """
    from lorascope.adapters import attach_adapter
    from lorascope.core.errors import AdapterError
    from lorascope.measuring.processes import device
    from lorascope.tasks.classification import check_first, score_classifier
    from lorascope.tasks.classifiers import load_classifier
    from lorascope.tasks.labelled import encode_labelled, fit_labels, load_labelled

    _refuse_options(request, kind)
    if request.task is None:
        raise AdapterError(
            f"adapter '{request.adapter}' is of a classifier: give your rows with a label as --task PATH"
        )
    task = load_labelled(request.task, kind)
    split = request.split or ("all" if "all" in task.splits else "test")
    task.rows(split)
    loaded = load_classifier(
        request.base,
        request.adapter,
        kind=kind,
        trained=trained,
        need_head=request.score,
        dtype=request.dtype,
        device=device(),
    )
    task = fit_labels(task, split, loaded)
    chosen: dict[str, Any] = {"seed": request.seed, "lengths": request.lengths}
    encoded = encode_labelled(task, split, loaded, limit=request.limit, **chosen)
    model = attach_adapter(loaded.model, request.adapter, any_base=request.any_base)
    check_first(model, encoded)
    metrics, notes = _metrics(request.metrics, loaded.random_head)
    verbs = {"truncated": "cut to the length limit", "dropped": "left out for their length"}
    lengths = [f"{count} of the rows measured were {verbs[key]}" for key, count in encoded.counts.items() if count]
    facts = {"task": request.task, "split": split, "kind": kind}

    def score() -> Any:
        rows = encode_labelled(task, split, loaded, limit=request.score_limit, **chosen)
        return score_classifier(model, rows, batch_size=request.batch_size, settings=facts, progress=request.progress)

    return Prepared(
        model,
        encoded.loader(request.batch_size),
        metrics,
        score,
        sources=dict(task.sources),
        settings={"kind": kind, "classes": loaded.classes.count, "processor": type(loaded.processor).__name__},
        counts=encoded.counts,
        notes=[*task.notes, *notes, *lengths],
    )


def _refuse_options(request: Request, kind: str) -> None:
    """Options that mean nothing for a classifier are refused, not ignored."""
    from lorascope.core.errors import InputError

    image = kind == "image"
    given = {
        "--prompt": request.prompt != "main",
        "--data-dir": request.data_dir is not None,
        "--lm-eval": request.lm_eval is not None,
        f"--tokens {request.tokens}": request.tokens in (("prompt", "completion", "last") if image else _SPLIT_TOKENS),
        "--max-length": image and request.max_length is not None,
        "--overlong": image and request.overlong != "error",
        "--pad-token": image and request.pad_token is not None,
    }
    for option in (name for name, wrong in given.items() if wrong):
        what = "an image classifier" if image else "a text classifier"
        raise InputError(f"{option} does not apply to {what}, which adapter '{request.adapter}' is of: leave it out")


_SPLIT_TOKENS = ("prompt", "completion")


def _metrics(asked: list[str] | None, random_head: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics that a classifier has, and a sentence about those that it has not."""
    from lorascope.core.errors import InputError
    from lorascope.core.metrics import resolve_groups

    groups = resolve_groups(asked if asked is not None else [*DEFAULT_METRICS, "accuracy"])
    without = {"ppl", "text_ppl"} | ({"ce", "accuracy"} if random_head else set())
    notes = ["perplexity is left out: it is of language models, and a classifier predicts no text"]
    if random_head:
        notes.append(
            f"accuracy and cross-entropy are left out: the classification head has no trained weights ({random_head[0]}), "
            "neither in the base model nor in the adapter"
        )
    kept = [group for group in groups if group not in without]
    if not kept:
        raise InputError(f"a classifier has no {' and no '.join(groups)}: ask for miub_js or other metrics of layers")
    return kept, notes
