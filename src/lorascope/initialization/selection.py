"""Active fine-tuning: which rows of a pool to label or train on next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from lorascope.core.errors import InputError, unknown_name
from lorascope.initialization.selection_designs import at_random, greedy_d_optimal, largest
from lorascope.initialization.selection_options import ScoreOptions
from lorascope.initialization.selection_pool import Pool, load_pool
from lorascope.initialization.selection_scores import PoolScorer

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Method:
    """A way to choose.

    Attributes:
        labels: Whether the rows' labels are needed.
        model: Whether a model is needed.
        meaning: What it takes, for tables and help.
    """

    labels: bool
    model: bool
    meaning: str


METHODS: dict[str, Method] = {
    "d_optimal_expected": Method(
        False, True, "rows that together tell most: greedy log det of the gradients, labels drawn from the model"
    ),
    "d_optimal": Method(True, True, "the same with the rows' own labels"),
    "energy_expected": Method(
        False, True, "largest expected gradient energy in the leading Fisher subspace, labels drawn from the model"
    ),
    "energy": Method(True, True, "largest gradient energy in the leading Fisher subspace"),
    "smallest_logits": Method(False, True, "smallest frozen output logits: the solvable model's criterion"),
    "smallest_attention": Method(False, True, "smallest frozen attention logits: the same criterion inside the model"),
    "entropy": Method(False, True, "control: most uncertain answers"),
    "loss": Method(True, True, "control: largest loss"),
    "random": Method(False, False, "control: at random"),
}
"""Ways to choose, by name."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rows that were chosen, and why.

    Attributes:
        method: Entry of `METHODS`.
        chosen: Places among the rows that were read, from 0, in the order in which they were chosen.
        lines: The chosen rows as they were written, one line of JSON each, in that order.
        scores: One mapping for each different row of the pool: ``index``, ``where``, ``score`` (None for random),
            ``choice`` (1 for the first; None if it was not chosen) and, for designs, ``gain_nats``.
        counts: ``rows`` that were read, ``different``, ``duplicates``, ``labelled``, ``budget``.
        settings: What was asked.
        warnings: What a reader must know.
        schema_version: Version of this layout.
    """

    method: str
    chosen: tuple[int, ...]
    lines: tuple[str, ...]
    scores: tuple[dict[str, Any], ...]
    counts: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; `from_dict` reads it."""
        return {**asdict(self), "chosen": list(self.chosen), "lines": list(self.lines), "scores": list(self.scores)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        """Read what `to_dict` made.

        Raises:
            InputError: Keys are missing or unknown, or the version is another.
        """
        if values.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"selection of version {values.get('schema_version')}: this lorascope reads {SCHEMA_VERSION}"
            )
        try:
            lists = {key: tuple(values[key]) for key in ("chosen", "lines", "scores", "warnings")}
            return cls(**{**values, **lists})
        except (KeyError, TypeError) as error:
            raise InputError(f"not a selection: {error}") from error


def select_rows(
    pool: Pool | str | Path | Sequence[Mapping[str, Any]],
    budget: int,
    *,
    method: str = "entropy",
    model: torch.nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: ScoreOptions | None = None,
    ridge: float = 1.0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Selection:
    r"""Choose rows of a pool by what labelling them, or training on them, would teach.

    With G the gradient of a row's summed loss with respect to a layer's weight and V the layer's leading Fisher directions
    (eigenvectors of E |g|^2 a a^T), all layers together:

    ======================  =============================================================================================
    ``energy``              largest :math:`|G V|^2`: the squared gradient of B where A is V
    ``energy_expected``     largest :math:`\sum_y p(y) |G_y V|^2` over the labels that the model expects
    ``d_optimal``           greedy :math:`\log\det(\lambda I + \sum_i e_i e_i^T)`, e a random projection of G V
    ``d_optimal_expected``  the same with :math:`\sum_y p(y) e_{iy} e_{iy}^T`
    ``smallest_logits``     smallest centred output logits; see docs/science/selection.md
    ``smallest_attention``  smallest centred attention logits
    ``entropy``, ``loss``   largest; controls
    ``random``              control
    ======================  =============================================================================================

    Args:
        pool: A `Pool`, a file, a known task (its train split), or rows.
        budget: Rows to choose.
        method: Entry of `METHODS`.
        model: A causal language model, with or without adapter; only ``random`` needs none.
        tokenizer: Its tokenizer.
        options: How rows are scored; its seed also decides ``random``.
        ridge: Of designs; see `lorascope.initialization.selection_designs.relative_ridge`.
        cache: Folder for what was computed, so that another call goes on from there.
        progress: Whether to show bars.

    Returns:
        The chosen rows and every row's score.

    Raises:
        InputError: The method is unknown, the budget does not fit the pool, or the model is missing.
        DataError: The pool is empty or wrong, or labels are needed and missing.

    Example:
        >>> select_rows([{"text": "a"}, {"text": "b"}], 1, method="random").counts["different"]
        2

    References:
        Gradient embeddings of a batch: arXiv 1906.03671; Fisher information over all labels: arXiv 2106.09675; smallest
        logits: arXiv 2606.05899.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    rows = pool if isinstance(pool, Pool) else load_pool(pool)
    kind = METHODS[method]
    _check_budget(budget, rows)
    if kind.labels:
        rows.require_labels(method)
    options = options or ScoreOptions()
    settings: dict[str, Any] = {"method": method, "pool": rows.task.name, "seed": options.seed}
    scores: list[float | None]
    gains: dict[int, float] = {}
    if not kind.model:
        order, scores = at_random(len(rows), budget, options.seed), [None] * len(rows)
    else:
        if model is None or tokenizer is None:
            raise InputError(f"method '{method}' needs a model and its tokenizer: give both")
        scorer = PoolScorer(model, tokenizer, rows, options, cache=cache, progress=progress)
        settings |= {key: value for key, value in asdict(options).items()}
        if method.startswith("d_optimal"):
            found = scorer.gradients(labels="expected" if method.endswith("expected") else "given")
            design = greedy_d_optimal(found.weighted_features, budget, ridge=ridge)
            order, values = design.order, design.first_gains
            gains = dict(zip(order.tolist(), design.gains.tolist(), strict=True))
            settings["ridge"] = ridge
        else:
            values = _SCORES[method](scorer)
            order = largest(-values if method.startswith("smallest") else values, budget)
        scores = [float(value) for value in values]
    places = {int(index): place + 1 for place, index in enumerate(order)}
    table = tuple(
        {
            "index": rows.indices[number],
            "where": row.where,
            "score": scores[number],
            "choice": places.get(number),
            **({"gain_nats": gains.get(number)} if gains else {}),
        }
        for number, row in enumerate(rows.rows)
    )
    counts = {
        "rows": len(rows) + rows.duplicates,
        "different": len(rows),
        "duplicates": rows.duplicates,
        "labelled": sum(rows.labelled),
        "budget": budget,
    }
    return Selection(
        method=method,
        chosen=tuple(rows.indices[int(index)] for index in order),
        lines=tuple(rows.lines[int(index)] for index in order),
        scores=table,
        counts=counts,
        settings=settings,
        warnings=tuple(_warnings(rows, budget, scores)),
    )


_SCORES: dict[str, Callable[[PoolScorer], Float[np.ndarray, " n"]]] = {
    "energy": lambda scorer: scorer.gradients(labels="given").expected_energy,
    "energy_expected": lambda scorer: scorer.gradients(labels="expected").expected_energy,
    "smallest_logits": lambda scorer: scorer.logit_norm(),
    "smallest_attention": lambda scorer: scorer.attention_norm(),
    "entropy": lambda scorer: scorer.entropy(),
    "loss": lambda scorer: scorer.loss(),
}


def _check_budget(budget: int, pool: Pool) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise InputError(f"budget {budget!r} must be a whole number of at least 1")
    if budget > len(pool):
        same = f" ({pool.duplicates} more are the same as another)" if pool.duplicates else ""
        raise InputError(f"budget {budget} is over the {len(pool)} different rows of the pool{same}: give at most that")


def _warnings(pool: Pool, budget: int, scores: Sequence[float | None]) -> list[str]:
    notes = []
    if pool.duplicates:
        number = pool.duplicates
        notes.append(
            f"{number} {'row is' if number == 1 else 'rows are'} the same as an earlier one and can't be chosen"
        )
    if budget == len(pool) > 1:
        notes.append("the budget is the whole pool: only the order was chosen")
    known = [score for score in scores if score is not None]
    if len(known) > 1 and min(known) == max(known):
        notes.append("all rows have the same score: the order is that of the pool")
    return notes
