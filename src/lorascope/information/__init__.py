"""Information measures as pure functions on tensors, and accumulators that merge. All information is in nats."""

from lorascope.information.accumulators import Accumulator, JointAccumulator, MeanAccumulator, RatioAccumulator
from lorascope.information.divergences import entropy, jensen_shannon, kappa, kl_divergence
from lorascope.information.fast import probability_jensen_shannon, softmax_jensen_shannon
from lorascope.information.gaussian import (
    gaussian_channel_information,
    gaussian_information_upper,
    gaussian_mutual_information,
    oas_shrinkage,
    shrink_covariance,
    shrink_joint_covariance,
)
from lorascope.information.joint import MutualInformationBounds, mutual_information, mutual_information_bounds
from lorascope.information.moments import MomentAccumulator, Moments
from lorascope.information.prediction import perplexity, token_cross_entropy
from lorascope.information.similarity import linear_cka, linear_cka_from_moments
from lorascope.information.spectra import effective_rank, low_rank_singular_values, matrix_entropy, stable_rank

__all__ = [
    "Accumulator",
    "JointAccumulator",
    "MeanAccumulator",
    "MomentAccumulator",
    "Moments",
    "MutualInformationBounds",
    "RatioAccumulator",
    "effective_rank",
    "entropy",
    "gaussian_channel_information",
    "gaussian_information_upper",
    "gaussian_mutual_information",
    "jensen_shannon",
    "kappa",
    "kl_divergence",
    "linear_cka",
    "linear_cka_from_moments",
    "low_rank_singular_values",
    "matrix_entropy",
    "mutual_information",
    "mutual_information_bounds",
    "oas_shrinkage",
    "perplexity",
    "probability_jensen_shannon",
    "shrink_covariance",
    "shrink_joint_covariance",
    "softmax_jensen_shannon",
    "stable_rank",
    "token_cross_entropy",
]
