"""How the rows of a pool are scored."""

from __future__ import annotations

from dataclasses import dataclass

from lorascope.core.errors import InputError


@dataclass(frozen=True)
class ScoreOptions:
    """How rows are scored.

    Attributes:
        subspace: r, leading directions of each layer's Fisher factor that gradients are projected to; 0 takes all.
        features: Numbers that stand for a row's gradient in designs; a square number.
        fisher_rows: Rows that the Fisher factors are estimated from, a sample of the pool.
        draws: Labels drawn for a row without choices where labels are not used, by ``seed`` and the row's place in the
            pool: more of them leave less to chance.
        max_length: Longest row in tokens; None means the model's context (text: windows of 512).
        overlong: ``error`` or ``truncate`` for longer rows.
        batch_size: Rows in a pass.
        target_modules: Layers that count, as PEFT names them; ignored for a model with an adapter.
        pad_token: Token for padding where the tokenizer has none.
        seed: Of everything random.

    Raises:
        InputError: A value is out of range.
    """

    subspace: int = 16
    features: int = 256
    fisher_rows: int = 128
    draws: int = 2
    max_length: int | None = None
    overlong: str = "error"
    batch_size: int = 16
    target_modules: str | tuple[str, ...] = "all-linear"
    pad_token: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("subspace", 0), ("features", 1), ("fisher_rows", 1), ("draws", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} {value!r} must be a whole number of at least {least}")
        if round(self.features**0.5) ** 2 != self.features:
            raise InputError(f"features {self.features} must be a square number, such as 256")
        if self.overlong not in ("error", "truncate"):
            raise InputError(f"overlong '{self.overlong}' must be error or truncate: rows of a pool can't be dropped")
