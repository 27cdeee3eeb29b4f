"""The guard: does this input look like the traces at all?

A condition of its own, never folded into the acceptor: an acceptor learned from the traces is confident far away from
them. The guard's value is z(energy) + z(largest cosine to a label's centroid) / 2; energy is log-sum-exp of the logits
(Liu et al., "Energy-based Out-of-distribution Detection", 2020).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policies.acceptor import Table

# Energy tells near from far better than cosine; together they do best (on CLINC150's out-of-scope calls).
SIMILARITY_SHARE = 0.5
# Standard deviations above the highest energy of any trace that still look like the traces.
HEADROOM = 1.0


@dataclass(frozen=True)
class Guard:
    """Standardisation of both signals; inputs with a value below `threshold` are deferred as novel.

    `highest` is the energy, standardised, above which an input is novel too.
    """

    energy_mean: float
    energy_std: float
    similarity_mean: float
    similarity_std: float
    threshold: float
    highest: float

    def values(self, table: Table) -> NDArray[np.float64]:
        """Guard value of each row, (n,): higher is more like the traces."""
        energy = (table.energy.astype(np.float64) - self.energy_mean) / self.energy_std
        similarity = (table.similarity.astype(np.float64) - self.similarity_mean) / self.similarity_std
        # An energy that no trace comes near is no better than one too low: an embedding of the wrong length, say.
        return np.minimum(energy + SIMILARITY_SHARE * similarity, self.threshold + self.highest - energy)


def fit_guard(table: Table, budget: float) -> Guard:
    """A guard that turns away the share `budget` of the out-of-fold rows of `table`."""
    energy, similarity = table.energy.astype(np.float64), table.similarity.astype(np.float64)
    means = float(energy.mean()), float(similarity.mean())
    stds = float(max(energy.std(), 1e-6)), float(max(similarity.std(), 1e-6))
    guard = Guard(means[0], stds[0], means[1], stds[1], 0.0, np.inf)
    threshold = float(np.quantile(guard.values(table), budget))
    return replace(guard, threshold=threshold, highest=float((energy.max() - means[0]) / stds[0]) + HEADROOM)
