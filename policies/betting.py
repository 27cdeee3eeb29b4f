"""Testing agreement on rows that carry weights, by betting. numpy and scipy only.

A row's weight is the inverse of the probability with which it was recorded. Someone who doubts that the weighted error
rate is at least `e` starts with wealth 1 and bets, row after row, that the next term

    X = w (wrong - e),   w = weight / largest weight

is negative: each row multiplies the wealth by 1 - s X. The stake s depends on earlier weights alone and stays below 1,
so wealth stays positive, and if the rate really is at least `e` (E[X] >= 0) no bet is expected to gain: wealth exceeds
1 / p at any time with probability at most p (Ville), and 1 / (highest wealth) is a p-value. See Waudby-Smith & Ramdas,
"Estimating means of bounded random variables by betting", arXiv 2010.09686, whose stakes these are, without the
estimated variance: stakes that see no labels make the p-value monotone in `e`, so that bounds come by bisection.

Rows are taken in one fixed random order. The largest weight must not depend on labels. The largest one observed serves
where weights are set by design (a known audit rate); weights that are estimated and heavy-tailed need a known cap.

Where every row of a sample has the largest weight, disagreements are counted instead, by the exact binomial test, which
needs fewer rows. This is valid too: reading the lighter rows, had there been any, as errors would give a binomial of
rate at least `e`, and the counted test passes only where that one would.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

Weights = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Wealth after the worst row is 1 - _BOLDEST of what it was: one disagreement never ends the game.
_BOLDEST = 0.95
_BISECTIONS = 40


@dataclass(frozen=True)
class Bets:
    """How boldly to bet: stakes are best where a sample's error rate is near `error_rate` and p near `level`.

    Fixed before labels are looked at. Any values are valid; far-off ones only cost power. `design_effect` >= 1 divides
    the growth of wealth: so many rows that agree or disagree together say as much as one.
    """

    error_rate: float
    level: float
    design_effect: float = 1.0

    def stakes(self, weights: Weights) -> Weights:
        """The stake for each row (m,), from the weights of the rows before it and one imagined row of weight 1."""
        m = len(weights)
        mean_square = np.cumsum(np.concatenate([[1.0], weights[:-1] ** 2])) / np.arange(1, m + 1)
        variance = m * self.error_rate * (1 - self.error_rate) * mean_square
        return np.minimum(_BOLDEST, np.sqrt(2 * log(1 / self.level) / variance))

    def p_value(self, weights: Weights, wrong: Flags, error_rate: float) -> float:
        """p-value of "the weighted error rate is at least `error_rate`"; 1 without rows.

        `weights` (m,) in (0, 1] are shares of the largest weight; `wrong` (m,) in the same, label-blind order.
        """
        if len(weights) == 0:
            return 1.0
        if weights.min() >= 1:
            return float(binom.cdf(int(wrong.sum()), len(wrong), error_rate))
        return self._bet(self.stakes(weights) * weights, wrong, error_rate)

    def lower_bound(self, weights: Weights, wrong: Flags, level: float) -> float:
        """Lower bound on the weighted agreement: it is too high with probability at most `level`."""
        if len(weights) == 0 or wrong.all():
            return 0.0
        if weights.min() >= 1:
            n, k = len(wrong), int(wrong.sum())
            return float(beta.ppf(level, n - k, k + 1))
        exposed = self.stakes(weights) * weights
        rejected, open_ = 1.0, 0.0
        for _ in range(_BISECTIONS):
            middle = (rejected + open_) / 2
            if self._bet(exposed, wrong, middle) <= level:
                rejected = middle
            else:
                open_ = middle
        return 1 - rejected

    def can_pass(self, weights: Weights, allowed: int, level: float) -> bool:
        """Whether the p-value could be at most `level` with `allowed` typical rows wrong. Looks at no label."""
        if len(weights) <= allowed:
            return False
        if weights.min() >= 1:
            return float(binom.cdf(allowed, len(weights), self.error_rate)) <= level
        exposed = self.stakes(weights) * weights
        typical = float(np.sqrt(np.mean(exposed**2)))
        lost = np.log1p(typical * self.error_rate) - np.log1p(-typical * (1 - self.error_rate))
        return float(np.log1p(exposed * self.error_rate).sum() - allowed * lost) >= log(1 / level)

    def _bet(self, exposed: Weights, wrong: Flags, error_rate: float) -> float:
        growth = np.log1p(exposed * (error_rate - wrong))
        return float(np.exp(-max(0.0, float(np.cumsum(growth).max())) / self.design_effect))


@dataclass(frozen=True)
class WeightedSample:
    """Rows in a fixed random order: `place` of the row's input in falling order of score, weight, wrong or not."""

    place: NDArray[np.int64]
    weights: Weights
    wrong: Flags

    @classmethod
    def of(cls, place: NDArray[np.int64], weights: Weights, wrong: Flags) -> "WeightedSample":
        """Weights are shares of the largest. The random order depends on the number of rows alone."""
        order = np.random.default_rng(0).permutation(len(place))
        return cls(place[order], weights[order], wrong[order])

    def accepted(self, m: int) -> tuple[Weights, Flags]:
        """Weights and wrongness of the rows whose input is among the first m."""
        mine = self.place < m
        return self.weights[mine], self.wrong[mine]


@dataclass(frozen=True)
class WeightedEvidence:
    """What weighted rows say about accepting the m best inputs, for every m. `samples[0]` has one row an input."""

    bets: Bets
    samples: list[WeightedSample]
    # One look at a sample reads all of it, so the walk looks at fewer thresholds than with counts.
    step: float = 0.01

    def p_values(self, sizes: NDArray[np.int64]) -> Iterator[float]:
        """p-values of accepting that many inputs, each the largest over the samples; one at a time."""
        for m in sizes:
            yield max(self.bets.p_value(*sample.accepted(int(m)), self.bets.error_rate) for sample in self.samples)

    def lower_bound(self, m: int, level: float) -> float:
        """Lower bound on the weighted agreement where m inputs are accepted: the least over the samples."""
        return min(self.bets.lower_bound(*sample.accepted(m), level) for sample in self.samples)

    def first_testable(self, level: float, allowed: int) -> int:
        """The fewest inputs that can pass with `allowed` disagreements; one more than there are where none can."""
        inputs = self.samples[0]

        def can_pass(m: int) -> bool:
            return self.bets.can_pass(inputs.accepted(m)[0], allowed, level)

        n = len(inputs.place)
        return 1 + bisect_left(range(1, n + 1), True, key=can_pass)
