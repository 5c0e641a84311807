"""The settings of the preset figures: which curves, which simulations on them, and what to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a preset with the simulations that belong to it.

    Attributes:
        name: Of the legend.
        stage: ``pipeline``, ``pretrain`` or ``finetune``.
        setting: Arguments of `lorascope.simulation.simulate_pipeline` (or ``_pretrain``, ``_finetune``) without ``over``.
        over: What runs: one of them, or ``share`` of a label budget.
        low: Smallest value of the curve; 0 for no curve, only simulations.
        high: Largest.
        simulated: Values at which it is simulated.
        options: Further arguments of the simulation, such as ``dim``, ``seeds``, ``start``; ``adam`` holds those of
            `lorascope.simulation.Adam`.
    """

    name: str
    stage: str = "pipeline"
    setting: Mapping[str, Any]
    over: str
    low: float = 0.0
    high: float = 0.0
    simulated: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A figure.

    Attributes:
        name: Identifier.
        title: Heading.
        words: What it asks and what to see.
        lines: Its curves.
        x: Quantity of the horizontal axis.
        ys: Quantities, one figure each.
        of_article: Whether the setting is named in the article.
    """

    name: str
    title: str
    words: str
    lines: tuple[Line, ...]
    x: str
    ys: tuple[str, ...]
    of_article: bool = False


_T3 = {"alpha": 0.1, "tokens": 3, "kappa0": 1.0, "noise": 0.5, "data": "fresh"}
_REUSED = {"alpha": 0.2, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "alpha_finetune": 3.0}
_MAP = {"alpha": 0.1, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "alpha_finetune": 1.5, "ridge_finetune": 0.5}
_FIRST = {"tokens": 2, "kappa0": 0.5, "noise": 0.5}
_BETA = {**_FIRST, "alpha": 0.3, "alpha_finetune": 3.0, "ridge_finetune": 0.5}
_SECOND = {"tokens": 2, "ridge": 0.5, "noise": 0.7}
_SOFT = {"alpha": 0.5, "tokens": 2, "kappa0": 0.5, "noise": 0.0, "ridge": 0.03, "activation": "softmax"}
_SOFT |= {"alpha_finetune": 2.0, "ridge_finetune": 0.05}
_BUDGET = {**_FIRST, "budget": 0.3, "ridge_finetune": 0.5, "data": "fresh"}
_D80 = {"dim": 80, "seeds": 4}
_D60 = {"dim": 60, "seeds": 4}
_D120 = {"dim": 120, "seeds": 4}

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="article-ridges",
        title="T = 3: along the pre-training ridge, for three LoRA ridges",
        words="The article's setting: T = 3, N/d² = 0.1, N′/d = 3, κ₀ = κ = 1, Δ = 0.5, λ′ of 0.05, 0.5 and 1. Fresh data.",
        lines=tuple(
            Line(
                name=f"λ′ = {ridge:g}",
                setting={**_T3, "alpha_finetune": 3.0, "ridge_finetune": ridge},
                over="ridge",
                low=0.003,
                high=2.0,
                simulated=(0.03, 0.1, 0.3, 1.0),
                options=_D60,
            )
            for ridge in (0.05, 0.5, 1.0)
        ),
        x="ridge",
        ys=("test_error", "alignment"),
        of_article=True,
    ),
    Preset(
        name="article-samples",
        title="T = 3: along the number of fine-tuning sequences, for three pre-training ridges",
        words="The article's setting: T = 3, N/d² = 0.1, κ₀ = κ = 1, Δ = 0.5, λ of 0.01, 0.1 and 1; λ′ = 0.5. Fresh data.",
        lines=tuple(
            Line(
                name=f"λ = {ridge:g}",
                setting={**_T3, "ridge": ridge, "ridge_finetune": 0.5},
                over="alpha_finetune",
                low=0.7,
                high=8.0,
                simulated=(1.0, 2.0, 4.0),
                options=_D60,
            )
            for ridge in (0.01, 0.1, 1.0)
        ),
        x="alpha_finetune",
        ys=("test_error", "alignment"),
        of_article=True,
    ),
    Preset(
        name="article-reused",
        title="T = 2: reused sequences along the pre-training ridge",
        words="The article's setting: T = 2, Δ = κ₀ = 0.5, N/d² = 0.2, N′/d = 3, fine-tuned on sequences of pre-training; "
        "fresh ones beside it. At d = 80 the share of reused sequences is 19 %; the equations are meant for up to 5 %.",
        lines=tuple(
            Line(
                name=f"{data}, λ′ = {ridge:g}",
                setting={**_REUSED, "data": data, "ridge_finetune": ridge},
                over="ridge",
                low=0.003,
                high=1.0,
                simulated=(0.03, 0.1, 0.3),
                options=_D80,
            )
            for data, ridge in (("reused", 0.05), ("reused", 0.5), ("reused", 1.0), ("fresh", 0.5))
        ),
        x="ridge",
        ys=("test_error", "alignment"),
        of_article=True,
    ),
    Preset(
        name="mismatch",
        title="When a good representation is no good test error",
        words="Each curve runs along the pre-training ridge λ. On reused sequences a small λ gives the best alignment and a "
        "poor test error; on fresh ones both want the same λ. T = 2, N/d² = 0.1, N′/d = 1.5, λ′ = 0.5, Δ = κ₀ = 0.5.",
        lines=tuple(
            Line(
                name=data,
                setting={**_MAP, "data": data},
                over="ridge",
                low=0.003,
                high=1.0,
                simulated=(0.01, 0.05, 0.1, 0.4),
                options=_D120,
            )
            for data in ("reused", "fresh")
        ),
        x="alignment",
        ys=("test_error",),
    ),
    Preset(
        name="regularise",
        title="How strongly to regularise pre-training",
        words="Effective noise that pre-training leaves, along the ridge, for four amounts of data. T = 2, Δ = κ₀ = 0.5.",
        lines=tuple(
            Line(
                name=f"N/d² = {alpha:g}",
                stage="pretrain",
                setting={**_FIRST, "alpha": alpha},
                over="ridge",
                low=0.005,
                high=1.0,
                simulated=(0.02, 0.1, 0.4),
                options={"dim": 50, "seeds": 4},
            )
            for alpha in (0.1, 0.2, 0.3, 0.6)
        ),
        x="ridge",
        ys=("delta_eff", "delta_reuse"),
    ),
    Preset(
        name="recalibrate",
        title="Scaling the frozen matrix by M/Q",
        words="With the factor M/Q most of a badly chosen ridge is forgiven. T = 2, N/d² = 0.3, N′/d = 3, λ′ = 0.5.",
        lines=tuple(
            Line(
                name=label,
                setting={**_BETA, "data": data},
                over="ridge",
                low=0.01,
                high=1.0,
                simulated=(0.03, 0.1, 0.3, 0.6),
                options=_D60,
            )
            for label, data in (("as trained", "fresh"), ("times M/Q", "recalibrated"))
        ),
        x="ridge",
        ys=("test_error", "alignment"),
    ),
    Preset(
        name="samples",
        title="How many fine-tuning sequences, and from which start",
        words="LoRA on a residual of noise 0.7, T = 2, λ′ = 0.5. The theory describes the informed solution; a descent from "
        "a random start is trapped where data are few, one from the spectral start is not, or less.",
        lines=(
            Line(
                name="informed",
                stage="finetune",
                setting=_SECOND,
                over="alpha_finetune",
                low=0.4,
                high=8.0,
                simulated=(0.6, 1.0, 1.5, 2.0, 4.0),
                options={"dim": 100, "seeds": 6},
            ),
            *(
                Line(
                    name=label,
                    stage="finetune",
                    setting=_SECOND,
                    over="alpha_finetune",
                    simulated=(0.6, 1.0, 1.5, 2.0, 4.0),
                    options={"dim": 100, "seeds": 6, **more},
                )
                for label, more in (
                    ("one random start", {"start": "random", "starts": 1}),
                    ("spectral start", {"start": "spectral"}),
                )
            ),
        ),
        x="alpha_finetune",
        ys=("alignment", "train_loss", "jump"),
    ),
    Preset(
        name="practice",
        title="Where training in practice leaves the theory",
        words="The same problem trained by Adam from a random start, with tied factors W Wᵀ, which the theory describes, "
        "and with LoRA as PEFT has it: B A with B = 0 at the start. B A may become asymmetric, which no target asks for: it "
        "fits the noise better and finds a worse update.",
        lines=(
            Line(
                name="theory",
                stage="finetune",
                setting=_SECOND,
                over="alpha_finetune",
                low=1.0,
                high=8.0,
            ),
            *(
                Line(
                    name=label,
                    stage="finetune",
                    setting=_SECOND,
                    over="alpha_finetune",
                    simulated=(1.5, 3.0, 6.0),
                    options={"dim": 60, "seeds": 4, "start": "random", "adam": more},
                )
                for label, more in (
                    ("Adam, tied", {"factors": "tied", "steps": 300}),
                    ("Adam, LoRA (B A)", {"steps": 300}),
                    ("Adam, LoRA (B A), minibatches of 32", {"steps": 300, "batch": 32}),
                )
            ),
        ),
        x="alpha_finetune",
        ys=("alignment", "test_error", "train_loss"),
    ),
    Preset(
        name="budget",
        title="How to split a label budget",
        words="A budget of 0.3 d² labels at d = 100, each of the same price; the pre-training ridge is the best one of each "
        "split. T = 2, Δ = κ₀ = 0.5, λ′ = 0.5.",
        lines=(
            Line(
                name="best ridge at each split",
                setting=_BUDGET,
                over="share",
                low=0.3,
                high=0.98,
                simulated=(0.5, 0.85, 0.95),
                options={"dim": 100, "seeds": 4},
            ),
        ),
        x="share",
        ys=("test_error", "alignment"),
    ),
    Preset(
        name="active",
        title="Which sequences to label",
        words="Softmax with two tokens: the sequences with the smallest frozen logits, where attention is undecided, are "
        "worth labelling. N/d² = 0.5, κ₀ = 0.5, Δ = 0, λ = 0.03, N′/d = 2, λ′ = 0.05.",
        lines=(
            Line(
                name="smallest",
                setting={**_SOFT, "data": "active"},
                over="fraction",
                low=0.03,
                high=1.0,
                simulated=(0.05, 0.1, 0.3, 0.6, 1.0),
                options={"dim": 80, "seeds": 4},
            ),
            Line(
                name="largest",
                setting={**_SOFT, "data": "active", "largest": True},
                over="fraction",
                low=0.03,
                high=1.0,
                simulated=(0.1, 0.3, 0.6),
                options={"dim": 80, "seeds": 4},
            ),
        ),
        x="fraction",
        ys=("test_error", "alignment"),
    ),
)
