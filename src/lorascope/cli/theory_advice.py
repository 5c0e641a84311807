"""The commands of ``lorascope theory`` that answer a question: one function of the library each."""

from __future__ import annotations

from typing import Annotated

import typer

from lorascope.cli import _theory_options as options

_SWEEP = typer.Option(metavar="A,B,C|FROM:TO:COUNT", help="Ridges to show; by default around the best.")


def regularise_command(
    alpha: options.Alpha = 0.3,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    penalty: options.Penalty = "nuclear",
    activation: options.Activation = "linear",
    ridges: Annotated[str | None, _SWEEP] = None,
    points: options.Points = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """How strongly to regularise pre-training, so that LoRA on fresh data does best.

    Pre-training reaches LoRA only through the noise that the frozen matrix leaves. The answer is the ridge of least noise,
    how far you may miss it, the exact optimum of the plain ridge penalty, and the floor that no method goes below.

    Example: lorascope theory regularise --alpha 0.2 --noise 0.5
    """
    from lorascope.cli._theory import finish, matching_points, numbers
    from lorascope.theory.prescriptions import regularise

    found = regularise(
        alpha=alpha,
        tokens=tokens,
        kappa0=kappa0,
        noise=noise,
        penalty=penalty,
        activation=activation,
        ridges=None if ridges is None else numbers("--ridges", ridges),
        progress=progress,
    )
    free = ("ridge", "alpha_finetune", "ridge_finetune")
    finish(
        found,
        name="regularise",
        title="Effective noise along the ridge",
        rows=found.rows,
        columns=("ridge", "delta_eff", "delta_recalibrated", "delta_reuse", "Q", "M", "rank_fraction"),
        out=out,
        as_json=as_json,
        points=matching_points(points, found.to_dict(), free),
    )


def threshold_command(
    residual: Annotated[
        float | None,
        typer.Option(help="Noise of the residual that LoRA sees; left out, it follows from the options of stage 1."),
    ] = None,
    alpha: options.Alpha = 0.3,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    ridge: options.RidgeOrBest = "best",
    penalty: options.Penalty = "nuclear",
    ridge_finetune: options.RidgeFinetune = "0.5",
    targets: Annotated[str, typer.Option(help="Alignments whose price is wanted.")] = "0.8,0.9,0.95,0.98",
    highest: Annotated[float, typer.Option(help="Largest N'/d to look at.")] = 10.0,
    samples: options.Samples = None,
    points: options.Points = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """How many fine-tuning sequences LoRA needs: from the first trace of the direction to a given alignment.

    Weak recovery is the Bayes-optimal threshold: below it, nothing that starts blind finds the direction. Then comes a
    range in which the equations are doubtful (flagged), and then the sample size of each target alignment.

    Example: lorascope theory threshold --residual 0.7 --tokens 2
    """
    from lorascope.cli._theory import finish, matching_points, number_or_best, numbers, setting_of
    from lorascope.theory.prescriptions import thresholds

    words: list[str] = []
    if residual is None:
        first = setting_of(alpha=alpha, tokens=tokens, kappa0=kappa0, noise=noise, ridge=ridge, penalty=penalty).first()
        residual, words = first.delta_eff, list(first.warnings)
    second = number_or_best("--ridge-finetune", ridge_finetune)
    found = thresholds(
        tokens=tokens,
        noise=residual,
        ridge=second,
        targets=numbers("--targets", targets),
        highest=highest,
        samples=samples,
        progress=progress,
    )
    found.warnings.extend(f"stage 1: {word}" for word in words)
    here = {"tokens": tokens, "noise": residual, "ridge": second}
    rows = [{**row, "alpha_finetune": row["alpha"]} for row in matching_points(points, here, ("alpha",))]
    finish(
        found,
        name="threshold",
        title=f"Sequences that an alignment takes, at residual noise {residual:.3g}",
        rows=found.reached,
        columns=("alignment", "alpha_finetune"),
        out=out,
        as_json=as_json,
        points=rows,
    )


def recalibrate_command(
    alpha: options.Alpha = 0.3,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    ridge: options.Ridge = 0.03,
    penalty: options.Penalty = "nuclear",
    activation: options.Activation = "linear",
    alpha_finetune: options.Sequences = 3.0,
    ridge_finetune: options.RidgeFinetune = "0.5",
    samples: options.Samples = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """What it is worth to scale the frozen matrix by M/Q before LoRA: most of a badly chosen ridge is forgiven.

    Example: lorascope theory recalibrate --ridge 0.3
    """
    from lorascope.cli._theory import finish, number_or_best
    from lorascope.theory.prescriptions import recalibrate

    found = recalibrate(
        alpha=alpha,
        tokens=tokens,
        kappa0=kappa0,
        noise=noise,
        ridge=ridge,
        alpha_finetune=alpha_finetune,
        ridge_finetune=number_or_best("--ridge-finetune", ridge_finetune),
        penalty=penalty,
        activation=activation,
        samples=samples,
        progress=progress,
    )
    cases = {"as trained": found.plain, "times M/Q": found.recalibrated, "as trained, best ridge": found.best_plain}
    finish(
        found,
        name="recalibrate",
        title="LoRA on fresh data",
        rows=[{"case": name, **row} for name, row in cases.items()],
        columns=("case", "ridge", "noise_finetune", "alignment", "test_error", "jump"),
        out=out,
        as_json=as_json,
    )


def mismatch_command(
    alpha: options.Alpha = 0.1,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    penalty: options.Penalty = "nuclear",
    activation: options.Activation = "linear",
    ridges: Annotated[str, _SWEEP] = "0.003:1:31",
    alpha_finetune: options.AlphaFinetune = 1.5,
    ridge_finetune: options.RidgeFinetune = "0.5",
    data: options.Kinds = "reused,fresh",
    fraction: options.Fraction = 0.1,
    dim: options.Dim = None,
    samples: options.Samples = None,
    points: options.Points = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """When a good representation is no good test error: alignment and error along the pre-training ridge.

    On sequences that pre-training has seen, a small ridge gives the best alignment and a poor test error.

    Example: lorascope theory mismatch --alpha 0.1 --alpha-finetune 1.5 --out map
    """
    from lorascope.cli._theory import finish, matching_points, numbers, setting_of, words
    from lorascope.theory.prescriptions import mismatch

    setting = setting_of(
        alpha=alpha,
        tokens=tokens,
        kappa0=kappa0,
        noise=noise,
        ridge=0.1,
        penalty=penalty,
        activation=activation,
        alpha_finetune=alpha_finetune,
        ridge_finetune=ridge_finetune,
        fraction=fraction,
        dim=dim,
        samples=samples,
    )
    found = mismatch(setting, ridges=numbers("--ridges", ridges), data=words(data), progress=progress)
    finish(
        found,
        name="mismatch",
        title="Along the pre-training ridge",
        rows=found.rows,
        columns=("data", "ridge", "alignment", "test_error", "jump", "noise_finetune", "smallest_dim"),
        out=out,
        as_json=as_json,
        points=matching_points(points, found.setting, ("ridge",)),
    )


def budget_command(
    budget: Annotated[float, typer.Option(help="Labels over d², in units of a pre-training label's price.")] = 0.3,
    dim: Annotated[int, typer.Option(help="d, on which the split depends.")] = 100,
    price: Annotated[float, typer.Option(help="Price of a fine-tuning label over a pre-training label's.")] = 1.0,
    aim: Annotated[str, typer.Option(help="test_error or alignment.")] = "test_error",
    shares: Annotated[
        str | None, typer.Option(help="Shares of the budget in pre-training to try, with commas between.")
    ] = None,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    ridge: options.RidgeOrBest = "best",
    penalty: options.Penalty = "nuclear",
    ridge_finetune: options.RidgeFinetune = "best",
    data: options.Data = "fresh",
    fraction: options.Fraction = 0.1,
    samples: options.Samples = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """How to split a label budget between pre-training and fine-tuning, with the best ridges of each split.

    Example: lorascope theory budget --budget 0.3 --dim 100 --price 5
    """
    from lorascope.cli._theory import finish, numbers, setting_of
    from lorascope.theory.prescriptions import split_budget
    from lorascope.theory.prescriptions_labels import SHARES

    setting = setting_of(
        alpha=1.0,
        tokens=tokens,
        kappa0=kappa0,
        noise=noise,
        ridge=ridge,
        penalty=penalty,
        alpha_finetune=1.0,
        ridge_finetune=ridge_finetune,
        data=data,
        fraction=fraction,
        samples=samples,
    )
    given = SHARES if shares is None else numbers("--shares", shares)
    found = split_budget(setting, budget=budget, dim=dim, price=price, shares=given, aim=aim, progress=progress)
    finish(
        found,
        name="budget",
        title="Splits of the budget",
        rows=found.rows,
        columns=("share", "alpha", "alpha_finetune", "ridge", "ridge_finetune", "alignment", "test_error", "jump"),
        out=out,
        as_json=as_json,
    )


def active_command(
    alpha: options.Alpha = 0.5,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.0,
    ridge: options.RidgeOrBest = "0.03",
    penalty: options.Penalty = "nuclear",
    activation: options.Activation = "softmax",
    alpha_finetune: options.AlphaFinetune = 2.0,
    ridge_finetune: options.RidgeFinetune = "0.05",
    fractions: Annotated[
        str, typer.Option(help="Shares of the pool that are labelled.")
    ] = "0.05,0.1,0.2,0.35,0.5,0.75,1",
    choices: Annotated[str, typer.Option(help="Among uniform, smallest, largest.")] = "uniform,smallest,largest",
    samples: options.Samples = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """Which sequences of a pool to label for LoRA: any, or those with the smallest or largest frozen logits.

    With softmax the smallest logits, where attention is undecided, are worth labelling; with linear attention it hardly
    matters.

    Example: lorascope theory active --fractions 0.05,0.1,0.3
    """
    from lorascope.cli._theory import finish, numbers, setting_of, words
    from lorascope.theory.prescriptions import select_active

    setting = setting_of(
        alpha=alpha,
        tokens=tokens,
        kappa0=kappa0,
        noise=noise,
        ridge=ridge,
        penalty=penalty,
        activation=activation,
        alpha_finetune=alpha_finetune,
        ridge_finetune=ridge_finetune,
        samples=samples,
    )
    found = select_active(
        setting, fractions=numbers("--fractions", fractions), choices=words(choices), progress=progress
    )
    finish(
        found,
        name="active",
        title="Choices of fine-tuning sequences",
        rows=found.rows,
        columns=("choice", "fraction", "alignment", "test_error", "jump"),
        out=out,
        as_json=as_json,
    )
