"""The gate: the test a policy must pass before it may answer. numpy and scipy only.

Promise: with probability at least `confidence` over the traces, the agreement on handled calls drawn like the traces is
at least `target`. Thresholds are tried from strict to loose and the walk stops at the first that fails (fixed-sequence
testing: Angelopoulos et al., "Learn then Test", 2021), so trying many does not void the promise. For a fixed threshold,
errors among the m accepted rows are Binomial(m, 1 - agreement), so the p-value is exact. Two walks share
delta = 1 - confidence: one starts where power is high, one at the smallest sample that can pass at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

Agreement = NDArray[np.bool_]
AcceptScores = NDArray[np.float64]
Groups = NDArray[np.int64]

_STEP = 0.0025
_MAIN_START = 0.20
_MAIN_SHARE = 0.8
# The smallest sample worth starting at passes with this many disagreements.
_ALLOWED_AT_START = 2


@dataclass(frozen=True)
class Choice:
    """What one gate run found. `threshold`: scores at or above it are accepted; None where nothing passed.

    `coverage` is the share of all rows accepted, `agreement` their share of agreeing rows, `lower` the pointwise
    exact one-sided bound on the agreement at the level the walk used, `n_handled` their number.
    """

    threshold: float | None
    coverage: float
    agreement: float | None
    lower: float | None
    n_handled: int


def choose_threshold(
    scores: AcceptScores, agreement: Agreement, target: float, confidence: float, groups: Groups | None = None
) -> Choice:
    """The loosest threshold that passes.

    `scores` (n,) holds -inf for rows that are deferred whatever the threshold (outside the guard, too long). Rows tied
    with a threshold's boundary row are left out of the test and of what is accepted. `groups` (n,) numbers the inputs:
    rows of one group are the same input and have the same score. A threshold must then pass twice, on all rows and on
    the first row of each group: a file that holds everything ten times is no evidence ten times as strong.
    """
    sample = _Sample.of(scores, agreement, groups)
    best, best_level = 0, 1 - confidence
    for start, level in _walks(len(sample.first_wrong) - 1, target, 1 - confidence):
        accepted = _walk(sample, start, (1 - target, level))
        if accepted > best:
            best, best_level = accepted, level
    if best == 0:
        return Choice(None, 0.0, None, None, 0)
    rows, wrong = int(sample.rows[best]), int(sample.wrong[best])
    lower = min(lower_bound(n, k, 1 - best_level) for n, k in sample.tests(best))
    return Choice(float(sample.scores[best - 1]), rows / len(scores), 1 - wrong / rows, lower, rows)


def fewest_inputs(target: float, confidence: float) -> int:
    """The smallest number of different inputs on which anything can pass."""
    return min(start for start, _ in _walks(0, target, 1 - confidence))


def first_testable(target: float, delta: float, allowed: int = _ALLOWED_AT_START) -> int:
    """The smallest number of accepted rows that passes with `allowed` disagreements."""
    m = allowed + 1
    while binom.cdf(allowed, m, 1 - target) > delta:
        m += 1 + m // 50
    while m > allowed + 1 and binom.cdf(allowed, m - 1, 1 - target) <= delta:
        m -= 1
    return m


def lower_bound(n: int, wrong: int, confidence: float) -> float:
    """One-sided Clopper-Pearson lower bound on the agreement, `wrong` of `n` rows disagreeing."""
    if wrong >= n:
        return 0.0
    return float(beta.ppf(1 - confidence, n - wrong, wrong + 1))


def beats_majority(labels: NDArray[np.int64], predicted: NDArray[np.int64], handled: Agreement, delta: float) -> bool:
    """Whether the surrogate agrees more often than the most frequent label would, on the handled rows.

    Exact one-sided McNemar test at level `delta`. A policy that only ever says the most frequent label never passes.
    """
    known = labels[labels >= 0]
    if len(known) == 0:
        return False
    majority = np.bincount(known).argmax()
    right = predicted[handled] == labels[handled]
    right_by_majority = labels[handled] == majority
    won = int((right & ~right_by_majority).sum())
    lost = int((~right & right_by_majority).sum())
    return won > 0 and float(binom.sf(won - 1, won + lost, 0.5)) <= delta


def traces_still_needed(
    n: int, scores: AcceptScores, agreement: Agreement, target: float, confidence: float
) -> int | None:
    """About how many more traces would let some threshold pass, the surrogate staying as it is; None if none would.

    An estimate: at the coverage where observed agreement exceeds the target most clearly, the sample is scaled up until
    the exact test passes.
    """
    order = np.argsort(-scores, kind="stable")
    n_open = int(np.isfinite(scores).sum())
    if n_open == 0:
        return None
    accepted = np.arange(1, n_open + 1)
    wrong = np.cumsum(~agreement[order][:n_open])
    worthwhile = accepted >= max(20, n_open // 20)
    rate = np.where(worthwhile, (wrong + 1) / (accepted + 1), 1.0)
    margin = (1 - target - rate) * np.sqrt(accepted)
    best = int(margin.argmax())
    if margin[best] <= 0:
        return None
    for factor in np.geomspace(1.0, 64.0, 49):
        size = int(accepted[best] * factor)
        if binom.cdf(int(rate[best] * size), size, 1 - target) <= (1 - confidence) * (1 - _MAIN_SHARE):
            return max(int(ceil(n * (factor - 1) / 50) * 50), 50)
    return None


@dataclass(frozen=True)
class _Sample:
    """Different inputs in falling order of score: `scores` of those that may be accepted, and running sums that start
    with 0: `rows`, `wrong` (disagreeing rows), `first_wrong` (inputs whose first row disagrees)."""

    scores: AcceptScores
    rows: NDArray[np.int64]
    wrong: NDArray[np.int64]
    first_wrong: NDArray[np.int64]

    @classmethod
    def of(cls, scores: AcceptScores, agreement: Agreement, groups: Groups | None) -> "_Sample":
        numbers = np.arange(len(scores)) if groups is None else groups
        _, first, member = np.unique(numbers, return_index=True, return_inverse=True)
        order = np.argsort(-scores[first], kind="stable")
        wrong = np.bincount(member, weights=~agreement, minlength=len(first)).astype(np.int64)
        columns = (np.bincount(member, minlength=len(first)), wrong, (~agreement[first]).astype(np.int64))
        rows, wrong, first_wrong = (np.concatenate([[0], np.cumsum(column[order])]) for column in columns)
        ordered = scores[first][order]
        return cls(ordered[np.isfinite(ordered)], rows, wrong, first_wrong)

    def tests(self, m: int) -> list[tuple[int, int]]:
        """(rows, disagreements) that must pass where the first m inputs are accepted."""
        return [(m, int(self.first_wrong[m])), (int(self.rows[m]), int(self.wrong[m]))]


def _walks(n: int, target: float, delta: float) -> Iterator[tuple[int, float]]:
    main, spare = delta * _MAIN_SHARE, delta * (1 - _MAIN_SHARE)
    yield max(first_testable(target, main), int(n * _MAIN_START)), main
    yield first_testable(target, spare), spare


def _walk(sample: _Sample, start: int, test: tuple[float, float]) -> int:
    """Inputs accepted by the last threshold that passed; 0 where the first failed."""
    error_rate, level = test
    scores, n_open = sample.scores, len(sample.scores)
    accepted = 0
    for size in _sizes(start, n_open, max(1, int((len(sample.rows) - 1) * _STEP))):
        # Everything tied with the boundary stays out, so what is tested is what is accepted.
        m = size if size == n_open else int(np.searchsorted(-scores, -scores[size - 1], side="left"))
        if m <= accepted or m < start:
            continue
        if max(binom.cdf(wrong, n, error_rate) for n, wrong in sample.tests(m)) > level:
            break
        accepted = m
    return accepted


def _sizes(start: int, stop: int, step: int) -> Iterator[int]:
    if start > stop:
        return
    yield from range(start, stop, step)
    yield stop
