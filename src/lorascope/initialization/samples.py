"""What each sample's gradient says: its energy, in a layer or in a subspace of it, and a short random projection of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lorascope.adapters import Component
from lorascope.core.seeds import derive_seed


@dataclass(frozen=True)
class SampleOptions:
    """Which numbers are kept of each sample.

    Attributes:
        subspaces: Layer -> orthonormal directions of its input in columns, (d_in, r), such as the leading eigenvectors of
            its Fisher factor; the energy is then that of the gradient for B with A those directions. None takes the
            gradient of the whole weight. Layers that are not named are left out.
        embedding: Features of the random projection; 0 leaves it out. A square number.
    """

    subspaces: Mapping[str, Float[Tensor, "d r"]] | None = None
    embedding: int = 0


@dataclass(frozen=True)
class SampleScores:
    """Numbers of each sample, in the order of the data.

    With G the gradient of a sample's summed loss with respect to a layer's weight, G = sum_t g_t a_t^T, and V the layer's
    subspace (the identity where none was given):

    Attributes:
        layers: Names of the layers.
        energy: |G V|^2, nats squared over weight units, float64 of (samples, layers). Of a layer that runs several times in
            one forward pass, the sum over its runs.
        loss_nats: Summed loss of each sample, float64 of (samples).
        terms: Number of losses in that sum, (samples).
        embedding: Random projection e of all layers' G V together, whose inner products estimate those of the gradients:
            E[e_m . e_n] = sum over layers of <G_m V, G_n V>; float32 of (samples, features), or None.

    References:
        Gradient embeddings for the choice of samples: arXiv 1906.03671.
    """

    layers: tuple[str, ...]
    energy: Float[Tensor, "n layers"]
    loss_nats: Float[Tensor, " n"]
    terms: Int[Tensor, " n"]
    embedding: Float[Tensor, "n features"] | None = None


@dataclass
class SampleRecorder:
    """Collects `SampleScores` while batches pass by.

    Attributes:
        options: What to keep.
        layers: Names of the layers that count.
        seed: Of the random projection.
    """

    options: SampleOptions
    layers: tuple[str, ...]
    seed: int
    _batches: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _number: int = 0
    _projections: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def begin(self, number: int, samples: int, losses: Tensor, owners: Tensor) -> None:
        """Start a batch, or come back to it in a later pass.

        Args:
            number: Of the batch.
            samples: In the batch.
            losses: Of its terms, nats.
            owners: The sample of each term.
        """
        self._number = number
        if number in self._batches:
            return
        owners = owners.cpu()
        loss = torch.zeros(samples, dtype=torch.float64).index_add_(0, owners, losses.detach().double().cpu())
        side = round(self.options.embedding**0.5)
        self._batches[number] = {
            "loss": loss,
            "terms": torch.bincount(owners, minlength=samples),
            "energy": torch.zeros(samples, len(self.layers), dtype=torch.float64),
            "embedding": torch.zeros(samples, side * side),
        }

    def update(self, component: Component, a: Float[Tensor, "b t d_in"], g: Float[Tensor, "b t d_out"]) -> None:
        """Add one layer of the batch; tokens that do not count have a zero gradient."""
        if component.name not in self.layers:
            return
        kept = self._batches[self._number]
        if self.options.subspaces is not None:
            a = a @ self.options.subspaces[component.name].to(a)
        kept["energy"][:, self.layers.index(component.name)] += gradient_energy(a, g).cpu()
        if self.options.embedding:
            right, left = self._projection(component.name, a.shape[-1], g.shape[-1], a.device)
            small = (g @ left).transpose(1, 2) @ (a @ right)
            kept["embedding"] += small.reshape(len(small), -1).cpu()

    def _projection(self, name: str, d_in: int, d_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if name not in self._projections:
            side = round(self.options.embedding**0.5)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "embedding", name))
            right = torch.randn(d_in, side, generator=generator) / side**0.5
            left = torch.randn(d_out, side, generator=generator) / side**0.5
            self._projections[name] = (right.to(device), left.to(device))
        return self._projections[name]

    def parts(self) -> dict[int, dict[str, Tensor]]:
        """What is known of every batch."""
        return self._batches

    def scores(self, parts: Mapping[int, Mapping[str, Tensor]]) -> SampleScores:
        """The scores of all batches, those of other processes among them."""
        order = sorted(parts)
        joined = {key: torch.cat([parts[number][key] for number in order]) for key in parts[order[0]]}
        embedding = joined["embedding"] if self.options.embedding else None
        return SampleScores(self.layers, joined["energy"], joined["loss"], joined["terms"], embedding)


def gradient_energy(a: Float[Tensor, "b t d_in"], g: Float[Tensor, "b t d_out"]) -> Float[Tensor, " b"]:
    """|sum_t g_t a_t^T|^2 of each sample, without the matrix where the sample is short.

    Short means fewer tokens than features: then the sum over pairs of tokens (g_t . g_u)(a_t . a_u) is smaller.

    Args:
        a: Inputs.
        g: Gradients.

    Returns:
        Float64 energies.

    Example:
        >>> gradient_energy(torch.ones(1, 2, 3), torch.ones(1, 2, 1)).tolist()
        [12.0]
    """
    if a.shape[1] <= min(a.shape[2], g.shape[2]):
        pairs = (a @ a.transpose(1, 2)) * (g @ g.transpose(1, 2))
        return pairs.sum((1, 2), dtype=torch.float64).clamp_min(0)
    return (g.transpose(1, 2) @ a).square().sum((1, 2), dtype=torch.float64)
