"""The paper's claims on the numbers that the paper prints."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lorascope.scaling.claims import Claim, undecided
from lorascope.scaling.claims_cells import Units, curves_of, make_units, origin_of
from lorascope.scaling.claims_rules import (
    Bootstrap,
    Quantity,
    follows,
    follows_better,
    law_better,
    less_spread,
    steady,
)
from lorascope.scaling.claims_sets import in_order, stays_close
from lorascope.scaling.claims_theorem import LN2, printed_bound, random_joints, valid_bounds
from lorascope.scaling.paper import paper_averages, paper_mutual_information, paper_prompts, paper_table

MIUB = Quantity("miub", "MIUB as printed", "MIUB")
CE = Quantity("ce", "CE", "cross-entropy")
ACCURACY = Quantity("accuracy", "accuracy", "Accuracy")
PROMPT_ORDER = ("prompt1", "main", "prompt3", "prompt2")


def claims_paper(*, n_boot: int = 10_000, seed: int = 0) -> list[Claim]:
    """Recompute each claim of the paper from its own Tables 1 to 3.

    Args:
        n_boot: Resamples of the bootstrap intervals.
        seed: Of the resampling, and of the random distributions on which Theorem 3 is tried.

    Returns:
        One `Claim` each, in the order of the paper's argument. The rules stand in docs/science/claims.md.

    Raises:
        InputError: ``n_boot`` is below 1000.

    Example:
        >>> found = {claim.key: claim for claim in claims_paper(n_boot=1000)}
        >>> found["falls_rank"].details["falls"], round(found["follows_rank"].value, 2)
        (6, -0.01)

    References:
        arXiv 2501.03152.
    """
    boot = Bootstrap(n_boot, seed)
    claims: list[Claim] = []
    for axis in ("rank", "size"):
        units = _units(paper_table(), axis, ["task", "model"])
        claims += [
            steady(f"falls_{axis}", units, MIUB),
            steady(f"ce_falls_{axis}", units, Quantity("ce", "CE", "Cross-entropy")),
            steady(f"accuracy_rises_{axis}", units, ACCURACY, falls=False),
        ]
    claims += [
        undecided(
            "falls_length",
            "MIUB falls with longer data.",
            MIUB.name,
            "the paper shows this in Figure 3 only and prints no numbers: run `lorascope sweep` over `length`",
        ),
        undecided(
            "falls_data",
            "MIUB falls with more training rows.",
            MIUB.name,
            "Eq. 8 has a term for it, but no table or figure varies the number of training rows",
        ),
    ]
    for axis in ("rank", "size"):
        units = _units(paper_table(), axis, ["task", "model"])
        claims += [
            law_better(f"law_{axis}_ce", units, MIUB, CE, boot),
            less_spread(f"spread_{axis}_ce", units, MIUB, CE),
        ]
    claims += [
        undecided(
            "law_size_ppl",
            "MIUB keeps to a steady fall over model size better than perplexity.",
            MIUB.name,
            "perplexities are shown in Figure 2 only and not printed",
        ),
        undecided(
            "noise_ce",
            "MIUB varies less from seed to seed than cross-entropy, relative to its size.",
            MIUB.name,
            "one run a cell is printed, without a seed: the part of each difference that is noise is unknown",
        ),
    ]
    for axis in ("rank", "size"):
        units = _units(paper_table(), axis, ["task", "model"])
        claims += [
            follows(f"follows_{axis}", units, MIUB, boot),
            follows_better(f"follows_{axis}_ce", units, MIUB, CE, boot),
        ]
    claims += [_close(), _table3_is_theorem3(), *_prompts()]
    mi, js, lower, upper = random_joints(1000, seed)
    claims += [
        printed_bound(mi, [LN2 * value for value in js], "random joint distributions"),
        valid_bounds(lower, mi, upper, "random joint distributions"),
        _averages(),
    ]
    return claims


def _units(table: pd.DataFrame, axis: str, cell: list[str]) -> Units:
    """One half of a printed table as units; a model that shares fewer layers is larger."""
    rows = table[table["axis"] == axis]
    column, levels = ("R", rows["rank"]) if axis == "rank" else ("N", -rows["share"])
    metrics = [name for name in ("accuracy", "ce", "miub") if name in rows]
    sweep = rows[[*cell, *metrics]].assign(**{column: levels.astype(float)})
    return make_units(axis, curves_of(sweep, axis, metrics), origin_of(sweep))


def _close() -> Claim:
    table = paper_mutual_information()
    pairs = [(float(a), float(b)) for a, b in zip(table["mi"], table["miub"], strict=True)]
    note = " One model, and the paper itself expects larger gaps elsewhere; see also the next claim."
    return stays_close("close", MIUB, pairs, "printed settings", note)


def _table3_is_theorem3() -> Claim:
    """Whether Table 3's MIUB can be the bound of Theorem 3: that is never above (ln 2)^2 / 2 times the information."""
    table = paper_mutual_information()
    ratios = (table["miub"] / table["mi"]).tolist()
    most = LN2**2 / 2
    hold = sum(ratio <= most for ratio in ratios)
    return Claim(
        key="table3_is_theorem3",
        statement="The MIUB of Table 3 is the bound of Theorem 3, log(2) JS of the joint distribution.",
        verdict="contradicted" if hold < len(ratios) else "supported",
        quantity=MIUB.name,
        statistic="largest MIUB / MI",
        value=max(ratios),
        low=math.nan,
        high=math.nan,
        n=len(ratios),
        reference=most,
        explanation=f"log(2) JS is at most {most:.3f} times the mutual information, whatever the distribution; the table "
        f"prints {min(ratios):.5f} to {max(ratios):.5f} times. Whatever was computed, it was another quantity.",
        details={"ratios": ratios},
    )


def _prompts() -> list[Claim]:
    table = paper_prompts()
    wide = table.assign(share=table["share"].fillna(0), rank=table["rank"].fillna(0)).pivot_table(
        index=["axis", "rank", "share"], columns="prompt", values="miub"
    )
    sets = wide[list(PROMPT_ORDER)].to_numpy(dtype=float).tolist()
    claims = [in_order("prompt_order", MIUB, sets, PROMPT_ORDER, "printed columns")]
    for axis in ("rank", "size"):
        claim = steady(f"prompt_falls_{axis}", _units(table, axis, ["prompt"]), MIUB)
        words = {"statement": f"{claim.statement[:-1]} under every prompt."}
        claims.append(Claim.from_dict({**claim.to_dict(), **words}))
    return claims


def _averages() -> Claim:
    """Whether the printed AVG rows are the means of the printed rows, within rounding."""
    keys = ["model", "axis", "rank", "share"]
    rows, printed = (t.fillna({"rank": 0, "share": 0}) for t in (paper_table(), paper_averages()))
    means, printed = rows.groupby(keys)[["accuracy", "ce", "miub"]].mean(), printed.set_index(keys)
    digits = {"accuracy": 0.001, "ce": 0.001, "miub": 0.1}
    gaps = {name: (means[name] - printed[name]).abs() for name in digits}
    agree = {name: int((gaps[name] <= size * (1 + 1e-6)).sum()) for name, size in digits.items()}
    n = len(printed)
    return Claim(
        key="averages",
        statement="The AVG rows of Table 1 are the means of its five tasks.",
        verdict="supported" if min(agree.values()) == n else "contradicted",
        quantity="Table 1",
        statistic="share of averages that agree to the last printed digit",
        value=sum(agree.values()) / (n * len(agree)),
        low=math.nan,
        high=math.nan,
        n=n * len(agree),
        reference=1.0,
        explanation=f"Accuracy agrees in {agree['accuracy']} of {n} columns, cross-entropy in {agree['ce']}, MIUB in "
        f"{agree['miub']} (off by up to {float(np.max(gaps['miub'])):.1f}). The claims above use the rows.",
        details={"agree": agree},
    )
