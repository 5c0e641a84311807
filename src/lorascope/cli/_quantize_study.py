"""What ``lorascope quantize-study`` says and draws for each study, and how it loads models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.markup import escape
from rich.table import Table

from lorascope.cli._console import number
from lorascope.core.errors import ModelError
from lorascope.figures.quantize import bars_info, plot_series, series_info
from lorascope.quantization.starts import STARTS
from lorascope.quantization.studies import NOISE, QuantizationStudy
from lorascope.report.sections import Section
from lorascope.report.sections import Table as PageTable

_COLUMNS = {
    "model": "model",
    "kind": "kind of layer",
    "layers": "layers",
    "variant": "weights",
    "mode": "pass",
    "batch": "rows",
    "length": "tokens",
    "bits": "bits",
    "n": "n",
    "lam": "lambda",
    "entropy_bits": "entropy, bits",
    "gain_bits": "gain, bits",
    "gain_kept": "of the paper's gain",
    "error_ratio": "squared error, ratio",
    "seconds_per_million": "s a million weights",
    "levels_bits": "log2 levels",
    "ideal_bits": "ideal code",
    "plain_bits": "no shift",
    "icq_bits": "ICQ",
    "pooled_plain_bits": "pooled, no shift",
    "pooled_icq_bits": "pooled, ICQ",
    "pooled_gain_bits": "pooled gain",
    "half_gain_bits": "gain, half that chose",
    "other_half_gain_bits": "gain, other half",
    "off_centre": "mean off median, sd",
    "skewness": "skewness",
    "excess_kurtosis": "excess kurtosis",
    "beyond_4_sigma": "beyond 4 sd",
    "not_normal": "blocks not normal",
    "weights_mib": "weights, MiB",
    "peak_mib": "rise in a pass, MiB",
    "seconds": "seconds",
    "time_ratio": "time, ratio",
} | {
    f"{start}{after}": f"from {start}{word}"
    for start in STARTS
    for after, word in (("", ""), ("_searched", ", searched"))
}
_SHAPE = ("model", "kind", "layers", "off_centre", "skewness", "excess_kurtosis", "beyond_4_sigma", "not_normal")
_STARTS = ("model", "kind", "layers", *(f"{start}{after}" for start in STARTS for after in ("", "_searched")))
_VIEWS = {
    "ceiling": (
        (
            "Reached and possible",
            ("model", "bits", "levels_bits", "ideal_bits", "plain_bits", "icq_bits", "gain_bits", "error_ratio"),
        ),
        (
            "What of the gain is noise",
            ("model", "bits", "gain_bits", "pooled_gain_bits", "half_gain_bits", "other_half_gain_bits"),
        ),
    ),
    "median": (("Shape of the weights", _SHAPE), ("Entropy of the codes by start, bits", _STARTS)),
}
_ASKED = {
    "sensitivity": "How much do lambda and n matter?",
    "ceiling": "How much entropy is there to gain, and what of the gain is noise?",
    "median": "Is the median where to start?",
    "resources": "What do quantised weights cost and save?",
}
_HOW = {
    "sensitivity": "Entropy is the mean over blocks of the entropy of a block's codes. The gain is over no shift; a share "
    "of 1 is the gain of the paper's n = 100 and lambda = 0.1. Squared error is over that without a shift; above 1 is "
    "worse.",
    "ceiling": "Ideal code: what blocks of this size reach on average if all levels are equally likely; log2 of the levels "
    "is out of reach on average, because samples are never even. Pooled: the entropy of all codes of a layer together, "
    "which hardly depends on the luck of small blocks. Halves: the shift is chosen on one half of each block, and its gain "
    "over the median is counted on that half and on the other. What does not carry over to the other half was noise.",
    "median": "A start is where the window of shifts is centred; 'from' is the entropy at the start itself. Normal numbers "
    "stand beside the model: what they show as well is no property of the weights.",
    "resources": "Rise in a pass is how far memory rises above what it was before. Backward is forward and backward to the "
    "embeddings, which a step of training adapters needs but for the adapters. Other work on the machine changes the "
    "seconds.",
}


def table(study: QuantizationStudy) -> Table:
    """The study's rows for the terminal; of the median study one row a model."""
    rows = study.records
    if study.study == "median":
        rows = [row for row in rows if row["kind"] == "all" or row["layers"] == 1]
    keys = [key for key in _COLUMNS if key in rows[0] and not (study.study == "median" and key in ("kind", "layers"))]
    tall = len(keys) > 10
    shown = Table(title=_ASKED[study.study], title_justify="left", header_style="bold")
    if tall:  # one column a model, as lines are not that long
        shown.add_column("")
        heads = [f"{row['model']}{' ' + str(row['bits']) + ' bits' if 'bits' in row else ''}" for row in rows]
        for head in heads:
            shown.add_column(escape(head), justify="right")
        for key in keys:
            if key not in ("model", "bits"):
                shown.add_row(_COLUMNS[key], *(_cell(row[key]) for row in rows))
        return shown
    for key in keys:
        shown.add_column(_COLUMNS[key], justify="left" if isinstance(rows[0][key], str) else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(row[key]) for key in keys))
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return escape(value)
    return str(value) if isinstance(value, int) else number(value)


def headline(study: QuantizationStudy) -> str:
    """The answer in a sentence or two."""
    rows = study.records
    if study.study == "sensitivity":
        usual = [row for row in rows if row["gain_kept"] >= 0.95 and row["lam"] <= 0.1]
        words = []
        for model in dict.fromkeys(row["model"] for row in rows):
            fewest = min((row["n"] for row in usual if row["model"] == model), default=None)
            widest = max((row for row in rows if row["model"] == model), key=lambda row: row["entropy_bits"])
            least = "no n that was tried keeps" if fewest is None else f"n = {fewest} keeps"
            words.append(
                f"{model}: {least} 95 % of the gain of n = 100 within lambda 0.1; the highest entropy, "
                f"{widest['entropy_bits']:.3f} bits, is at n = {widest['n']}, lambda = {widest['lam']:g}, with "
                f"{widest['error_ratio']:.3f} times the squared error of no shift."
            )
        return " ".join(words)
    if study.study == "ceiling":
        most = max(row["bits"] for row in rows)
        words = []
        for row in rows:
            if row["bits"] == most:
                words.append(
                    f"{row['model']} at {most} bits: {row['icq_bits']:.3f} bits with ICQ, {row['plain_bits']:.3f} without, "
                    f"{row['ideal_bits']:.3f} for an ideal code; of a gain chosen on half of each block "
                    f"{_share(row['other_half_gain_bits'], row['half_gain_bits'])} carries over to the other half."
                )
        return " ".join(words)
    if study.study == "median":
        words = []
        for row in rows:
            if row["kind"] == "all" or row["layers"] == 1:
                best = max(STARTS, key=lambda start: row[f"{start}_searched"])
                words.append(
                    f"{row['model']}: searching from the median gives {row['median_searched']:.3f} bits; the best of the "
                    f"starts is the {best} with {row[f'{best}_searched']:.3f}; {row['not_normal']:.0%} of blocks are not "
                    "normal at 5 %."
                )
        return " ".join(words)
    stored = {row["variant"]: row["weights_mib"] for row in rows}
    sizes = ", ".join(f"{name} {number(size)} MiB" for name, size in stored.items())
    first = rows[0]["variant"]
    slow = ", ".join(
        f"{name} {min(ratios):.2f} to {max(ratios):.2f} times"
        for name in stored
        if name != first and (ratios := [row["time_ratio"] for row in rows if row["variant"] == name])
    )
    return f"Weights: {sizes}." + (f" Time of a pass over {first}: {slow}." if slow else "")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 and part > 0 else "none"


def sections(study: QuantizationStudy) -> list[Section]:
    """Parts of the study's page."""
    views = _VIEWS.get(study.study, (("Everything", tuple(key for key in _COLUMNS if key in study.records[0])),))
    tables = [_page_table(title, study.records, keys) for title, keys in views]
    found = [
        Section(study.study, _ASKED[study.study], (_HOW[study.study],), tables=tuple(tables), figures=_figures(study))
    ]
    if study.layers:
        keys = ("model", "layer", *(key for key in (*_SHAPE[3:], *_STARTS[3:]) if key in study.layers[0]))
        found.append(Section("layers", "Every layer", tables=(_page_table("By layer", study.layers, keys),)))
    return found


def _page_table(title: str, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> PageTable:
    cells = tuple(
        tuple(str(row[key]) if isinstance(row[key], str | int) else number(row[key]) for key in keys) for row in rows
    )
    return PageTable(title, tuple(_COLUMNS.get(key, key) for key in keys), cells)


def _figures(study: QuantizationStudy) -> dict[str, tuple[Any, str]]:
    rows = study.records
    if study.study == "sensitivity":
        found = {}
        for model in dict.fromkeys(row["model"] for row in rows):
            part = [row for row in rows if row["model"] == model]
            for key, label in (("gain_bits", "entropy gained, bits"), ("error_ratio", "squared error over no shift")):
                info = series_info(part, x="n", y=key, by="lam", x_label="n", y_label=label, name="lambda {}")
                found[f"{model}: {label}"] = (plot_series(info), "Each line is a width of the window.")
        return found
    if study.study == "ceiling":
        bars = {"plain_bits": "no shift", "icq_bits": "ICQ", "ideal_bits": "ideal code", "levels_bits": "log2 levels"}
        return {
            f"{k} bits": (
                plot_series(
                    bars_info(
                        [row for row in rows if row["bits"] == k], bars, x="model", x_label="", y_label="entropy, bits"
                    )
                ),
                "Mean entropy of a block's codes.",
            )
            for k in dict.fromkeys(row["bits"] for row in rows)
        }
    if study.study == "median":
        named = [
            {**row, "name": row["model"] if row["model"] == NOISE else f"{row['model']} {row['kind']}"} for row in rows
        ]
        bars = {f"{start}_searched": f"from {start}" for start in STARTS}
        info = bars_info(named, bars, x="name", x_label="", y_label="entropy after the search, bits")
        return {"starts": (plot_series(info), "Means over layers.")}
    found = {}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        for batch in dict.fromkeys(row["batch"] for row in rows):
            part = [row for row in rows if row["mode"] == mode and row["batch"] == batch]
            for key, label in (("seconds", "seconds"), ("peak_mib", "rise of memory, MiB")):
                info = series_info(part, x="length", y=key, by="variant", x_label="tokens a row", y_label=label)
                found[f"{mode}, {batch} rows: {label}"] = (plot_series(info), "Median of the timed passes.")
    return found


def loader(model: str, *, bits: int, dtype: str, device: str) -> tuple[Callable[[str], Any], int]:
    """What loads a variant of a model, and the size of its vocabulary.

    Raises:
        ModelError: The model has no vocabulary, or the variant cannot be loaded.
        MissingDependencyError: bitsandbytes is asked for and not installed.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    from lorascope.core.errors import InputError, unknown_name
    from lorascope.core.optional import require
    from lorascope.measuring.quantized import compute_alike_everywhere, is_quantised_model
    from lorascope.quantization import ICQConfig
    from lorascope.tasks.embedded import DTYPES, quiet_transformers, resolve_model, why_not

    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if device.partition(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not torch.cuda.is_available()):
        raise InputError(f"device '{device}' is not there: take cpu")
    source = resolve_model(model)
    if is_quantised_model(source):
        raise ModelError(f"'{model}' is quantised already: give the dense model, which is quantised for each variant")
    quantise = ICQConfig(bits=bits)

    def load(variant: str) -> Any:
        options: dict[str, Any] = {"dtype": DTYPES[dtype], "trust_remote_code": False}
        if variant == "nf4":
            require("bitsandbytes", install="lorascope[quantize]", purpose="the variant nf4")
            options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=DTYPES[dtype],
            )
        elif variant == "icq":
            options["quantization_config"] = quantise
        with quiet_transformers(reports=True):
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, device_map=device, **options)
        compute_alike_everywhere(loaded)
        return loaded.eval()

    try:
        with quiet_transformers(reports=True):
            vocabulary = getattr(AutoConfig.from_pretrained(source, trust_remote_code=False), "vocab_size", None)
    except (OSError, ValueError) as error:
        raise ModelError(why_not(model, "model", error)) from error
    if vocabulary is None:
        raise ModelError(f"'{model}' has no vocabulary: give a causal language model")
    return load, int(vocabulary)
