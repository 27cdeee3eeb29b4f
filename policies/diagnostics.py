"""What stands beside a certificate and promises nothing: ceilings, effective samples, label by label, how many more."""

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from policies.betting import Bets, WeightedSample
from policies.gate import AcceptScores, Agreement, Groups, Labels, Weights, all_equal, design_effect, of_rows

_FEWEST_REPEATED = 20
# Bounds without a target bet as if this were the error rate.
_USUAL_ERROR_RATE = 0.05
# An estimate of how many traces would do counts on one of the gate's starts, with about this share of its error.
_ONE_START = 0.20


@dataclass(frozen=True)
class Ceiling:
    """How far the teacher agrees with itself. `pairs`: repeated inputs, each counted as one pair; `agreeing`: the share
    of them that got the same label twice; `highest`: about the most any deterministic surrogate can agree."""

    pairs: int
    agreeing: float
    highest: float


@dataclass(frozen=True)
class LabelBounds:
    """Arrays (n_labels,). `handled_share` of the label's own rows (nan without any), `answered`: handled rows where the
    surrogate says it, their `agreement`, and its one-sided `lower` bound (both nan where it is never said)."""

    handled_share: NDArray[np.float64]
    answered: NDArray[np.int64]
    agreement: NDArray[np.float64]
    lower: NDArray[np.float64]


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
    factors = np.geomspace(1.0, 64.0, 49)
    sizes = (accepted[best] * factors).astype(np.int64)
    p = binom.cdf((rate[best] * sizes).astype(np.int64), sizes, 1 - target)
    enough = np.flatnonzero(p <= (1 - confidence) * _ONE_START)
    if len(enough) == 0:
        return None
    return max(int(ceil(n * (factors[enough[0]] - 1) / 50) * 50), 50)


def teacher_ceiling(groups: Groups, labels: Labels, weights: Weights | None = None) -> Ceiling | None:
    """What repeated inputs say about the teacher's agreement with itself; None below 20 repeated inputs.

    `groups` (n,) numbers the inputs, `labels` (n,) the teacher's answers (negative: unlike any other). All pairs of one
    input are averaged first (pairs weighted by the product of the row `weights`), then inputs are averaged alike,
    whatever their number of repeats (with weights: by their mean row weight). Weighting an input by its repeats would
    let one sent 1,000 times speak for the task, and its pairs share one wording.

    Assumes that the teacher answers repeats independently, and that inputs that repeat are like those that do not. If
    every input gets its usual answer with probability p and one other answer else, two answers agree with probability
    a = p^2 + (1 - p)^2, and the best guess is right with p = (1 + sqrt(2a - 1)) / 2. That is concave in a: where inputs
    differ in noise the ceiling is lower, never higher. For a <= 0.5 two outcomes cannot explain it; sqrt(a) is given,
    which no number of outcomes exceeds.
    """
    _, member = np.unique(groups, return_inverse=True)
    row_weights = np.ones(len(labels)) if weights is None else weights
    answers, answer = np.unique(np.stack([member, labels]), axis=1, return_inverse=True)
    squares = row_weights**2
    totals = np.bincount(member, row_weights) ** 2 - np.bincount(member, squares)
    same = np.bincount(answer.ravel(), row_weights) ** 2 - np.bincount(answer.ravel(), squares)
    known = answers[1] >= 0
    agreeing = np.bincount(answers[0][known], same[known], minlength=len(totals))
    counts = np.bincount(member)
    repeated = counts > 1
    pairs = int(repeated.sum())
    if pairs < _FEWEST_REPEATED:
        return None
    importance = (np.bincount(member, row_weights) / counts)[repeated]
    a = float(np.clip(np.average(agreeing[repeated] / totals[repeated], weights=importance), 0, 1))
    return Ceiling(pairs, a, (1 + sqrt(2 * a - 1)) / 2 if a > 0.5 else sqrt(a))


def contradicted_inputs(groups: Groups, labels: Labels) -> int:
    """Inputs, numbered by `groups` (n,), with more than one label of `labels` (n,; negative: unlike any other)."""
    apart = np.where(labels >= 0, labels, -1 - np.arange(len(labels)))
    inputs = np.unique(np.stack([groups, apart]), axis=1)[0]
    return int((np.unique(inputs, return_counts=True)[1] > 1).sum())


def effective_sample(groups: Groups, agreement: Agreement) -> float:
    """How many independent rows would say as much about the agreement of n rows that come in `groups` (n,)."""
    return len(groups) / design_effect(np.unique(groups, return_inverse=True)[1], agreement)


def label_bounds(
    truth: Labels,
    predicted: Labels,
    handled: Agreement,
    n_labels: int,
    confidence: float,
    weights: Weights | None = None,
) -> LabelBounds:
    """Handled share and agreement label by label; each bound holds at `confidence` on its own, not all jointly.

    `truth` (n,) may hold -1 for labels that are not learned. Clopper-Pearson bounds; by betting where weights differ.
    """
    own = truth >= 0
    mine = np.bincount(truth[own], of_rows(weights, own), minlength=n_labels)
    mine_handled = np.bincount(truth[own & handled], of_rows(weights, own & handled), minlength=n_labels)
    said, right = predicted[handled], (predicted == truth)[handled]
    row_weights = of_rows(weights, handled)
    answered = np.bincount(said, minlength=n_labels)
    total = np.bincount(said, row_weights, minlength=n_labels)
    agreeing = np.bincount(said[right], of_rows(row_weights, right), minlength=n_labels)
    with np.errstate(invalid="ignore"):
        shares, agreement = mine_handled / mine, agreeing / total
    lower = np.full(n_labels, np.nan)
    if row_weights is None or weights is None or all_equal(weights):
        n = answered.astype(np.float64)
        k = np.bincount(said[right], minlength=n_labels)
        # beta.ppf has no value at k = 0, where the bound is 0.
        bounds = np.where(k > 0, beta.ppf(1 - confidence, np.maximum(k, 1), n - k + 1), 0.0)
        lower[answered > 0] = bounds[answered > 0]
    elif len(said):
        bets = Bets(_USUAL_ERROR_RATE, 1 - confidence)
        sample = WeightedSample.of(said, row_weights / row_weights.max(), ~right)
        order = np.argsort(sample.place, kind="stable")
        for rows in np.split(order, np.cumsum(answered)[:-1]):
            if len(rows):
                bound = bets.lower_bound(sample.weights[rows], sample.wrong[rows], 1 - confidence)
                lower[sample.place[rows[0]]] = bound
    return LabelBounds(shares, answered, agreement, lower)
