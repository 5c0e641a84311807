"""The modes of initialisation: from a layer's statistics to the first factors of its adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError
from lorascope.initialization.layer_sums import LayerStatistics
from lorascope.initialization.spectrum import FULL_EIGEN_WIDTH, KEPT, power, quadratic_forms, signed, spectrum_of_matrix

DEFAULT_NORM = 3**-0.5
"""Norm of each row of A as PEFT draws it on average: uniform in +-1/sqrt(d) gives |A|_F = sqrt(r / 3)."""

LONGEST = 10.0
"""Most times the usual length that a row is made."""


@dataclass(frozen=True)
class Start:
    """The first factors of one layer, before they are scaled.

    Attributes:
        directions: Of zero-delta modes: orthonormal directions of the input, best first, (d_in, k); of residual modes the
            columns of A^T, so that B A is the part of the weight that the adapter takes over.
        outputs: Columns of B, best first, (d_out, k); None for zero-delta modes, where B is zero.
        scores: What the directions were ranked by, best first, (k).
        known: Number of directions that the data decide; the others are arbitrary.
        lengths: Of zero-delta modes: how long each row of A is beside the usual length; None is 1.
    """

    directions: Float[Tensor, "d_in k"]
    outputs: Float[Tensor, "d_out k"] | None
    scores: Float[Tensor, " k"]
    known: int
    lengths: Float[Tensor, " k"] | None = None


Make = Callable[[LayerStatistics, Tensor | None, int], Start]


@dataclass(frozen=True)
class Mode:
    """One way to start an adapter.

    Attributes:
        name: As the user says it.
        need: Statistics it needs, from `lorascope.initialization.NEEDS`.
        make: From statistics, base weight (residual modes only) and rank to the first factors.
        residual: The base weight is changed: the adapter takes over a part of it.
        labels: It needs the data's own labels: with drawn ones its matrix is zero in expectation.
        what: One line for people.
    """

    name: str
    need: tuple[str, ...]
    make: Make
    residual: bool
    labels: bool
    what: str


def fisher(statistics: LayerStatistics, _weight: Tensor | None, rank: int) -> Start:
    """Leading eigenvectors of F_in = E |g|^2 a a^T: where B's first gradient is largest.

    With A = V^T and B = 0 the gradient for B is sum_t g_t (V^T a_t)^T, and the expected squared norm of one token's part of
    it is tr(V^T F_in V): these directions have the most of it.
    """
    assert statistics.input_fisher is not None
    found = statistics.input_fisher.spectrum(statistics.tokens, rank, leading=True)
    return Start(found.vectors, None, found.values, found.rank())


def fisher_balanced(statistics: LayerStatistics, _weight: Tensor | None, rank: int) -> Start:
    r"""The directions of ``fisher``, with rows of such lengths that each sees as much of the inputs as PEFT's rows do.

    .. math:: |a_i|^2 = \frac{1}{3}\,\frac{\mathrm{tr} A / d}{v_i^T A v_i}

    A random row of PEFT's sees E (a_i^T x)^2 = tr A / (3 d). A leading direction of that length sees up to thousands of
    times as much, and an optimiser that moves every entry of B by about its learning rate (Adam) then takes steps as much
    larger along it. Rows are at most `LONGEST` times as long as usual.
    """
    assert statistics.input is not None
    start = fisher(statistics, _weight, rank)
    total, vectors = statistics.input, start.directions
    if total.sketched:
        seen = quadratic_forms(total.spectrum(statistics.tokens, rank), vectors)
    else:
        seen = (vectors * (total.sum @ vectors)).sum(0) / statistics.tokens
    usual = float(total.trace) / statistics.tokens / total.size
    lengths = (usual / seen.clamp_min(usual / LONGEST**2)).sqrt()
    return Start(vectors, None, start.scores, start.known, lengths)


def activation(statistics: LayerStatistics, _weight: Tensor | None, rank: int) -> Start:
    """Leading eigenvectors of A = E a a^T (a control: the directions of EVA, arXiv 2410.07170, without its mean)."""
    assert statistics.input is not None
    found = statistics.input.spectrum(statistics.tokens, rank, leading=True)
    return Start(found.vectors, None, found.values, found.rank())


def gradient(statistics: LayerStatistics, _weight: Tensor | None, rank: int) -> Start:
    """Leading right singular vectors of the mean gradient M = E g a^T (a control: the subspace of LoRA-GA)."""
    left, right = _mean_gradient(statistics)
    singular, vectors = _right_space(left, right, rank)
    return Start(vectors, None, singular.square(), _rank(singular))


def fisher_batch(statistics: LayerStatistics, _weight: Tensor | None, rank: int, *, batches: int = 1) -> Start:
    r"""Leading eigenvectors of E[G_n^T G_n], G_n the mean gradient of a training batch of n tokens.

    .. math:: E[G_n^T G_n] = M^T M + (F_{in} - M^T M) / n

    for independent tokens: what B receives in a step is the mean gradient and what n tokens leave of the noise. n = 1 is
    ``fisher``, all N calibration tokens as one batch is ``gradient``. M itself is estimated from N tokens, whose noise is
    taken off: E[M_N^T M_N] = M^T M + (F_in - M^T M) / N.

    Args:
        statistics: Of the layer.
        rank: Directions.
        batches: Batches that the N tokens came in: n = N / batches.
    """
    total, second = statistics.mean_gradient, statistics.input_fisher
    assert total is not None and second is not None
    tokens = statistics.tokens
    if tokens < 2:
        raise InputError("mode 'fisher_batch' needs at least two tokens: give more calibration data")
    each = min(max(1.0, tokens / batches), tokens)
    # The two formulas above, solved for E[G_n^T G_n] in what is known; neither weight is negative as n <= N.
    share = (1 - 1 / each) / (1 - 1 / tokens)
    rest = max(0.0, 1 / each - share / tokens)
    if total.sketched or second.sketched:
        return _fisher_batch_of_sketches(statistics, rank, share, rest)
    matrix = total.matrix(tokens)
    trace = share * float(matrix.double().square().sum()) + rest * float(second.trace) / tokens
    wanted = (matrix.T @ matrix).mul_(share).add_(second.sum, alpha=rest / tokens)
    del matrix
    found = spectrum_of_matrix(wanted, rank, trace=trace, leading=True)
    return Start(found.vectors, None, found.values, found.rank())


def _fisher_batch_of_sketches(statistics: LayerStatistics, rank: int, share: float, rest: float) -> Start:
    """`fisher_batch` in the space that both sketches span."""
    assert statistics.mean_gradient is not None and statistics.input_fisher is not None
    second = statistics.input_fisher.spectrum(statistics.tokens, rank)
    left, right = statistics.mean_gradient.factors(statistics.tokens)
    basis = torch.linalg.qr(torch.cat([second.vectors, right], 1).double()).Q
    one, two = basis.T @ second.vectors.double(), basis.T @ right.double() @ left.double().T
    core = rest * (one * second.values.double()) @ one.T + share * two @ two.T
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    scores = values.flip(0).clamp_min(0).float()
    return Start(signed((basis @ vectors.flip(1)).float()), None, scores, _rank(scores))


def natural_gradient(statistics: LayerStatistics, _weight: Tensor | None, rank: int) -> Start:
    """Row space of the natural gradient G^-1 M A^-1, by the leading part of N = G^-1/2 M A^-1/2 = P S Q^T.

    In the whitened space the best update of rank r is that of the leading singular vectors; mapped back, its rows are
    A^-1/2 Q_r, made orthonormal by QR.
    """
    assert statistics.input is not None and statistics.output is not None
    inputs = statistics.input.spectrum(statistics.tokens, rank)
    outputs = statistics.output.spectrum(statistics.tokens, rank)
    left, right = _mean_gradient(statistics)
    left = power(outputs, -0.5, left)
    if right is None:
        left = power(inputs, -0.5, left.T).T
    else:
        right = power(inputs, -0.5, right)
    singular, vectors = _right_space(left, right, rank)
    mapped = torch.linalg.qr(power(inputs, -0.5, vectors)).Q
    return Start(signed(mapped), None, singular.square(), _rank(singular))


def random(statistics: LayerStatistics, _weight: Tensor | None, rank: int, *, seed: int = 0) -> Start:
    """Random orthonormal directions (a control: the norm and orthogonality of the others, without data)."""
    from lorascope.core.seeds import derive_seed

    generator = torch.Generator().manual_seed(derive_seed(seed, "random directions", statistics.component.name))
    drawn = torch.randn(statistics.component.d_in, rank, generator=generator)
    return Start(torch.linalg.qr(drawn).Q, None, torch.ones(rank), rank)


def fisher_select(statistics: LayerStatistics, weight: Tensor | None, rank: int, *, lowest: bool = False) -> Start:
    """The singular directions of W = U S V^T whose Fisher score s_i^2 (u_i^T G u_i)(v_i^T A v_i) is highest or lowest.

    The score is the expected squared derivative of the loss with respect to log s_i when G and A are independent.
    """
    assert statistics.input is not None and statistics.output is not None and weight is not None
    if min(weight.shape) <= 2 * FULL_EIGEN_WIDTH:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        v = vh.T
    elif lowest:
        raise InputError(
            f"the lowest directions of layer '{statistics.component.name}' need the full decomposition of a "
            f"{weight.shape[0]} x {weight.shape[1]} weight: take fisher_select with the highest ones"
        )
    else:
        u, s, v = _svd_lowrank(weight, max(rank, KEPT))
    forms = quadratic_forms(statistics.output.spectrum(statistics.tokens, rank), u)
    forms = forms * quadratic_forms(statistics.input.spectrum(statistics.tokens, rank), v)
    scores = s.square() * forms
    order = scores.argsort(descending=not lowest)[:rank]
    root = s[order].sqrt()
    return Start(v[:, order] * root, u[:, order] * root, scores[order], int((scores > 0).sum()))


def fisher_whitened(statistics: LayerStatistics, weight: Tensor | None, rank: int) -> Start:
    """The part of rank r of W that matters most to the Fisher norm: G^1/2 W A^1/2 = P S Q^T, mapped back.

    B A = G^-1/2 P_r S_r Q_r^T A^-1/2 is the matrix of rank r closest to W in the norm |G^1/2 (.) A^1/2|. The factors are
    balanced: the same update with B^T B = A A^T.
    """
    assert statistics.input is not None and statistics.output is not None and weight is not None
    inputs = statistics.input.spectrum(statistics.tokens, rank)
    outputs = statistics.output.spectrum(statistics.tokens, rank)
    whitened = power(inputs, 0.5, power(outputs, 0.5, weight).T).T
    p, s, q = (part[..., :rank] for part in _svd(whitened, rank))
    b, a = power(outputs, -0.5, p * s), power(inputs, -0.5, q)
    # Balance through the small core: b a^T = (Q_b R_b)(Q_a R_a)^T.
    left, right = torch.linalg.qr(b), torch.linalg.qr(a)
    u, core, vh = torch.linalg.svd(left.R @ right.R.T)
    root = core.sqrt()
    return Start(right.Q @ (vh.T * root), left.Q @ (u * root), s.square(), _rank(s))


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("fisher", ("input_fisher",), fisher, False, False, "leading eigenvectors of E |g|^2 a a^T, B = 0"),
        Mode(
            "fisher_balanced",
            ("input_fisher", "input"),
            fisher_balanced,
            False,
            False,
            "those of fisher, each row seeing equally much, B = 0",
        ),
        Mode("activation", ("input",), activation, False, False, "leading eigenvectors of E a a^T, B = 0 (control)"),
        Mode("gradient", ("mean_gradient",), gradient, False, True, "rows of the mean gradient, B = 0 (control)"),
        Mode(
            "fisher_batch",
            ("input_fisher", "mean_gradient"),
            fisher_batch,
            False,
            True,
            "leading eigenvectors of a batch's E G^T G, B = 0",
        ),
        Mode(
            "natural_gradient",
            ("input", "output", "mean_gradient"),
            natural_gradient,
            False,
            True,
            "rows of the natural gradient, B = 0",
        ),
        Mode("random", (), random, False, False, "random orthonormal directions, B = 0 (control)"),
        Mode("fisher_select", ("input", "output"), fisher_select, True, False, "singular directions by Fisher score"),
        Mode("fisher_whitened", ("input", "output"), fisher_whitened, True, False, "leading part of W in Fisher norm"),
    )
}


def _mean_gradient(statistics: LayerStatistics) -> tuple[Tensor, Tensor | None]:
    """M as (matrix, None), or the factors (L, R) of its sketch."""
    total = statistics.mean_gradient
    assert total is not None
    return total.factors(statistics.tokens) if total.sketched else (total.matrix(statistics.tokens), None)


def _right_space(left: Tensor, right: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Leading singular values and right singular vectors of L, or of L R^T."""
    if right is None:
        _, singular, vectors = _svd(left, rank)
        return singular, signed(vectors)
    basis = torch.linalg.qr(right)
    _, singular, vh = torch.linalg.svd(left @ basis.R.T, full_matrices=False)
    return singular, signed(basis.Q @ vh.T)


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values and vectors: at least ``rank`` leading ones, all of small matrices."""
    if min(matrix.shape) <= FULL_EIGEN_WIDTH:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, : max(rank, KEPT)], s[: max(rank, KEPT)], vh[: max(rank, KEPT)].T
    return _svd_lowrank(matrix, rank)


def _svd_lowrank(matrix: Tensor, rank: int, *, rounds: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular values and vectors by subspace iteration from a fixed start (Halko et al., arXiv 0909.4061)."""
    columns = min(rank + max(16, rank), *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], columns, generator=generator).to(matrix)).Q
    for _ in range(rounds):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    small, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ small)[:, :rank], s[:rank], vh[:rank].T


def _rank(singular: Tensor, tolerance: float = 1e-6) -> int:
    return int((singular > tolerance * singular[:1]).sum())
