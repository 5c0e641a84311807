"""``lorascope measure``: what a saved adapter does to its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def measure_command(
    adapter: Annotated[str, typer.Argument(help="Folder (or hub id) of a LoRA adapter saved by PEFT.")],
    task: Annotated[
        str | None,
        typer.Option(
            help="Known task, or a path to your own JSONL or Parquet rows; of a classifier: to rows with a label or "
            "class folders of images. \\[default: towns, for language models]"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model. \\[default: the one the adapter names]")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="causal, sequence or image. \\[default: by the adapter's task_type, or its base model]"),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Local folder with the rows of a known hub task.")] = None,
    prompt: Annotated[str, typer.Option(help="Prompt: main, prompt1, prompt2, prompt3 or plain.")] = "main",
    split: Annotated[
        str | None, typer.Option(help="train, validation or test. \\[default: test; all rows of a single file]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most rows to measure.")] = 64,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Metrics with commas between, or all. \\[default: miub_js,mi_joint,update_ratio,spectrum,ce,ppl; of a "
            "classifier accuracy instead of ppl]"
        ),
    ] = None,
    variant: Annotated[
        str, typer.Option(help="local (one pass) or base (two, against the model without adapter).")
    ] = "local",
    tokens: Annotated[str, typer.Option(help="Which tokens count: all, prompt, completion or last.")] = "all",
    reduction: Annotated[str, typer.Option(help="miub_js over tokens: mean, sum or sample_mean.")] = "mean",
    score: Annotated[bool, typer.Option(help="Also score the task: accuracy, cross-entropy, perplexity.")] = True,
    score_limit: Annotated[int | None, typer.Option(min=1, help="Most rows to score. \\[default: all]")] = None,
    lm_eval: Annotated[str | None, typer.Option(help="Task names to score with lm-eval too, with commas.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a forward pass.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Longest row in tokens. \\[default: the context]")
    ] = None,
    overlong: Annotated[str, typer.Option(help="Longer rows: error, drop or truncate (counted).")] = "error",
    pad_token: Annotated[str | None, typer.Option(help="Pad token where the tokenizer has none; eos works.")] = None,
    joint_dim: Annotated[int, typer.Option(min=2, help="Wider layers are lumped to this many groups.")] = 1024,
    any_base: Annotated[bool, typer.Option(help="Measure on a base the adapter was not trained on.")] = False,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Quantise the base: a name as in lorascope train, or none. \\[default: as the adapter was trained]"
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Seed of samples and projections.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and report.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Measure a LoRA adapter: information per layer, update size, rank used, cross-entropy, accuracy.

    Takes adapters of language models and of classifiers of texts and images. Works under  accelerate launch -m lorascope
    measure ...  with the same numbers.
    """
    from lorascope.cli._kinds import DEFAULT_METRICS, Request, classifier, language_model
    from lorascope.core.files import require_empty_dir
    from lorascope.core.metrics import resolve_groups

    names = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    resolve_groups(DEFAULT_METRICS if names is None else names)
    if out is not None:
        require_empty_dir(out, remedy="choose another --out, or empty it")

    from lorascope.adapters import read_adapter_config, read_adapter_record
    from lorascope.tasks.kinds import choose_kind

    config = read_adapter_config(adapter)
    base = model or _base_of(adapter, config)
    found = choose_kind(adapter, getattr(config.task_type, "value", config.task_type), base, kind)
    request = Request(
        adapter=adapter,
        base=base,
        task=task,
        metrics=names,
        prompt=prompt,
        data_dir=data_dir,
        split=split,
        limit=limit,
        score=score,
        score_limit=score_limit,
        tokens=tokens,
        lm_eval=lm_eval,
        max_length=max_length,
        overlong=overlong,
        pad_token=pad_token,
        batch_size=batch_size,
        any_base=any_base,
        dtype=dtype,
        seed=seed,
        progress=progress,
        quantize=quantize,
    )

    from lorascope.measuring import measure
    from lorascope.measuring.processes import is_main_process

    lm_eval_names = [part.strip() for part in (lm_eval or "").split(",") if part.strip()]
    if lm_eval_names:
        from lorascope.tasks import require_lm_eval_tasks

        require_lm_eval_tasks(lm_eval_names)
    trained = list(config.modules_to_save or [])
    prepared = language_model(request) if found == "causal" else classifier(request, found, trained)
    result = measure(
        prepared.model,
        prepared.data,
        metrics=prepared.metrics,
        variant=variant,
        tokens=tokens,
        reduction=reduction,
        batch_size=batch_size,
        joint_dim=joint_dim,
        seed=seed,
        progress=progress,
        **prepared.options,
    )
    if not is_main_process():
        return
    result.provenance.update(model=base, adapter=adapter, data_sha256=prepared.sources)
    result.settings.update(prepared.settings)
    result.counts.update(prepared.counts)
    result.warnings.extend(prepared.notes)
    named = config.base_model_name_or_path
    if model is not None and named and model != named and not read_adapter_record(adapter):
        result.warnings.append(f"the adapter names base model '{named}', and was measured on '{model}'")
    if found == "image":
        result.warnings.append(
            f"an image has no tokens: the {result.counts['tokens']} counted as tokens are rows of the first adapted layer, "
            "that is patches with the model's own extra rows, such as a class token"
        )
    if out is not None:
        result.save(out / "result.json")  # kept whatever happens while scoring
    if score:
        scored = prepared.score()
        result.totals.update(scored.metrics)
        result.counts["questions"] = scored.counts["samples"]
        result.settings["evaluation"] = {**scored.settings, "errors": scored.errors}
    elif "accuracy" in result.totals:
        result.counts["questions"] = result.counts["samples"]  # of a classifier, from the pass that measures
    if lm_eval_names:
        from lorascope.tasks import lm_eval_scores

        tokenizer = prepared.options["tokenizer"]
        result.settings["lm_eval"] = lm_eval_scores(prepared.model, tokenizer, lm_eval_names, limit=score_limit)
    _show(result, f"{adapter} on {task or 'towns'}", out, as_json)


def _show(result: Any, title: str, out: Path | None, as_json: bool) -> None:
    """Print the measurement, and write it with its report."""
    import json

    from rich.console import Console

    from lorascope.cli._console import largest, say_warnings, totals
    from lorascope.report import write_report

    console = Console()
    if as_json:
        console.print_json(json.dumps(result.to_dict(), allow_nan=False))
    else:
        console.print(totals(result, title=f"{title}: {result.counts['samples']} rows"))
        if (table := largest(result)) is not None:
            console.print(table)
        if "lm_eval" in result.settings:
            console.print_json(json.dumps(result.settings["lm_eval"]))
        say_warnings(console, [result])
    if out is not None:
        result.save(out / "result.json")
        report = write_report([result], out / "report.html", title=title)
        if not as_json:
            console.print(f"report: {report}", soft_wrap=True, highlight=False, markup=False)


def _base_of(adapter: str, config: Any) -> str:
    """The base model that an adapter names, by lorascope's own record first."""
    from lorascope.adapters import read_adapter_record
    from lorascope.core.errors import AdapterError

    named = read_adapter_record(adapter).get("base_model") or config.base_model_name_or_path
    if not named:
        raise AdapterError(f"adapter '{adapter}' names no base model: pass it with --model")
    return str(named)
