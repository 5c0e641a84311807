"""The numbers that arXiv 2501.03152 prints, as tidy tables. Figures are facts; every sentence here is our own."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

_INTEGERS = ("rank", "share")


def paper_table() -> pd.DataFrame:
    """Table 1 of the paper: accuracy, cross-entropy and MIUB of five tasks and two models.

    Returns:
        70 rows with ``task`` (ARCE, ARCC, Hel, PIQA, Win), ``model`` (Phi3, LLaMA3), ``axis`` (which half of the table:
        ``"rank"`` or ``"size"``), ``rank`` (32, 128, 512; missing in the size half, where the paper does not name it),
        ``share`` (8, 4, 2, 1 layers that share their weights; missing in the rank half), ``accuracy`` (fraction), ``ce`` (as
        printed, unit not stated), ``miub`` (as printed) and ``note`` (a misprint; columns that repeat the same run).

    Example:
        >>> table = paper_table()
        >>> len(table), table[table["note"].str.startswith("printed")]["miub"].item()
        (70, 3779.9)

    References:
        arXiv 2501.03152, Table 1. The cell ARCE, LLaMA3, share 8 is printed "3779.9.2" and read as 3779.9.
    """
    return _read("table1.csv")


def paper_averages() -> pd.DataFrame:
    """The AVG rows of Table 1, as printed: they are not all the means of the printed rows.

    Returns:
        14 rows with ``model``, ``axis``, ``rank``, ``share``, ``accuracy``, ``ce`` and ``miub``.

    Example:
        >>> len(paper_averages())
        14

    References:
        arXiv 2501.03152, Table 1.
    """
    return _read("averages.csv")


def paper_prompts() -> pd.DataFrame:
    """Table 2 of the paper: accuracy and MIUB of Phi3 under four prompts, averaged over the tasks.

    Returns:
        28 rows with ``prompt`` (main, prompt1, prompt2, prompt3), ``model``, ``axis``, ``rank``, ``share``, ``accuracy`` and
        ``miub``.

    Example:
        >>> sorted(set(paper_prompts()["prompt"]))
        ['main', 'prompt1', 'prompt2', 'prompt3']

    References:
        arXiv 2501.03152, Table 2.
    """
    return _read("table2.csv")


def paper_mutual_information() -> pd.DataFrame:
    """Table 3 of the paper: mutual information beside MIUB.

    Returns:
        Three rows with ``axis``, ``rank``, ``share``, ``accuracy``, ``mi`` and ``miub``. The fourth column of the table (no
        sharing) is not legible in the text that the numbers were taken from, and is left out.

    Example:
        >>> paper_mutual_information()["mi"].tolist()
        [1547.12, 1533.813, 1898.452]

    References:
        arXiv 2501.03152, Table 3.
    """
    return _read("table3.csv")


def _read(name: str) -> pd.DataFrame:
    with (files("lorascope.scaling") / "data" / name).open("r", encoding="utf-8") as file:
        table = pd.read_csv(file, dtype={column: "Int64" for column in _INTEGERS})
    if "note" in table:
        table["note"] = table["note"].fillna("")
    return table
