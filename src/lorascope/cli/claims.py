"""``lorascope claims``: the claims of arXiv 2501.03152, tested on its own numbers or on a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lorascope.scaling.claims import Claim
    from lorascope.scaling.ranking import MetricRank

SCHEMA_VERSION = 1
_COLOURS = {"supported": "green", "contradicted": "red", "not supported": "yellow", "undecided": "dim"}
_DETAIL = ("law_", "spread_", "noise_")
_RIVALS = ("follows_rank_ce", "follows_rank_ppl", "follows_size_ce", "follows_size_ppl")
_LEVEL_NOTE = (
    "Each verdict stands at 95 %: of twenty claims about pure noise one would be decided wrongly. "
    "Rules: docs/science/claims.md."
)


def claims_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="paper|DIR|FILE", help="paper, the folder of a sweep, or a CSV or Parquet file of runs."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for claims.json and claims.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON and nothing else.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Tell every claim of a sweep in words.")] = False,
    n_boot: Annotated[int, typer.Option(min=1000, help="Resamples of each bootstrap interval.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
) -> None:
    """Test the claims of the MIUB paper: on the tables it prints, or on your own runs.

    Every claim gets a verdict (supported, contradicted, not supported, undecided), its statistic with a 95 % interval and a
    sentence. A sweep also gets its metrics ranked by how well they follow accuracy.
    """
    import json

    from rich.console import Console

    ledger = make_ledger(source, n_boot=n_boot, seed=seed)
    console = Console()
    if as_json:
        typer.echo(json.dumps(ledger, allow_nan=False, ensure_ascii=False, indent=2))
    else:
        show_ledger(console, ledger, full=full)
    if out is not None:
        from lorascope.core.files import write_json
        from lorascope.report.ledger import ledger_sections
        from lorascope.report.page import write_page

        write_json(out / "claims.json", ledger)
        counts = ", ".join(f"{count} {verdict}" for verdict, count in ledger["verdicts"].items())
        page = write_page(out / "claims.html", ledger_sections(ledger), title=ledger["title"], headline=f"{counts}.")
        if not as_json:
            console.print(f"ledger: {page}", soft_wrap=True, highlight=False, markup=False)


def make_ledger(source: str, *, n_boot: int, seed: int) -> dict[str, Any]:
    """The ledger as a JSON-ready mapping.

    Args:
        source: ``"paper"``, or the path of a sweep or a table.
        n_boot: Resamples of each bootstrap interval.
        seed: Of the resampling.

    Returns:
        ``source``, ``title``, ``verdicts`` (counts), ``claims``, and for a sweep ``ranking`` and ``watch``.

    Raises:
        DataError: The table cannot be read.
        InputError: It has no finished run or none of the axes.
    """
    from lorascope.core.errors import InputError
    from lorascope.scaling.claims import count_verdicts

    ranked: list[MetricRank] = []
    watch = None
    if source == "paper":
        from lorascope.scaling.claims_paper import claims_paper

        title = "The claims of arXiv 2501.03152 on the numbers it prints"
        claims = claims_paper(n_boot=n_boot, seed=seed)
    else:
        from lorascope.scaling.claims_sweep import claims_sweep
        from lorascope.scaling.ranking import rank_metrics, which_to_watch
        from lorascope.scaling.table import read_table

        title = f"The claims of arXiv 2501.03152 on {source}"
        table = read_table(source)
        claims = claims_sweep(table, n_boot=n_boot, seed=seed)
        try:
            ranked = rank_metrics(table, n_boot=n_boot // 5, seed=seed)
            watch = which_to_watch(ranked)
        except InputError as reason:
            watch = f"Metrics cannot be ranked: {reason}."
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "claims",
        "source": source,
        "title": title,
        "level": 0.95,
        "n_boot": n_boot,
        "seed": seed,
        "verdicts": count_verdicts(claims),
        "claims": [claim.to_dict() for claim in claims],
        "ranking": [entry.to_dict() for entry in ranked],
        "watch": watch,
    }


def split_claims(ledger: dict[str, Any]) -> tuple[list[Claim], dict[str, list[Claim]]]:
    """The claims that had data, in order, and those that had none, by reason."""
    from lorascope.scaling.claims import Claim

    told: list[Claim] = []
    silent: dict[str, list[Claim]] = {}
    for values in ledger["claims"]:
        claim = Claim.from_dict(values)
        if claim.verdict == "undecided" and claim.value != claim.value:
            silent.setdefault(claim.explanation, []).append(claim)
        else:
            told.append(claim)
    return told, silent


def show_ledger(console: Any, ledger: dict[str, Any], *, full: bool = False) -> None:
    """Print a ledger; ``full`` tells every claim of a sweep in words."""
    from rich.markup import escape

    told, silent = split_claims(ledger)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in ledger["verdicts"].items())
    console.print(f"[bold]{escape(ledger['title'])}[/bold]\n{counts}. {_LEVEL_NOTE}")
    if (overview := _overview(told)) is not None:
        console.print(overview)
    shown = (
        told
        if full or overview is None
        else [c for c in told if not c.key.startswith(_DETAIL) and c.key not in _RIVALS]
    )
    if shown:
        scope = usual_scope(shown)
        console.print(escape(scope) if scope else "", highlight=False)
        console.print(_table(shown, scope))
    if len(shown) < len(told):
        console.print(
            f"{len(told) - len(shown)} comparisons with cross-entropy and perplexity stand in the overview only (--full)."
        )
    if silent:
        console.print("[bold]Nothing to judge by[/bold]")
        for reason, claims in silent.items():
            names = ", ".join(dict.fromkeys(f"{claim.key} ({claim.quantity})" for claim in claims))
            console.print(f"  {escape(reason)} [dim]{escape(names)}[/dim]")
    if ledger["watch"]:
        console.print(f"\n[bold]Which metric to watch?[/bold] {escape(ledger['watch'])}")
    if ledger["ranking"]:
        console.print(_ranking(ledger["ranking"]))


def usual_scope(claims: Sequence[Claim]) -> str:
    """The scope that most claims share; empty if none has one."""
    scopes = [claim.scope for claim in claims if claim.scope]
    return max(dict.fromkeys(scopes), key=scopes.count, default="")


def _overview(claims: Sequence[Claim]) -> Table | None:
    """One row a claim, one column a quantity; None where each claim has one quantity only (the paper's tables)."""
    from rich.table import Table

    from lorascope.scaling.claims_sweep import QUANTITIES

    found: dict[str, dict[str, Claim]] = {}
    for claim in claims:
        if claim.quantity in [quantity.name for quantity in QUANTITIES]:
            found.setdefault(claim.key, {})[claim.quantity] = claim
    if not found:
        return None
    table = Table(title="The paper's MIUB, read in three ways", title_justify="left", header_style="bold")
    table.add_column("claim")
    for quantity in QUANTITIES:
        table.add_column(f"{quantity.name}\n[dim]{quantity.metric}[/dim]", no_wrap=True)
    for sides in found.values():
        first = next(iter(sides.values()))
        word = next(quantity.word for quantity in QUANTITIES if quantity.name == first.quantity)
        cells = [_coloured(sides[q.name].verdict) if q.name in sides else "-" for q in QUANTITIES]
        table.add_row(first.statement.removeprefix(word).strip().rstrip("."), *cells)
    return table


def _coloured(verdict: str) -> str:
    return f"[{_COLOURS[verdict]}]{verdict}[/{_COLOURS[verdict]}]"


def _table(claims: Sequence[Claim], scope: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold", show_lines=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim, and what was found")
    table.add_column("statistic", justify="right", no_wrap=True)
    for claim in claims:
        words = claim.explanation + (f" {claim.scope}" if claim.scope and claim.scope != scope else "")
        table.add_row(
            _coloured(claim.verdict),
            f"[bold]{escape(claim.statement)}[/bold]\n{escape(words)}",
            "\n".join(_figures(claim)),
        )
    return table


def _figures(claim: Claim) -> list[str]:
    """The statistic, its interval, what it is held against, and the number of units."""
    lines = [f"{claim.value:.3g}"]
    if claim.low == claim.low:
        lines.append(f"{claim.low:.2f} to {claim.high:.2f}")
    if claim.reference is not None:
        lines.append(f"against {claim.reference:.2g}")
    return [*lines, f"n = {claim.n}"]


def _ranking(ranked: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(header_style="bold")
    for name in ("metric", "more accuracy goes with", "tau", "95 % interval", "behind the first", "pairs of runs"):
        table.add_column(name, justify="left" if name in ("metric", "more accuracy goes with") else "right")
    for place, entry in enumerate(ranked):
        known = entry["low"] is not None
        behind = "-" if place == 0 or entry["behind_low"] is None else "yes" if entry["behind_low"] > 0 else "not sure"
        table.add_row(
            entry["label"],
            entry["better"] + (" (from these runs)" if entry["chosen"] else ""),
            f"{entry['tau']:+.2f}",
            f"{entry['low']:+.2f} to {entry['high']:+.2f}" if known else "too few runs",
            behind,
            f"{entry['pairs']:,}",
        )
    return table
