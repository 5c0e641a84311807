"""Where to spend labels: between pre-training and fine-tuning, and on which fine-tuning sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from tqdm.auto import tqdm

from lorascope.core.errors import InputError, unknown_name
from lorascope.theory._record import Record, above_zero, number, one_of
from lorascope.theory._rows import Row, Setting, flags, row_of

AIMS = {"test_error": min, "alignment": max}
SHARES = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99, 0.995)
FRACTIONS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
CHOICES = ("uniform", "smallest", "largest")
"""Which of the pool's sequences are labelled: any, or those on which the frozen logits are smallest or largest."""


@dataclass(frozen=True, kw_only=True)
class Budget(Record):
    """The best split of a label budget between the stages.

    Attributes:
        setting: What is held fixed; its alpha and alpha_finetune follow from each split.
        budget: Labels over d^2, in units of a pre-training label's price.
        dim: d, which the split depends on: stage 1 takes labels by d^2, stage 2 by d.
        price: Price of a fine-tuning label over that of a pre-training label.
        aim: ``test_error`` or ``alignment``.
        best: The best row without warnings; None if every row has some.
        rows: One row a split: ``share`` of the budget in stage 1, ``alpha``, ``alpha_finetune`` and both stages.
        warnings: Why some numbers are not to be trusted.
        schema_version: Version of this layout.
    """

    setting: dict[str, Any]
    budget: float
    dim: int
    price: float
    aim: str
    best: Row | None
    rows: list[Row]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "budget"


@dataclass(frozen=True, kw_only=True)
class Selection(Record):
    """Which fine-tuning sequences to label.

    Attributes:
        setting: What is held fixed.
        rows: One row a choice and fraction, under ``choice`` (``uniform``, ``smallest``, ``largest``) and ``fraction``.
        best: The row with the lowest test error among those without warnings; None if every row has some.
        error_ratio: Test error of ``best`` divided by that of uniform choice, below 1 where choosing helps; None where one
            of them is missing.
        warnings: Why some numbers are not to be trusted.
        schema_version: Version of this layout.
    """

    setting: dict[str, Any]
    rows: list[Row]
    best: Row | None
    error_ratio: float | None
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 2

    kind: ClassVar[str] = "selection"
    version: ClassVar[int] = 2


def split_budget(
    setting: Setting,
    *,
    budget: float | int,
    dim: int,
    price: float | int = 1.0,
    shares: Sequence[float | int] = SHARES,
    aim: str = "test_error",
    progress: bool = False,
) -> Budget:
    r"""How to split a label budget between pre-training and fine-tuning sequences.

    With N labels of stage 1 and N' of stage 2 at ``price`` each, :math:`N + p N' = B d^2`. A share s of the budget in stage
    1 gives :math:`\alpha = s B` and :math:`\alpha' = (1 - s) B d / p`. Because stage 2 needs of the order of d labels
    and stage 1 of d^2, the best share tends to 1 as d grows; at the d that you have it does not.

    Args:
        setting: The rest; alpha and alpha_finetune of it are not used. A ridge of None is the best one at each split.
        budget: B, labels over d^2.
        dim: d.
        price: p.
        shares: Splits to try, each between 0 and 1.
        aim: ``test_error`` or ``alignment``.
        progress: Show a progress bar.

    Returns:
        The splits and the best one.

    Raises:
        InputError: A value is out of range or unknown.
    """
    if aim not in AIMS:
        raise unknown_name("aim", aim, AIMS)
    above_zero(budget=budget, price=price)
    if dim < 2:
        raise InputError(f"dim {dim} must be at least 2")
    for share in shares:
        if not 0 < share < 1:
            raise InputError(f"share {share} must be between 0 and 1: both stages need labels")
    rows: list[Row] = []
    near = None
    for share in tqdm(sorted(shares), desc="splits", unit="split", disable=not progress):
        alpha, after = float(share) * budget, (1 - float(share)) * budget * dim / price
        asked = setting.but(alpha=alpha, alpha_finetune=after, dim=dim)
        first = asked.first()
        if asked.data == "reused" and after > alpha * dim:
            continue
        second = asked.second(first, near)
        near = second if second.converged and second.q > 1e-3 else None
        row = {"share": float(share), "alpha": alpha, "alpha_finetune": after, **row_of(first, second)}
        # At a d that is meant, a stage of few sequences is far from the limit that the equations describe.
        if after * dim < 20:
            row["warnings"].append(f"only {after * dim:.0f} fine-tuning sequences at d = {dim}")
        rows.append(row)
    if not rows:
        raise InputError("no split leaves enough stage-1 sequences to reuse: raise the shares")
    good = [row for row in rows if not row["warnings"]]
    best = AIMS[aim](good, key=lambda row: row[aim]) if good else None
    return Budget(
        setting=asdict(setting),
        budget=float(budget),
        dim=dim,
        price=float(price),
        aim=aim,
        best=best,
        rows=rows,
        warnings=flags(rows),
    )


def select_active(
    setting: Setting,
    *,
    fractions: Sequence[float | int] = FRACTIONS,
    choices: Sequence[str] = CHOICES,
    progress: bool = False,
) -> Selection:
    """Which sequences of a pool to label for fine-tuning: any, or those with the smallest or largest frozen logits.

    With softmax the logits' differences count, which alone matter. At a fraction of 1 every choice is the uniform one. The
    same number of labels, alpha_finetune, is spent in each row; the pool is larger by one over the fraction.

    Args:
        setting: Both stages; its kind of data is not used.
        fractions: Shares of the pool that are labelled.
        choices: Among ``uniform``, ``smallest``, ``largest``.
        progress: Show a progress bar.

    Returns:
        The rows; those of ``largest`` are flagged, as simulations do not always agree there.

    Raises:
        InputError: A value is out of range or unknown; said before anything is computed.
    """
    for choice in choices:
        one_of("choice", choice, CHOICES)
    for fraction in fractions:
        if not 0 < number("fraction", fraction) <= 1:
            raise InputError(f"fraction {fraction} must be above 0 and at most 1")
    if not choices or not (fractions or list(choices) == ["uniform"]):
        raise InputError("choices and fractions must not be empty: give at least one of each")
    if setting.alpha_finetune is None:
        raise InputError("choosing sequences needs alpha_finetune, the number of those that are labelled over d")
    first = setting.first()
    cases: list[tuple[str, float]] = [("uniform", 1.0)] if "uniform" in choices else []
    cases += [
        (choice, float(fraction))
        for choice in choices
        if choice != "uniform"
        for fraction in sorted(fractions, reverse=True)
    ]
    rows: list[Row] = []
    for choice, fraction in tqdm(cases, desc="choices", unit="case", disable=not progress):
        asked = setting.but(data="fresh") if choice == "uniform" else setting.but(data="active", fraction=fraction)
        found = asked.but(largest=choice == "largest").second(first)
        rows.append({"choice": choice, "fraction": fraction, **row_of(first, found)})
    good = [row for row in rows if not row["warnings"]]
    best = min(good, key=lambda row: row["test_error"]) if good else None
    uniform = next((row for row in rows if row["choice"] == "uniform"), None)
    ratio = best["test_error"] / uniform["test_error"] if best and uniform and uniform["test_error"] > 0 else None
    return Selection(setting=asdict(setting), rows=rows, best=best, error_ratio=ratio, warnings=flags(rows))
