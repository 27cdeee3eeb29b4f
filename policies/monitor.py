"""Watching live agreement: statements that hold at whatever moment they are looked at. numpy only.

Every comparison of surrogate and teacher has a weight in (0, 1]: the least probability with which any call that the
statement is about could be compared at that moment, divided by the probability with which this one was. Both are fixed
before the draw. Then `weight * (wrong - rate)` has an expectation of at most 0 where at most a share `rate` of *all*
calls would be wrong, whatever makes the sampling unequal, and a bet that multiplies wealth by

    1 + s * weight * (wrong - rate)

gains nothing on average (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting",
arXiv 2010.09686; with chosen sampling probabilities: Xu, Karampatziakis & Mineiro, arXiv 2406.10490). Agreement may
move and depend on the past; what evidence refutes is that it was on the one side of the target all along.

**Evidence** (`log_evidence_against`, `log_evidence_for`) is the logarithm of the wealth of a bettor who starts with 1:
by Ville's inequality it ever reaches log(1 / alpha) with probability at most alpha. The stakes are fixed, so wealth
depends on how many comparisons of each weight there were and how many of them were wrong, in no order: `Counts` is all
there is to keep. It is the right test of a claim, and slow to see a change, because wealth lost while all was well must
be won back first.

**A detector** sees change. Its Shiryaev-Roberts statistic, R <- (R + 1) * (1 + s * weight * (wrong - rate)), is what
bettors own of whom one starts at every comparison: R minus the number of comparisons gains nothing on average, so while
agreement is on target or above the mean number of comparisons until R reaches A is at least A, and within n of them it
does so with probability at most n / A (Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532). Some day it does.

**The stakes.** A stake stands for an alternative: `odds` times the odds rate / (1 - rate) of a wrong answer at the
target, by s = c / (1 + c rate), c = odds - 1. Where all weights are 1 the bet is the likelihood ratio of that
alternative. So one table serves all targets; factors are positive for any weight; and each is monotone in the rate,
whence bounds are exact: `lower_bound` reaches a target when `log_evidence_for` it reaches log(1 / alpha). Odds are
powers of two with exponents 1/32 to 8, most of the prior where evidence has to be quick (1.2 to 3 times the odds for
falls, 1/32 to 2/3 for proofs) and a little at both ends: a fall to chance is seen in a dozen comparisons, and bounds
still tighten at a million. At target 0.95 the median proof takes some 580 comparisons at 0.97 and alpha 0.05, 240 at
0.98, 129 at 0.99; a fall from 0.97 to 0.90 is seen in 250, to 0.85 in 95, by a detector with at least 20,000 between
false alarms (`tests/guarantees/live`). Other tables and priors that were tried differ by a tenth either way.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import exp, isfinite, log, log1p
from sys import float_info
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_EXPONENTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 3 / 2, 2, 3, 5, 8)
# What a detector's statistic stops at: far above any alarm, and no single comparison takes it to infinity from there.
_CEILING = 1e250
# Bounds are found between 24 rates at a time: 25**5 is a ten-millionth.
_CUTS, _ROUNDS = 24, 5
# Counts above this are not exact as floats.
_MOST = 2**53


@dataclass
class Counts:
    """How many comparisons there were of each weight, and how many of them disagreed.

    Weights are design constants of few distinct values; each makes every look a little slower. Whether a comparison is
    lost may not hang on who was right.
    """

    by_weight: dict[float, list[int]] = field(default_factory=dict)

    def add(self, weight: float, wrong: bool, n: int = 1) -> None:
        """Count `n` comparisons, all wrong or all right. Raises ValueError for a weight outside (0, 1] or n below 0."""
        _check_weight(weight)
        if n < 0:
            raise ValueError(f"{n} is no number of comparisons")
        if n:
            seen = self.by_weight.setdefault(float(weight), [0, 0])
            seen[0] += n
            seen[1] += n if wrong else 0

    @property
    def n(self) -> int:
        """Comparisons."""
        return sum(n for n, _ in self.by_weight.values())

    @property
    def wrong(self) -> int:
        """Comparisons that disagreed."""
        return sum(wrong for _, wrong in self.by_weight.values())

    @property
    def effective(self) -> float:
        """Comparisons of equal weight that would say as much (Kish): (sum of weights)^2 / sum of squared weights."""
        squares = sum(weight**2 * n for weight, (n, _) in self.by_weight.items())
        return self._total**2 / squares if squares else 0.0

    @property
    def agreement(self) -> float | None:
        """Estimate of the agreement over all calls; None without comparisons."""
        wrong = sum(weight * wrong for weight, (_, wrong) in self.by_weight.items())
        return 1 - wrong / self._total if self.by_weight else None

    @property
    def _total(self) -> float:
        return sum(weight * n for weight, (n, _) in self.by_weight.items())

    def to_json(self) -> list[list[float]]:
        """`[[weight, comparisons, wrong], ...]`, by rising weight."""
        return [[weight, *seen] for weight, seen in sorted(self.by_weight.items())]

    @classmethod
    def from_json(cls, value: Any) -> "Counts":
        """What `to_json` gave. Raises ValueError for anything else."""
        counts = cls()
        for weight, n, wrong in _rows(value, 3):
            if not (isinstance(n, int) and isinstance(wrong, int) and 0 < n <= _MOST and 0 <= wrong <= n):
                raise ValueError(f"{wrong} wrong of {n} are no counts")
            if weight in counts.by_weight:
                raise ValueError(f"weight {weight} stands twice")
            counts.add(weight, True, wrong)
            counts.add(weight, False, n - wrong)
        return counts


@dataclass(frozen=True)
class Mixture:
    """Alternatives to a rate of wrong answers, as multiples of its odds, and the prior belief in each."""

    odds: tuple[float, ...]
    prior: tuple[float, ...]

    @classmethod
    def of(cls, direction: int, parts: tuple[int, ...]) -> "Mixture":
        """Odds of 2**(direction * exponent); `parts` (k,) are the prior, up to a factor."""
        return cls(tuple(2.0 ** (direction * e) for e in _EXPONENTS), tuple(part / sum(parts) for part in parts))

    def stakes(self, rates: Any) -> Values:
        """The stakes (..., k) against each of `rates` (...)."""
        more = np.array(self.odds) - 1
        return np.asarray(more / (1 + more * np.asarray(rates)[..., None]))

    def log_wealth(self, counts: Counts, rates: Values) -> Values:
        """Log of what betting on these alternatives has made of 1, (m,), against each of `rates` (m,)."""
        weights = np.array(list(counts.by_weight))
        seen = np.array(list(counts.by_weight.values()), float).reshape(-1, 2)
        wrong, right = seen[:, 1], seen[:, 0] - seen[:, 1]
        exposed = self.stakes(rates)[..., None] * weights
        rates = rates[:, None, None]
        logs = np.log1p(exposed * (1 - rates)) @ wrong + np.log1p(-exposed * rates) @ right + np.log(self.prior)
        most = logs.max(axis=1)
        return np.asarray(most + np.log(np.exp(logs - most[:, None]).sum(axis=1)))


# More is wrong than the target allows.
FALLEN = Mixture.of(1, (1, 2, 4, 16, 32, 32, 24, 12, 8, 4, 2))
# Less is.
PROVEN = Mixture.of(-1, (1, 2, 4, 8, 16, 24, 24, 24, 24, 16, 4))


def log_evidence_against(counts: Counts, target: float) -> float:
    """Log of the evidence against "agreement is at least `target`": ever log(1 / alpha) with probability <= alpha.

    Raises ValueError for a target outside (0, 1).
    """
    return _log_evidence(FALLEN, counts, target)


def log_evidence_for(counts: Counts, target: float) -> float:
    """Log of the evidence against "agreement is at most `target`", thus for the target. As `log_evidence_against`."""
    return _log_evidence(PROVEN, counts, target)


def lower_bound(counts: Counts, confidence: float) -> float:
    """What agreement is at least: true at all moments together with probability `confidence`; 0 without comparisons.

    At most a ten-millionth too low. Raises ValueError for a confidence outside (0, 1).
    """
    needed = _needed(confidence)
    return 1 - _boundary(lambda rates: PROVEN.log_wealth(counts, rates) >= needed)[1] if counts.n else 0.0


def upper_bound(counts: Counts, confidence: float) -> float:
    """What agreement is at most, as `lower_bound`; 1 without comparisons.

    Both bounds hold together with probability at least 2 * confidence - 1.
    """
    needed = _needed(confidence)
    return 1 - _boundary(lambda rates: FALLEN.log_wealth(counts, rates) < needed)[0] if counts.n else 1.0


class Detector:
    """Has agreement fallen below the target? An alarm is a `log_value` of log(mean comparisons between false alarms).

    Takes every comparison once; neither their order nor whether one is lost may hang on who was right.
    """

    def __init__(self, target: float, values: Iterable[float] | None = None) -> None:
        """`values` (k,) are the statistics of the alternatives, from `to_json`. Raises ValueError for a bad target."""
        self.target = _check_share(target, "target")
        self._rate = 1 - target
        self._stakes = [float(stake) for stake in FALLEN.stakes(self._rate)]
        self._values = [0.0] * len(self._stakes) if values is None else list(values)

    def update(self, weight: float, wrong: bool) -> None:
        """Take one comparison. Raises ValueError for a weight outside (0, 1]."""
        _check_weight(weight)
        step = weight * (1 - self._rate if wrong else -self._rate)
        stakes = self._stakes
        self._values = [(value + 1) * (1 + s * step) for value, s in zip(self._values, stakes, strict=True)]
        if max(self._values) > _CEILING:
            self._values = [min(value, _CEILING) for value in self._values]

    @property
    def log_value(self) -> float:
        """Log of the statistic; 0 where it is below 1."""
        return log(max(1.0, sum(p * value for p, value in zip(FALLEN.prior, self._values, strict=True))))

    def to_json(self) -> dict[str, Any]:
        """The target, and for every alternative its odds and its statistic."""
        return {"target": self.target, "by_odds": [list(pair) for pair in zip(FALLEN.odds, self._values, strict=True)]}

    @classmethod
    def from_json(cls, value: Any) -> "Detector":
        """What `to_json` gave. Raises ValueError for anything else, and where it was of other alternatives."""
        return cls(_number(value, "target"), _statistics(value, _CEILING))


class ShareDetector:
    """Has the share of calls outside the guard risen above a limit? Fed in batches of calls, none of them sampled.

    One step a batch: an alarm is a `log_value` of log(mean batches between false alarms). Calls that come in bursts of
    the same thing say less than their number: `design_effect` >= 1 divides the counts (bursts of so many equal calls).
    """

    def __init__(self, limit: float, design_effect: float = 1.0, values: Iterable[float] | None = None) -> None:
        """`values` (k,) are from `to_json`. Raises ValueError: a limit outside (0, 1), a design effect below 1."""
        self.limit = _check_share(limit, "limit")
        if not (isfinite(design_effect) and design_effect >= 1):
            raise ValueError(f"design effect {design_effect} is below 1")
        self.design_effect = design_effect
        self._each = [-log1p(limit * (odds - 1)) / design_effect for odds in FALLEN.odds]
        self._outside = [log(odds) / design_effect for odds in FALLEN.odds]
        # Log of one more than the statistic.
        self._values = [0.0] * len(self._each) if values is None else list(values)

    def update(self, n: int, k: int) -> None:
        """Take a batch of `n` calls, `k` of them outside; no calls are no batch. ValueError where k > n or k < 0."""
        if not 0 <= k <= n:
            raise ValueError(f"{k} of {n} calls cannot be outside")
        if n:
            steps = zip(self._values, self._each, self._outside, strict=True)
            self._values = [_softplus(value + n * each + k * outside) for value, each, outside in steps]

    @property
    def log_value(self) -> float:
        """Log of the statistic; 0 where it is below 1."""
        most = max(self._values)
        total = most + log(sum(p * exp(value - most) for p, value in zip(FALLEN.prior, self._values, strict=True)))
        return total + log1p(-exp(-total)) if total > log(2) else 0.0

    def to_json(self) -> dict[str, Any]:
        """The limit, the design effect, and for every alternative its odds and log(1 + its statistic)."""
        pairs = [list(pair) for pair in zip(FALLEN.odds, self._values, strict=True)]
        return {"limit": self.limit, "design_effect": self.design_effect, "by_odds": pairs}

    @classmethod
    def from_json(cls, value: Any) -> "ShareDetector":
        """What `to_json` gave. Raises ValueError for anything else, and where it was of other alternatives."""
        return cls(_number(value, "limit"), _number(value, "design_effect"), _statistics(value))


def _log_evidence(mixture: Mixture, counts: Counts, target: float) -> float:
    rate = 1 - _check_share(target, "target")
    return float(mixture.log_wealth(counts, np.array([rate]))[0]) if counts.n else 0.0


def _boundary(is_above: Callable[[Values], NDArray[np.bool_]]) -> tuple[float, float]:
    """Two near rates with the one between them at which `is_above` turns from false to true."""
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        cuts = np.linspace(low, high, _CUTS + 2)
        above = is_above(cuts[1:-1])
        first = int(above.argmax()) if above.any() else _CUTS
        low, high = float(cuts[first]), float(cuts[first + 1])
    return low, high


def _needed(confidence: float) -> float:
    return -log1p(-_check_share(confidence, "confidence"))


def _softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + log1p(exp(-abs(x)))


def _check_weight(weight: float) -> None:
    if not 0 < weight <= 1:
        raise ValueError(f"weight {weight} is not in (0, 1]")


def _check_share(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} {value} is not between 0 and 1")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= float_info.max


def _number(value: Any, key: str) -> float:
    if not isinstance(value, dict) or not _is_number(value.get(key)):
        raise ValueError(f"there is no number {key!r}")
    return float(value[key])


def _rows(value: Any, width: int) -> list[list[Any]]:
    """`value`, if it is a list of rows of so many numbers. Raises ValueError."""
    rows: list[list[Any]] = value if isinstance(value, list) else [[]]
    if not all(isinstance(row, list) and len(row) == width and all(map(_is_number, row)) for row in rows):
        raise ValueError(f"not a list of rows of {width} numbers")
    return rows


def _statistics(value: Any, most: float = float_info.max) -> list[float]:
    rows = _rows(value.get("by_odds"), 2)
    if [odds for odds, _ in rows] != list(FALLEN.odds):
        raise ValueError("of other alternatives than are bet on now")
    if not all(0 <= statistic <= most for _, statistic in rows):
        raise ValueError("a statistic is out of its range")
    return [float(statistic) for _, statistic in rows]
