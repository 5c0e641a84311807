"""``lorascope theory point`` and ``lorascope theory curve``."""

from __future__ import annotations

from typing import Annotated

import typer

from lorascope.cli import _theory_options as options

DEFAULT_VALUES = {
    "alpha": "0.05:2:25",
    "ridge": "0.003:1:25",
    "noise": "0.05:2:25",
    "kappa0": "0.1:2:25",
    "alpha_finetune": "0.8:10:25",
    "ridge_finetune": "0.03:3:25",
    "fraction": "0.05:1:15",
}


def point_command(
    alpha: options.Alpha = 0.3,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    ridge: options.RidgeOrBest = "0.03",
    penalty: options.Penalty = "nuclear",
    activation: options.Activation = "linear",
    alpha_finetune: options.AlphaFinetune = 3.0,
    ridge_finetune: options.RidgeFinetune = "0.5",
    data: options.Kinds = "fresh,reused,recalibrated,active",
    fraction: options.Fraction = 0.1,
    dim: options.Dim = None,
    samples: options.Samples = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """Both stages at one setting: what pre-training leaves, and how well LoRA does on each kind of data.

    Example: lorascope theory point --alpha 0.3 --noise 0.5 --ridge best --alpha-finetune 3
    """
    from lorascope.cli._theory import finish, setting_of, words
    from lorascope.theory.prescriptions import point

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
        fraction=fraction,
        dim=dim,
        samples=samples,
    )
    found = point(setting, words(data), progress=progress)
    rows = [{"data": kind, **row, "noise_finetune": row["noise"]} for kind, row in found.finetuned.items()]
    columns = ("data", "alignment", "test_error", "train_loss", "jump", "noise_finetune", "smallest_dim")
    finish(found, name="point", title="LoRA on each kind of data", rows=rows, columns=columns, out=out, as_json=as_json)


def curve_command(
    over: Annotated[
        str, typer.Option(help="What runs: alpha, ridge, noise, kappa0, alpha-finetune, ridge-finetune or fraction.")
    ] = "alpha-finetune",
    values: Annotated[
        str | None,
        typer.Option(metavar="A,B,C|FROM:TO:COUNT", help="Its values: a list, or a range, evenly spaced in logarithm."),
    ] = None,
    alpha: options.Alpha = 0.3,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    ridge: options.RidgeOrBest = "0.03",
    penalty: options.Penalty = "nuclear",
    activation: options.Activation = "linear",
    alpha_finetune: options.AlphaFinetune = 3.0,
    ridge_finetune: options.RidgeFinetune = "0.5",
    data: options.Data = "fresh",
    fraction: options.Fraction = 0.1,
    dim: options.Dim = None,
    samples: options.Samples = None,
    points: options.Points = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """Both stages along one parameter: a sample-complexity curve, or how much a ridge matters.

    The curve is followed from large values down; where data are few it keeps to the informed solution and says so.

    Example: lorascope theory curve --over alpha-finetune --values 1:8:25 --out curves
    """
    from dataclasses import asdict

    from lorascope.cli._theory import finish, matching_points, numbers, setting_of
    from lorascope.theory.prescriptions import curve

    name = over.replace("-", "_")
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
        data=data,
        fraction=fraction,
        largest=False,
        dim=dim,
        samples=samples,
    )
    found = curve(setting, name, numbers("--values", values or DEFAULT_VALUES.get(name, "1")), progress=progress)
    marks = matching_points(points, asdict(setting) | {"data": data}, (name, "data"))
    marks = [row for row in marks if row.get("data", data) == data]
    finish(
        found,
        name=f"curve-{over}",
        title=f"Along {over}",
        rows=found.rows,
        columns=(
            *(name, "alignment", "test_error", "jump", "delta_eff", "delta_reuse", "ridge", "ridge_finetune"),
            "smallest_dim",
        ),
        out=out,
        as_json=as_json,
        points=marks,
    )
