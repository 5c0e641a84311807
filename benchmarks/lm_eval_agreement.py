"""Score the same rows with lorascope and with lm-eval: do they agree, and how long does each take?

python benchmarks/lm_eval_agreement.py                                   # towns, embedded model
python benchmarks/lm_eval_agreement.py --task path/to/arc_easy --prompt plain --limit 200 --out result.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from lorascope.core import provenance
from lorascope.tasks import PROMPTS, evaluate_task, lm_eval_scores, load_task, task_to_lm_eval
from lorascope.tasks.embedded import load_model_and_tokenizer


def compare(model: Any, tokenizer: Any, name: str, prompt: str, limit: int | None) -> dict[str, Any]:
    """Both scorings of one task and prompt."""
    task = load_task(name, prompt=prompt)
    start = time.perf_counter()
    ours = evaluate_task(model, tokenizer, task, limit=limit, progress=False)
    middle = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        written = task_to_lm_eval(task, folder, limit=limit)
        prepared = time.perf_counter()
        theirs = lm_eval_scores(model, tokenizer, [written], include_path=folder, batch_size=64)[written]
        end = time.perf_counter()
    return {
        "task": Path(name).name,
        "prompt": prompt,
        "rows": ours.counts["samples"],
        "accuracy": ours.metrics["accuracy"],
        "lm_eval_acc": theirs["acc"],
        "accuracy_norm": ours.metrics["accuracy_norm"],
        "lm_eval_acc_norm": theirs["acc_norm"],
        "accuracy_se": ours.errors["accuracy"],
        "ce_nats": ours.metrics["ce"],
        "seconds": round(middle - start, 2),
        "lm_eval_seconds": round(end - prepared, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="embedded name, folder or hub id")
    parser.add_argument("--task", action="append", help="name, or folder of rows; can be given several times")
    parser.add_argument("--prompt", action="append", choices=PROMPTS, help="default: plain and main")
    parser.add_argument("--limit", type=int, default=100, help="rows of each task (a seeded sample)")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    model, tokenizer = load_model_and_tokenizer(options.model)
    evaluate_task(model, tokenizer, load_task("towns"), limit=8, progress=False)  # warm up
    results = [
        compare(model, tokenizer, name, prompt, options.limit)
        for name in options.task or ["towns"]
        for prompt in options.prompt or ["plain", "main"]
    ]
    for result in results:
        print(json.dumps(result))
    if options.out:
        record = provenance.collect(extra={"model": options.model, "results": results})
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    different = [
        result
        for result in results
        if result["accuracy"] != result["lm_eval_acc"] or result["accuracy_norm"] != result["lm_eval_acc_norm"]
    ]
    print(f"{len(results) - len(different)} of {len(results)} agree exactly")


if __name__ == "__main__":
    main()
