"""The gate: the test a policy must pass before it may answer. numpy and scipy only.

Promise: with probability at least `confidence` over the traces, the agreement on handled calls drawn like the traces is
at least `target`. Thresholds are fixed without labels and tried from strict to loose. The error probability
delta = 1 - confidence is dealt out at up to three starts, so that a lapse near the top does not end all. A threshold
that passes hands its level on to the next, one that fails loses it: the fallback procedure (Wiens & Dmitrienko, "The
fallback procedure for evaluating a single family of hypotheses", 2005), which keeps the chance of passing any bad
threshold at delta; with one start it is fixed-sequence testing (Angelopoulos et al., "Learn then Test", 2021). For a
fixed threshold, errors among the m accepted rows are Binomial(m, 1 - agreement), so the p-value is exact. Rows with
weights are tested by betting instead (`policies.betting`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from policies.betting import Bets, WeightedEvidence, WeightedSample

Agreement = NDArray[np.bool_]
AcceptScores = NDArray[np.float64]
Groups = NDArray[np.int64]
Labels = NDArray[np.int64]
Weights = NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)

_STEP = 0.0025
# Shares of delta for an early, a main and a late start; the latter two wait for these shares of the inputs. Found by
# simulation: real and made-up curves, rising, flat, and bad at the top.
_EARLY, _MAIN, _LATE = 0.15, 0.65, 0.20
_MAIN_AT, _LATE_AT = 0.20, 0.50
# The smallest sample worth starting at passes with this many disagreements.
_ALLOWED_AT_START = 1


@dataclass(frozen=True)
class Choice:
    """What one gate run found. `threshold`: scores at or above it are accepted; None where nothing passed.

    `coverage` is the share of all rows accepted, `agreement` their share of agreeing rows (both weighted where rows
    have weights), `lower` the pointwise one-sided bound on the agreement at the level the walk used, `n_handled` their
    number.
    """

    threshold: float | None
    coverage: float
    agreement: float | None
    lower: float | None
    n_handled: int


_NOTHING = Choice(None, 0.0, None, None, 0)


@dataclass(frozen=True)
class Thresholds:
    """One choice for the rows whose answer is not protected, and one for each protected label.

    `pool` and `protected` (label index -> choice) stand on their own: either may be refused while others are certified,
    and a threshold of None then means that none of its rows is handled. Coverage is a share of all rows everywhere.
    """

    pool: Choice
    protected: dict[int, Choice]

    def named(self, labels: Sequence[str]) -> dict[str, float | None]:
        """The threshold of each protected label by its name; None: never answered."""
        return {labels[label]: choice.threshold for label, choice in self.protected.items()}

    @property
    def certified(self) -> bool:
        """Whether anything at all is handled."""
        return self.total.n_handled > 0

    @property
    def total(self) -> Choice:
        """All that is handled: the pool's threshold, the least of the lower bounds."""
        parts = [part for part in (self.pool, *self.protected.values()) if part.threshold is not None]
        if len(parts) == 1 and not self.protected:
            return self.pool
        coverage = sum(part.coverage for part in parts)
        if not coverage:
            return _NOTHING
        agreement = sum(part.coverage * (part.agreement or 0.0) for part in parts) / coverage
        lower = min(part.lower or 0.0 for part in parts)
        return Choice(self.pool.threshold, coverage, agreement, lower, sum(part.n_handled for part in parts))


@dataclass(frozen=True)
class Late:
    """Rows whose answer changes once the threshold falls to `scores` (n,), -inf for all others; `agreement` (n,) is
    that of the later answer. An earlier stage of a cascade then speaks first."""

    scores: AcceptScores
    agreement: Agreement

    def at(self, rows: Agreement) -> "Late":
        """Some of the rows."""
        return Late(self.scores[rows], self.agreement[rows])


def choose_threshold(
    scores: AcceptScores,
    agreement: Agreement,
    target: float,
    confidence: float,
    groups: Groups | None = None,
    weights: Weights | None = None,
    late: Late | None = None,
    clusters: Groups | None = None,
) -> Choice:
    """The loosest threshold that passes.

    `scores` (n,) holds -inf for rows that are deferred whatever the threshold (outside the guard, too long). Rows tied
    with a threshold's boundary row are left out of the test and of what is accepted. `groups` (n,) numbers the inputs:
    rows of one group are the same input and have the same score. A threshold must then pass twice, on all rows and on
    the first row of each group: a file that holds everything ten times is no evidence ten times as strong.

    `weights` (n,) > 0 are inverse probabilities of having been recorded, in any unit. Equal ones change nothing. The
    largest among rows that may be accepted is taken for the largest there is, which is right where weights are set by
    design and not read off labels (see `policies.betting`). `late`: rows whose answer changes further down.
    `clusters` (n,): rows of one agree or disagree together, so that they are tested as fewer, by the design effect of
    what is accepted (see `design_effect`).
    """
    ranking = _Ranking.of(scores, groups)
    delta = 1 - confidence
    evidence: _Evidence
    if weights is None or all_equal(weights):
        evidence = _Counts.of(ranking, agreement, 1 - target, late, clusters)
    else:
        # Betting goes row by row and cannot take an answer back: a changing one counts as right only if right twice.
        agreement = agreement if late is None else agreement & (late.agreement | np.isneginf(late.scores))
        evidence = _weighted(ranking, agreement, weights, _bets(1 - target, delta, agreement, clusters))
    accepted, level = _walk(ranking.scores, evidence, delta)
    if accepted == 0:
        return _NOTHING
    handled, threshold = ranking.place < accepted, float(ranking.scores[accepted - 1])
    if late is not None and isinstance(evidence, _Counts):
        agreement = np.where(late.scores >= threshold, late.agreement, agreement)
    coverage, agreeing = _share(handled, weights), _share(agreement[handled], of_rows(weights, handled))
    lower = evidence.lower_bound(accepted, level)
    return Choice(threshold, coverage, agreeing, lower, int(handled.sum()))


def choose_thresholds(
    scores: AcceptScores,
    agreement: Agreement,
    answered: Labels,
    protected: Iterable[int],
    target: float,
    confidence: float,
    groups: Groups | None = None,
    weights: Weights | None = None,
    late: Late | None = None,
    clusters: Groups | None = None,
) -> Thresholds:
    """A threshold for each protected label on its own, and one for all other rows.

    `answered` (n,) is the label index that the surrogate says; `protected` holds label indices. With m protected labels
    each of the m + 1 choices gets 1 / (m + 1) of the error probability, so all promises hold jointly, and what is
    handled altogether keeps the target as well. Without protected labels this is `choose_threshold`.
    """
    labels = sorted(set(protected))
    if not labels:
        pool = choose_threshold(scores, agreement, target, confidence, groups, weights, late, clusters)
        return Thresholds(pool, {})
    each = 1 - (1 - confidence) / (len(labels) + 1)

    def choose(rows: Agreement) -> Choice:
        if not rows.any():
            return _NOTHING
        choice = choose_threshold(
            scores[rows],
            agreement[rows],
            target,
            each,
            of_rows(groups, rows),
            of_rows(weights, rows),
            None if late is None else late.at(rows),
            of_rows(clusters, rows),
        )
        share = choice.coverage * _share(rows, weights)
        return Choice(choice.threshold, share, choice.agreement, choice.lower, choice.n_handled)

    return Thresholds(choose(~np.isin(answered, labels)), {label: choose(answered == label) for label in labels})


def fewest_inputs(target: float, confidence: float) -> int:
    """The smallest number of different inputs on which anything can pass."""
    return first_testable(target, 1 - confidence, _ALLOWED_AT_START)


@lru_cache(maxsize=1024)
def first_testable(target: float, delta: float, allowed: int = 2) -> int:
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


def beats_majority(
    labels: Labels, predicted: Labels, handled: Agreement, delta: float, weights: Weights | None = None
) -> bool:
    """Whether the surrogate agrees more often than the most frequent label would, on the handled rows.

    Exact one-sided McNemar test at level `delta`; with `weights` (n,) the most frequent label is the heaviest, and the
    rows on which the two differ are tested by betting. A policy that only ever says that label never passes.
    """
    known = labels >= 0
    if not known.any():
        return False
    majority = np.bincount(labels[known], of_rows(weights, known)).argmax()
    right, right_by_majority = predicted == labels, labels == majority
    differ = handled & (right != right_by_majority)
    lost = right_by_majority[differ]
    if not (~lost).any():
        return False
    if weights is None or all_equal(weights):
        return float(binom.cdf(int(lost.sum()), len(lost), 0.5)) <= delta
    sample = WeightedSample.of(np.flatnonzero(differ), weights[differ] / weights[handled].max(), lost)
    return Bets(0.5, delta).p_value(sample.weights, sample.wrong, 0.5) <= delta


@dataclass(frozen=True)
class _Ranking:
    """Different inputs in falling order of score: `scores` of those that may be accepted, `first` row of each input,
    and the `place` (n,) of each row among them: it is accepted with the m best where its place is below m."""

    scores: AcceptScores
    first: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, scores: AcceptScores, groups: Groups | None) -> "_Ranking":
        first: NDArray[np.int64] = np.arange(len(scores))
        if groups is not None:
            first = np.unique(groups, return_index=True)[1]
        order = np.argsort(-scores[first], kind="stable")
        ordered = scores[first][order]
        ordered = ordered[np.isfinite(ordered)]
        # By the row's own score: copies of an input may be read, and scored, a little differently.
        return cls(ordered, first[order], np.searchsorted(-ordered, -scores, side="left"))


class _Evidence(Protocol):
    """What labelled rows say about accepting the m best inputs."""

    @property
    def step(self) -> float: ...

    def p_values(self, sizes: NDArray[np.int64]) -> Iterable[float]: ...

    def lower_bound(self, m: int, level: float) -> float: ...

    def first_testable(self, level: float, allowed: int) -> int: ...


@dataclass(frozen=True)
class _Counts:
    """Running sums over inputs in falling order of score, each starting with 0: accepted rows and disagreements, once
    with one row an input and, where inputs repeat, once with all rows."""

    error_rate: float
    samples: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    place: NDArray[np.int64]
    agreement: Agreement
    clusters: Groups | None = None
    step: float = _STEP

    @classmethod
    def of(
        cls,
        ranking: _Ranking,
        agreement: Agreement,
        error_rate: float,
        late: Late | None = None,
        clusters: Groups | None = None,
    ) -> "_Counts":
        wrong = ~agreement
        n = len(ranking.first)
        errors = _running(wrong[ranking.first])
        if late is not None:
            errors = errors + _later_errors(ranking, wrong, late, ranking.first)
        samples = [(np.arange(n + 1), errors)]
        if n < len(wrong):
            rows, errors = (np.bincount(of, minlength=n + 1)[:n] for of in (ranking.place, ranking.place[wrong]))
            errors = _running(errors)
            if late is not None:
                errors = errors + _later_errors(ranking, wrong, late, np.arange(len(wrong)))
            samples.append((_running(rows), errors))
        member = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
        return cls(error_rate, samples, ranking.place, agreement, member)

    def p_values(self, sizes: NDArray[np.int64]) -> list[float]:
        effects = np.array([self._design_effect(m) for m in sizes.tolist()])
        # Whole rows that say as much, rounded against the policy.
        tests = [
            binom.cdf(np.ceil(wrong[sizes] / effects), np.floor(rows[sizes] / effects), self.error_rate)
            for rows, wrong in self.samples
        ]
        return [float(p) for p in np.max(tests, axis=0)]

    def lower_bound(self, m: int, level: float) -> float:
        effect = self._design_effect(m)
        tests = [(int(rows[m] / effect), ceil(wrong[m] / effect)) for rows, wrong in self.samples]
        return min(lower_bound(rows, wrong, 1 - level) for rows, wrong in tests)

    def first_testable(self, level: float, allowed: int) -> int:
        return first_testable(1 - self.error_rate, level, allowed)

    def _design_effect(self, m: int) -> float:
        if self.clusters is None:
            return 1.0
        accepted = self.place < m
        if self.agreement[accepted].all():
            # Without a disagreement nothing tells how they come: as they do among all rows.
            accepted = np.ones(len(accepted), np.bool_)
        return design_effect(self.clusters[accepted], self.agreement[accepted])


def design_effect(clusters: Groups, agreement: Agreement) -> float:
    """How many rows say as much about the mean agreement as one independent row would, at least 1.

    Rows of one cluster (n,) may agree or disagree together: the variance of the mean where whole clusters are drawn,
    over that where rows are, sum_g (sum_i r_i)^2 / sum_i r_i^2 with r the residuals (the cluster-robust variance;
    Kish, "Survey Sampling", 1965, chapter 5).
    """
    if len(agreement) == 0 or agreement.all() or not agreement.any():
        return 1.0
    residuals = agreement - agreement.mean()
    together = float((np.bincount(clusters, residuals) ** 2).sum())
    return max(1.0, together / float((residuals**2).sum()))


def _bets(error_rate: float, level: float, agreement: Agreement, clusters: Groups | None) -> Bets:
    if clusters is None:
        return Bets(error_rate, level)
    return Bets(error_rate, level, design_effect(np.unique(clusters, return_inverse=True)[1], agreement))


def _later_errors(ranking: _Ranking, wrong: Agreement, late: Late, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many errors more (or fewer) there are among `rows` when the m best inputs are accepted, m = 0, 1, ..."""
    rows = rows[np.isfinite(late.scores[rows])]
    # The first m whose threshold lies at or below the score from which the row's answer is the later one.
    accepted = np.searchsorted(-ranking.scores, -late.scores[rows], side="left") + 1
    change = (~late.agreement[rows]).astype(np.int64) - wrong[rows]
    n = len(ranking.first)
    reached = accepted <= n
    return np.cumsum(np.bincount(accepted[reached], change[reached], minlength=n + 1)).astype(np.int64)


def _weighted(ranking: _Ranking, agreement: Agreement, weights: Weights, bets: Bets) -> WeightedEvidence:
    able = ranking.place < len(ranking.scores)
    shares = np.minimum(1.0, weights / (weights[able].max() if able.any() else 1.0))
    first = ranking.first
    samples = [WeightedSample.of(ranking.place[first], shares[first], ~agreement[first])]
    if len(first) < len(weights):
        samples.append(WeightedSample.of(ranking.place, shares, ~agreement))
    return WeightedEvidence(bets, samples)


def _starts(n: int, evidence: _Evidence, delta: float) -> list[tuple[int, float]]:
    """(inputs, level), rising. What n inputs are too few to test, early or late, leaves its level to the main start."""
    early = evidence.first_testable(delta * _EARLY, _ALLOWED_AT_START)
    main_at, late = int(n * _MAIN_AT), int(n * _LATE_AT)
    before = [(early, delta * _EARLY)] if early < main_at else []
    after = [(late, delta * _LATE)] if evidence.first_testable(delta * _LATE, _ALLOWED_AT_START) <= late else []
    level = delta * (_MAIN + (0 if before else _EARLY) + (0 if after else _LATE))
    main = max(evidence.first_testable(level, _ALLOWED_AT_START), main_at)
    return [start for start in (*before, (main, level), *after) if start[0] <= n]


def _walk(scores: AcceptScores, evidence: _Evidence, delta: float) -> tuple[int, float]:
    """(inputs accepted by the loosest threshold that passed, the level it passed at); (0, delta) where none did."""
    starts = _starts(len(scores), evidence, delta)
    best = (0, delta)
    if not starts:
        return best
    sizes = _sizes(scores, [size for size, _ in starts], evidence.step)
    level = 0.0
    for m, p in zip(sizes.tolist(), evidence.p_values(sizes), strict=True):
        while starts and starts[0][0] <= m:
            level += starts.pop(0)[1]
        # Level 0 passes nothing, not even a p-value too small to be told from 0.
        if level == 0 or p > level:
            level = 0.0
            continue
        best = (m, level)
    return best


def _sizes(scores: AcceptScores, starts: list[int], step: float) -> NDArray[np.int64]:
    """Numbers of inputs to try accepting, rising. Everything tied with a boundary stays out, so that what is tested is
    what is accepted; what ties pull below the first start is left out."""
    n = len(scores)
    planned = np.unique([*range(starts[0], n, max(1, int(n * step))), *starts, n])
    sizes = np.where(planned == n, n, np.searchsorted(-scores, -scores[planned - 1], side="left"))
    return np.unique(sizes[sizes >= starts[0]])


def _running(counts: NDArray[np.int64] | Agreement) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def all_equal(weights: Weights) -> bool:
    """Whether the weights say nothing."""
    return len(weights) == 0 or bool(weights.min() == weights.max())


def of_rows(values: NDArray[_T] | None, rows: Agreement) -> NDArray[_T] | None:
    """`values[rows]`, or None where there are no values."""
    return None if values is None else values[rows]


def _share(rows: Agreement, weights: Weights | None) -> float:
    return float(rows.mean()) if weights is None or all_equal(weights) else float(np.average(rows, weights=weights))
