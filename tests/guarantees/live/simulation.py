"""Simulated deployments of known agreement, and the monitors that watch them, many at a time.

What `policies.monitor` does to one deployment is done here to arrays (runs, comparisons), written independently of it,
because a look after each of millions of comparisons is too slow otherwise. The tests hold the two together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from policies.monitor import Counts, Mixture

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Looks = NDArray[np.int64]

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Part:
    """A part of all calls: how large, how often wrong, and how many times the least sampling rate it is sampled at."""

    share: float
    wrong: float
    rate: float = 1.0


@dataclass(frozen=True)
class Traffic:
    """Calls of several parts; the least sampling rate is 1."""

    parts: tuple[Part, ...]

    @classmethod
    def even(cls, agreement: float) -> "Traffic":
        """Calls that are all alike."""
        return cls((Part(1.0, 1 - agreement),))

    @property
    def agreement(self) -> float:
        """Over all calls, however they are sampled."""
        return 1 - sum(part.share * part.wrong for part in self.parts)

    def compare(self, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Floats, Flags]:
        """Weights and wrongness, both `shape`, of calls that were drawn to be compared."""
        chances = np.array([part.share * part.rate for part in self.parts])
        which = rng.choice(len(chances), size=shape, p=chances / chances.sum())
        weights = 1 / np.array([part.rate for part in self.parts])
        return weights[which], rng.random(shape) < np.array([part.wrong for part in self.parts])[which]


# What is sampled more is wrong more often: looks worse than it is. Agreement 0.95.
LOOKS_WORSE = Traffic((Part(0.3, 0.12, 5.0), Part(0.7, 0.02)))
# The reverse. Agreement 0.95.
LOOKS_BETTER = Traffic((Part(0.3, 0.01, 5.0), Part(0.7, 0.047 / 0.7)))


def evidence(mixture: Mixture, weights: Floats, wrong: Flags, target: float) -> Floats:
    """Log of the mixture's wealth after every comparison, (runs, comparisons)."""
    rate = 1 - target
    total: Floats | None = None
    for odds, prior in zip(mixture.odds, mixture.prior, strict=True):
        alternative = odds * rate / (1 - rate + odds * rate)
        stake = (alternative - rate) / (rate * (1 - rate))
        logs = np.cumsum(np.log(1 + stake * weights * (wrong - rate)), axis=1) + log(prior)
        total = logs if total is None else np.logaddexp(total, logs)
    assert total is not None
    return total


def first_look(alarms: Flags) -> Looks:
    """How many comparisons each run took to its first alarm, `NEVER` without one; `alarms` (runs, comparisons)."""
    return np.where(alarms.any(axis=1), alarms.argmax(axis=1) + 1, NEVER)


class Detectors:
    """Shiryaev-Roberts statistics of many runs."""

    def __init__(self, mixture: Mixture, target: float, runs: int) -> None:
        self._rate = 1 - target
        odds, self._prior = np.array(mixture.odds), np.array(mixture.prior)
        alternatives = odds * self._rate / (1 - self._rate + odds * self._rate)
        self._stakes = (alternatives - self._rate) / (self._rate * (1 - self._rate))
        self._values = np.zeros((runs, len(odds)))

    def update(self, weights: Floats, wrong: Flags) -> Floats:
        """One comparison of each run; the statistics (runs,)."""
        exposed = weights * (wrong - self._rate)
        self._values = (self._values + 1) * (1 + exposed[:, None] * self._stakes)
        return np.asarray(self._values @ self._prior)

    def keep(self, runs: Flags) -> None:
        """Go on with some of the runs only."""
        self._values = self._values[runs]


def run_lengths(
    mixture: Mixture,
    traffic: Traffic,
    claim: float,
    runs: int,
    seed: int,
    weighted: bool = True,
    most: int = 10**6,
    detectors: type[Detectors] = Detectors,
) -> Floats:
    """Comparisons until each detector of target 0.95 alarms at `claim`, (runs,); `most` for those silent till then."""
    rng = np.random.default_rng(seed)
    watch, lengths = detectors(mixture, 0.95, runs), np.full(runs, float(most))
    going = np.arange(runs)
    for block in range(0, most, 500):
        weights, wrong = traffic.compare(rng, (500, len(going)))
        alive = np.ones(len(going), bool)
        for step in range(500):
            values = watch.update(weights[step] if weighted else np.ones(len(going)), wrong[step])
            ended = alive & (values >= claim)
            lengths[going[ended]] = block + step + 1
            alive &= ~ended
        watch.keep(alive)
        going = going[alive]
        if not len(going):
            break
    return lengths


def counts_of(weights: Floats, wrong: Flags) -> Counts:
    """The product's own tally of one run's comparisons, (n,) each."""
    counts = Counts()
    for weight in np.unique(weights):
        for flag in (True, False):
            counts.add(float(weight), flag, int(np.sum((weights == weight) & (wrong == flag))))
    return counts


def looked_up(look: Callable[[Counts, float], float], wrong: Flags, target: float) -> Floats:
    """`look` after every comparison of weight 1, (runs, comparisons); each pair of counts is asked for once."""
    known: dict[tuple[int, int], float] = {}
    values = np.empty(wrong.shape)
    for row, total in enumerate(np.cumsum(wrong, axis=1).tolist()):
        for n, k in enumerate(total, start=1):
            if (n, k) not in known:
                counts = Counts()
                counts.add(1.0, False, n - k)
                counts.add(1.0, True, k)
                known[n, k] = look(counts, target)
            values[row, n - 1] = known[n, k]
    return values


def sometimes(rng: np.random.Generator, scores: Floats, looks: int) -> Iterator[tuple[int, int]]:
    """Some (run, comparison) to look at closely: the highest score of each run, and `looks` others of each."""
    runs, length = scores.shape
    for run in range(runs):
        yield run, int(scores[run].argmax())
        for step in rng.integers(length, size=looks):
            yield run, int(step)


def at_most(share: float, runs: int) -> float:
    """What share of `runs` may be seen where the true one is `share`: exceeded once in a thousand times."""
    return float(binom.ppf(0.999, runs, share)) / runs


def surely_above(values: Floats) -> float:
    """What the mean of `values` is at least, but once in a thousand times."""
    return float(values.mean() - 3.1 * values.std(ddof=1) / sqrt(len(values)))
