"""Hold every estimator of lorascope.information against closed forms and an independent library.

    python benchmarks/estimators.py                 # writes docs/science/estimators.md and prints it
    python benchmarks/estimators.py --out FILE      # elsewhere

Takes under a minute on two cores and needs no network. Exits 1 if a value is off by more than its stated tolerance.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import infomeasure
import numpy as np
import torch

from lorascope.core import provenance
from lorascope.information import (
    JointAccumulator,
    MomentAccumulator,
    effective_rank,
    entropy,
    gaussian_channel_information,
    gaussian_mutual_information,
    jensen_shannon,
    kl_divergence,
    linear_cka,
    matrix_entropy,
    mutual_information_bounds,
    samplers,
    softmax_jensen_shannon,
    stable_rank,
)

COPIES = 200_000  # samples by which infomeasure is told a distribution
LN2 = math.log(2)


@dataclass(frozen=True)
class Case:
    """One known number: what we say, and how far the library is from us on the same input (None: no such estimator)."""

    name: str
    measure: str
    truth: float
    ours: float
    tolerance: float
    oracle: tuple[float, float] | None = None  # ours and theirs on identical input

    @property
    def error(self) -> float:
        """Distance from the truth."""
        return abs(self.ours - self.truth)


def copies(weights: np.ndarray) -> np.ndarray:
    return np.rint(weights / weights.sum() * COPIES).astype(np.int64)


def repeated(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(counts.size), counts.ravel())


def discrete(generator: torch.Generator) -> Iterator[Case]:
    p = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    truths = [
        samplers.independent(p, p[:4]),
        samplers.diagonal(torch.ones(2)),
        samplers.diagonal(torch.ones(100)),
        samplers.diagonal(p),
        samplers.diagonal(torch.tensor([1.0, 1e-9])),
        *(samplers.binary_symmetric_channel(flip) for flip in (1e-6, 0.01, 0.1, 0.3, 0.499)),
        *(samplers.erasure_channel(loss, p) for loss in (0.1, 0.5, 0.9)),
        *(samplers.random_blocks(k, 5, generator) for k in (2, 8, 30)),
    ]
    for truth in truths:
        ours = mutual_information_bounds(truth.joint)
        counts = copies(truth.joint.numpy())
        rows, columns = np.divmod(repeated(counts), counts.shape[1])
        theirs = float(infomeasure.mutual_information(rows, columns, approach="discrete"))
        same = (mutual_information_bounds(counts).mi, theirs)
        yield Case(truth.name, "mi_joint", truth.mi, ours.mi, 1e-13, same)
        yield Case(truth.name, "joint_js", truth.js, ours.js, 1e-13)
        yield Case(truth.name, "max_ratio, relative", 1.0, ours.max_ratio / truth.max_ratio, 1e-13)


def accumulated() -> Iterator[Case]:
    """Known joints built from tokens as a measurement does: 1,000 equal updates, the worst case for a float32 sum."""
    p = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for truth in (samplers.erasure_channel(0.3, p), samplers.diagonal(p), samplers.binary_symmetric_channel(0.1)):
        weights = truth.joint.sum(1)
        conditional = (truth.joint / weights[:, None]).float()
        ids = torch.repeat_interleave(torch.arange(len(weights)), (10 * weights).round().long())
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-7)):
            accumulator = JointAccumulator(*truth.joint.shape, dtype=dtype)
            for _ in range(1000):
                accumulator.update(torch.eye(len(weights))[ids], conditional[ids])
            name = f"{truth.name}, 10,000 tokens, {str(dtype).removeprefix('torch.')} matrix"
            yield Case(name, "mi_joint", truth.mi, accumulator.compute().mi, tolerance)


def _sum_h(t: float) -> float:
    """h(t) = [(1 + t) ln(1 + t) + (1 - t) ln(1 - t)] / 2 by its series."""
    return math.fsum(t ** (2 * k) / (2 * k * (2 * k - 1)) for k in range(1, 8))


def divergences() -> Iterator[Case]:
    p, q = torch.tensor([0.75, 0.25], dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64)
    m = 0.5 * math.log(1.5) * 1.5 + 0.25 * math.log(0.5)  # KL((3/4, 1/4) || (1/2, 1/2))
    samples = repeated(copies(p.numpy())), repeated(copies(q.numpy()))
    library = float(infomeasure.jensen_shannon_divergence(*samples, approach="discrete"))
    ours = float(jensen_shannon(p.log(), q.log()))
    yield Case("Bernoulli 1/4 and 3/4", "miub_js", m, ours, 1e-14, (ours, library))
    half = float(softmax_jensen_shannon(p.log().float()[None], q.log().float()[None]))
    yield Case("the same from float32 logits", "miub_js", m, half, 1e-6)
    apart = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]], dtype=torch.float64)
    yield Case("disjoint supports", "miub_js", LN2, float(jensen_shannon(*apart)), 1e-15)
    shift = torch.tensor([1e-5, -1e-5], dtype=torch.float64)  # 1/2 +- x/2 with x = tanh(1e-5), against 1/2
    x = math.tanh(1e-5)
    exact = (2 + x) / 4 * _sum_h(x / (2 + x)) + (2 - x) / 4 * _sum_h(x / (2 - x))
    close = float(jensen_shannon(torch.log_softmax(0 * shift, -1), torch.log_softmax(shift, -1)))
    yield Case("logits moved by 1e-5, relative", "miub_js", 1.0, close / exact, 1e-9)
    kl = float(kl_divergence(p, q))
    library = float(infomeasure.kullback_leiber_divergence(*samples, approach="discrete"))
    yield Case("Bernoulli 1/4 and 3/4", "KL", 0.5 * math.log(3), kl, 1e-14, (kl, library))
    ours = float(entropy(p))
    library = float(infomeasure.entropy(samples[0], approach="discrete"))
    yield Case("Bernoulli 1/4", "entropy", 2 * LN2 - 0.75 * math.log(3), ours, 1e-14, (ours, library))


def gaussians(generator: torch.Generator, seed: int) -> Iterator[Case]:
    for d, noise in ((1, 1.0), (16, 0.1), (64, 10.0)):
        variances = torch.linspace(0.5, 2.0, d, dtype=torch.float64)
        truth = 0.5 * math.fsum(math.log1p(v / noise) for v in variances.tolist())
        q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
        cov = q @ torch.diag(variances) @ q.T
        name = f"{d} features, noise variance {noise:g}, true covariance"
        yield Case(name, "Gaussian channel", truth, gaussian_channel_information(cov, noise), 1e-10)
        ours = gaussian_mutual_information(cov, cov, cov, noise)
        yield Case(f"{name}, L = O", "Gaussian MI", truth, ours, 1e-9)
    for correlations in ([0.0], [0.3], [0.6], [0.9], [0.99], [0.9, 0.5, 0.1, 0.0]):
        n, d = 5000, len(correlations)
        x, y, truth = samplers.correlated_gaussians(n, correlations, generator)
        moments = MomentAccumulator(d)
        moments.update(x, y)
        m = moments.compute()
        ours = gaussian_mutual_information(m.cov_oo, m.cov_ll, m.cov_ol, 1e-12)
        theirs = float(infomeasure.mutual_information(x.numpy(), y.numpy(), approach="ksg", seed=seed))
        # Three standard deviations: of -1/2 ln(1 - rho^2) it is rho / sqrt(n), near rho = 0 the bias d^2 / 2n rules.
        spread = 3 * math.sqrt(sum(rho * rho for rho in correlations) / n) + 3 * d * d / n
        name = f"{n} samples, correlations {', '.join(map(str, correlations))}"
        yield Case(name, "Gaussian MI", truth, ours, spread, (ours, theirs))


def spectra(generator: torch.Generator) -> Iterator[Case]:
    s = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    yield Case("singular values 4, 2, 1, 1", "effective rank", 2**1.75, effective_rank(s), 1e-14)
    yield Case("singular values 4, 2, 1, 1", "stable rank", 22 / 16, stable_rank(s), 1e-14)
    cross = torch.cat([torch.eye(8), -torch.eye(8)])
    yield Case("plus and minus 8 unit vectors", "matrix entropy", math.log(8), float(matrix_entropy(cross)), 1e-6)
    yield Case("simplex of 9 points", "matrix entropy", math.log(8), float(matrix_entropy(torch.eye(9))), 1e-6)
    x = torch.linalg.qr(torch.randn(64, 9, generator=generator, dtype=torch.float64)).Q
    x = torch.linalg.qr(x - x.mean(0)).Q  # centred, orthonormal
    yield Case("2 of 4 directions shared", "CKA", 0.5, linear_cka(x[:, :4], x[:, 2:6]), 1e-12)


def rows(cases: list[Case]) -> Iterator[str]:
    yield "| case | measure | truth | lorascope | error | tolerance | difference from infomeasure, same input |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for c in cases:
        library = f"{abs(c.oracle[0] - c.oracle[1]):.1e}" if c.oracle else ""
        yield (
            f"| {c.name} | {c.measure} | {c.truth:.10g} | {c.ours:.10g} | {c.error:.1e} | {c.tolerance:.0e} | {library} |"
        )


def document(cases: list[Case], seed: int) -> str:
    facts = provenance.collect(seed=seed)
    versions = facts["versions"] | {"infomeasure": importlib.metadata.version("infomeasure")}
    kept = ("lorascope", "python", "torch", "numpy", "infomeasure")
    machine = facts["machine"]
    compared = sum(c.oracle is not None for c in cases)
    exact = [abs(c.oracle[0] - c.oracle[1]) for c in cases if c.oracle and "samples" not in c.name]
    inside = sum(c.error <= c.tolerance for c in cases)
    lines = [
        "# Estimators against the truth",
        "",
        f"{len(cases)} known numbers, {compared} of them also from infomeasure, an independent library; {inside} of "
        f"{len(cases)} within tolerance. On discrete input the two programs differ by at most {max(exact):.1e}. "
        "All information is in nats; the measures are defined in [information.md](information.md).",
        "",
        "The rows with samples estimate from 5,000 random pairs, so that their error is that of the sample (tolerance: "
        "three standard deviations); the library's nearest-neighbour estimator (KSG) has an error of its own there.",
        "",
        *rows(cases),
        "",
        "## Made by",
        "",
        f"`python benchmarks/estimators.py --seed {seed}` on {facts['created'][:10]}.",
        "",
        "- versions: " + ", ".join(f"{name} {versions[name]}" for name in kept if name in versions),
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}",
        f"- seed: {seed}",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "docs" / "science" / "estimators.md"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    parts: list[Callable[[torch.Generator], Iterator[Case]]] = [
        discrete,
        lambda _: accumulated(),
        lambda _: divergences(),
        lambda generator: gaussians(generator, arguments.seed),
        spectra,
    ]
    cases = [case for part in parts for case in part(torch.Generator().manual_seed(arguments.seed))]
    text = document(cases, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)
    off = [c for c in cases if c.error > c.tolerance]
    for c in off:
        warnings.warn(f"{c.name} ({c.measure}): off by {c.error:.1e}, tolerance {c.tolerance:.0e}", stacklevel=1)
    return 1 if off else 0


if __name__ == "__main__":
    raise SystemExit(main())
