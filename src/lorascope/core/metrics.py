"""The names of all metrics, with unit, meaning and direction: the one list that measuring and reporting share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lorascope.core.errors import InputError, unknown_name

Unit = Literal["nats", "ratio", "fraction", "rank", "perplexity"]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, what it is measured in and how to read it.

    Attributes:
        name: Key in ``totals`` and in the records of ``layers``.
        label: Short name for tables and figures.
        unit: Unit of the number.
        meaning: One sentence for a person who has not read the paper.
        better: Whether a larger or a smaller value is better, or neither (descriptive).
        group: The name by which a user asks for it; several numbers can come from one computation.
        per_layer: Whether each adapted component has its own value.
        reduce: How the components' values become the total.
    """

    name: str
    label: str
    unit: Unit
    meaning: str
    better: Literal["higher", "lower", "neither"] = "neither"
    group: str = ""
    per_layer: bool = True
    reduce: Literal["sum", "mean", "max", "none"] = "sum"


_ALL = (
    Metric(
        "miub_js",
        "MIUB (Eq. 9)",
        "nats",
        "How far the adapter moves the distribution of each layer's features: Jensen-Shannon divergence between "
        "frozen and adapted output. Zero for an adapter that does nothing.",
        group="miub_js",
    ),
    Metric(
        "mi_joint",
        "Mutual information",
        "nats",
        "How much a feature drawn from the frozen output tells about one drawn from the adapted output: the "
        "dependence that Theorem 3 of the paper is about.",
        group="mi_joint",
    ),
    Metric(
        "joint_js",
        "Joint JS",
        "nats",
        "Jensen-Shannon divergence between the joint distribution and the product of its marginals.",
        group="mi_joint",
    ),
    Metric(
        "mi_joint_lower",
        "MI, valid lower bound",
        "nats",
        "(2/ln 2) JS, never above the mutual information.",
        group="mi_joint",
    ),
    Metric(
        "mi_joint_upper",
        "MI, valid upper bound",
        "nats",
        "kappa(R) JS, never below the mutual information.",
        group="mi_joint",
    ),
    Metric(
        "miub_joint",
        "Theorem 3 as printed",
        "nats",
        "log(2) JS, the paper's bound. It is not a bound: it is below the mutual information unless both are zero.",
        group="mi_joint",
    ),
    Metric(
        "mi_gaussian",
        "Gaussian MI",
        "nats",
        "Dependence of the adapted on the frozen output when both are treated as Gaussian and read through noise.",
        group="mi_gaussian",
    ),
    Metric(
        "mi_gaussian_upper",
        "Gaussian MI, upper bound",
        "nats",
        "Largest information that any distribution with the same covariance could carry through that noise.",
        group="mi_gaussian",
    ),
    Metric(
        "matrix_entropy",
        "Matrix entropy, adapted",
        "nats",
        "Entropy of the spectrum of the adapted features: how many directions they use.",
        group="matrix_entropy",
        reduce="mean",
    ),
    Metric(
        "matrix_entropy_frozen",
        "Matrix entropy, frozen",
        "nats",
        "The same for the frozen features.",
        group="matrix_entropy",
        reduce="mean",
    ),
    Metric(
        "cka",
        "Linear CKA",
        "ratio",
        "Similarity of frozen and adapted features up to rotation and scale; 1 means the same.",
        group="cka",
        reduce="mean",
    ),
    Metric(
        "update_ratio",
        "Update ratio",
        "ratio",
        "Size of the adapter's update over the size of the frozen output: is the adapter doing anything?",
        group="update_ratio",
        reduce="mean",
    ),
    Metric(
        "effective_rank",
        "Effective rank",
        "rank",
        "Number of directions that the update really uses: exp of the entropy of its singular values.",
        group="spectrum",
        reduce="mean",
    ),
    Metric(
        "stable_rank",
        "Stable rank",
        "rank",
        "Squared Frobenius norm over squared largest singular value of the update.",
        group="spectrum",
        reduce="mean",
    ),
    Metric(
        "ce",
        "Cross-entropy",
        "nats",
        "Average surprise per token of the correct continuation, or per row of a classifier.",
        "lower",
        group="ce",
        per_layer=False,
        reduce="none",
    ),
    Metric(
        "ppl",
        "Perplexity",
        "perplexity",
        "exp of the cross-entropy per token.",
        "lower",
        group="ppl",
        per_layer=False,
        reduce="none",
    ),
    Metric(
        "accuracy",
        "Accuracy",
        "fraction",
        "Share of rows whose correct choice or class scores highest.",
        "higher",
        group="accuracy",
        per_layer=False,
        reduce="none",
    ),
    Metric(
        "accuracy_norm",
        "Accuracy, length-normalised",
        "fraction",
        "The same with each log-likelihood divided by the choice's length in characters, as lm-eval's acc_norm.",
        "higher",
        group="accuracy",
        per_layer=False,
        reduce="none",
    ),
    Metric(
        "text_ppl",
        "Perplexity of held-out text",
        "perplexity",
        "Perplexity of text that has nothing to do with the task: how much was forgotten.",
        "lower",
        group="text_ppl",
        per_layer=False,
        reduce="none",
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(metric.group for metric in _ALL))


def resolve_groups(names: Iterable[str]) -> tuple[str, ...]:
    """Turn metric names (or group names) into the groups that must be computed.

    Args:
        names: Names from `METRICS` or `GROUPS`; ``"all"`` stands for every group.

    Returns:
        Group names, each once, in the order of `GROUPS`.

    Raises:
        InputError: A name is unknown, or none is given.

    Example:
        >>> resolve_groups(["joint_js", "miub_js"])
        ('miub_js', 'mi_joint')
    """
    wanted: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        if name == "all":
            wanted.update(GROUPS)
        elif name in GROUPS:
            wanted.add(name)
        elif name in METRICS:
            wanted.add(METRICS[name].group)
        else:
            raise unknown_name("metric", str(name), ["all", *dict.fromkeys([*GROUPS, *METRICS])])
    if not wanted:
        raise InputError(f"no metric given: choose from {', '.join(GROUPS)} or 'all'")
    return tuple(group for group in GROUPS if group in wanted)
