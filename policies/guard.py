"""The guard: does this input look like the traces at all?

A condition of its own, never folded into the acceptor: an acceptor learned from the traces is confident far away from
them. The guard's value is z(energy) + z(largest cosine to a label's centroid); energy is log-sum-exp of the logits (Liu
et al., "Energy-based Out-of-distribution Detection", 2020).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.surrogates import Scores

# Share of calls drawn like the traces that the guard may turn away.
DEFAULT_BUDGET = 0.01


@dataclass(frozen=True)
class Guard:
    """Standardisation of both signals; inputs with a value below `threshold` are deferred as novel."""

    energy_mean: float
    energy_std: float
    similarity_mean: float
    similarity_std: float
    threshold: float

    def values(self, scores: Scores) -> NDArray[np.float64]:
        """Guard value of each row, (n,): higher is more like the traces."""
        energy, similarity = _signals(scores)
        return (energy - self.energy_mean) / self.energy_std + (similarity - self.similarity_mean) / self.similarity_std


def fit_guard(scores: Scores, budget: float = DEFAULT_BUDGET) -> Guard:
    """A guard that turns away the share `budget` of the rows of out-of-fold `scores`."""
    energy, similarity = _signals(scores)
    guard = Guard(
        energy_mean=float(energy.mean()),
        energy_std=float(max(energy.std(), 1e-6)),
        similarity_mean=float(similarity.mean()),
        similarity_std=float(max(similarity.std(), 1e-6)),
        threshold=-np.inf,
    )
    threshold = float(np.quantile(guard.values(scores), budget))
    return Guard(guard.energy_mean, guard.energy_std, guard.similarity_mean, guard.similarity_std, threshold)


def _signals(scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    logits = scores.logits.astype(np.float64)
    top = logits.max(axis=1)
    energy = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return energy, scores.similarity.max(axis=1).astype(np.float64)
