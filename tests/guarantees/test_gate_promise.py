"""The gate's promise where the truth is known: many seeded draws from score models (`make long-tests`).

A model says for every call its score, how probably the surrogate is wrong on it, how probably it is recorded, and what
the surrogate answers. The true agreement above a threshold is integrated over a dense grid of calls.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest

from policies.gate import choose_threshold, choose_thresholds

pytestmark = pytest.mark.guarantee

_CONFIDENCE = 0.90
_TARGETS = (0.90, 0.95, 0.99)
_SIZES = (400, 1_600, 6_000)
_GRID = 200_000


@dataclass(frozen=True)
class Calls:
    """Arrays (n,), one entry a call."""

    scores: np.ndarray
    wrong_rate: np.ndarray
    recorded: np.ndarray
    answered: np.ndarray

    def take(self, rows: np.ndarray) -> "Calls":
        return Calls(self.scores[rows], self.wrong_rate[rows], self.recorded[rows], self.answered[rows])


@dataclass(frozen=True)
class Sample:
    """What a gate is shown."""

    scores: np.ndarray
    agreement: np.ndarray
    answered: np.ndarray
    weights: np.ndarray
    groups: np.ndarray


# From two uniform numbers a call and the target: `rank` 0 is the call the acceptor trusts most.
Model = Callable[[np.ndarray, np.ndarray, float], Calls]
# From a sample and the target: which calls are handled, part by part.
Gate = Callable[[Sample, float], list[Callable[[Calls], np.ndarray]]]


def _calls(rank: np.ndarray, wrong_rate: np.ndarray) -> Calls:
    return Calls(1 - rank, np.clip(wrong_rate, 0, 1), np.ones(len(rank)), np.zeros(len(rank), np.int64))


def easy(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """Almost everything can be handled."""
    return _calls(rank, (1 - target) * (0.1 + 3 * rank**3))


def hard(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """The error rate climbs steadily; about half can be handled."""
    return _calls(rank, (1 - target) * 4 * rank)


def just_below(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """The score knows nothing, and every threshold is just below target."""
    return _calls(rank, np.full(len(rank), (1 - target) * 1.02))


def below(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """The score knows nothing, and every threshold is below target."""
    return _calls(rank, np.full(len(rank), (1 - target) * 1.1))


def bad_top(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """The 3 % that the acceptor trusts most are bad."""
    return _calls(rank, np.where(rank < 0.03, 0.3, (1 - target) * (0.2 + 8 * rank**4)))


def coarse(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """Twelve different scores; the error rate climbs within each as well."""
    calls = hard(rank, _, target)
    return replace(calls, scores=np.ceil(calls.scores * 12))


def two_labels(rank: np.ndarray, other: np.ndarray, target: float) -> Calls:
    """A frequent label that is mostly right and a rare one that is mostly not, with one score for both."""
    rare = other < 0.1
    return _calls(rank, np.where(rare, (1 - target) * 6 * rank, (1 - target) * (0.5 + rank**2)))


def _audited(calls: Calls, other: np.ndarray) -> Calls:
    """Calls a policy handled before were recorded with probability 0.02 to 0.2, all others were."""
    handled = np.modf(calls.scores * 7.3)[0] < 0.6
    return replace(calls, recorded=np.where(handled, 0.02 * 10**other, 1.0))


def audited_below(rank: np.ndarray, other: np.ndarray, target: float) -> Calls:
    """Agreement is just below target; calls that are seldom recorded are worse than those that always are."""
    calls = _audited(_calls(rank, rank), other)
    worse = calls.recorded < 1
    return replace(calls, wrong_rate=(1 - target) * np.where(worse, 1.45, 0.45))


def audited_hard(rank: np.ndarray, other: np.ndarray, target: float) -> Calls:
    """The error rate climbs, and more steeply on the calls that are seldom recorded."""
    calls = _audited(_calls(rank, rank), other)
    return replace(calls, wrong_rate=np.clip((1 - target) * np.where(calls.recorded < 1, 5, 2) * rank, 0, 1))


def lightly_audited(rank: np.ndarray, other: np.ndarray, target: float) -> Calls:
    """Agreement is just below target; every call is recorded with a probability of its own between 0.5 and 1."""
    calls = just_below(rank, other, target)
    return replace(calls, recorded=0.5 + other / 2, wrong_rate=calls.wrong_rate * (0.7 + 0.6 * (1 - other)))


def audited_easy(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """Almost everything can be handled; the more trusted half was audited at 20 %."""
    return replace(easy(rank, _, target), recorded=np.where(rank < 0.5, 0.2, 1.0))


def one_audit_rate(rank: np.ndarray, _: np.ndarray, target: float) -> Calls:
    """The more trusted half was handled and audited at 5 %: exact counts above, bets below."""
    calls = _calls(rank, (1 - target) * np.where(rank < 0.5, 1.02, 0.9 + rank))
    return replace(calls, recorded=np.where(rank < 0.5, 0.05, 1.0))


def three_labels(rank: np.ndarray, other: np.ndarray, target: float) -> Calls:
    """Three answers, all just below target at every threshold."""
    return replace(just_below(rank, other, target), answered=(other * 3).astype(np.int64))


def three_labels_apart(rank: np.ndarray, other: np.ndarray, target: float) -> Calls:
    """Three answers; the third is hard, and the others would carry it if it were not protected."""
    answered = np.searchsorted([0.7, 0.9], other)
    slope = np.array([1.5, 3.0, 8.0])[answered]
    return replace(_calls(rank, (1 - target) * slope * rank), answered=answered)


def the_gate(sample: Sample, target: float) -> list[Callable[[Calls], np.ndarray]]:
    """The gate on rows that all count alike."""
    return _above(choose_threshold(sample.scores, sample.agreement, target, _CONFIDENCE).threshold)


def the_gate_with_weights(sample: Sample, target: float) -> list[Callable[[Calls], np.ndarray]]:
    """The gate, told how probably each row was recorded."""
    choice = choose_threshold(sample.scores, sample.agreement, target, _CONFIDENCE, weights=sample.weights)
    return _above(choice.threshold)


def the_gate_with_groups(sample: Sample, target: float) -> list[Callable[[Calls], np.ndarray]]:
    """The gate, told which rows are one input."""
    return _above(choose_threshold(sample.scores, sample.agreement, target, _CONFIDENCE, sample.groups).threshold)


def the_gate_with_both(sample: Sample, target: float) -> list[Callable[[Calls], np.ndarray]]:
    """The gate, told both."""
    choice = choose_threshold(
        sample.scores, sample.agreement, target, _CONFIDENCE, groups=sample.groups, weights=sample.weights
    )
    return _above(choice.threshold)


def the_gate_with_protected_labels(sample: Sample, target: float) -> list[Callable[[Calls], np.ndarray]]:
    """Labels 1 and 2 are protected: the pool, each of them and all together must keep the target."""
    found = choose_thresholds(sample.scores, sample.agreement, sample.answered, [1, 2], target, _CONFIDENCE)
    by_label = {0: found.pool.threshold, 1: found.protected[1].threshold, 2: found.protected[2].threshold}
    limits = np.array([np.inf if limit is None else limit for limit in by_label.values()])
    parts = [_part(label, float(limit)) for label, limit in enumerate(limits)]
    return [*parts, lambda calls: calls.scores >= limits[calls.answered]]


def point_estimate(sample: Sample, target: float) -> list[Callable[[Calls], np.ndarray]]:
    """A wrong gate: the loosest threshold whose observed agreement is at least the target."""
    order = np.argsort(-sample.scores)
    observed = np.cumsum(sample.agreement[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(observed >= target)
    return _above(float(sample.scores[order[good[-1]]]) if len(good) else None)


def _above(threshold: float | None) -> list[Callable[[Calls], np.ndarray]]:
    return [] if threshold is None else [lambda calls: calls.scores >= threshold]


def _part(label: int, limit: float) -> Callable[[Calls], np.ndarray]:
    return lambda calls: (calls.answered == label) & (calls.scores >= limit)


def _draw(model: Model, target: float, n: int, generator: np.random.Generator, copies: int = 1) -> Sample:
    """n recorded calls; with `copies` each is there 1 to that many times, in random order."""
    rows: list[Calls] = []
    while sum(len(part.scores) for part in rows) < n:
        calls = model(generator.random(2 * n), generator.random(2 * n), target)
        rows.append(calls.take(generator.random(2 * n) < calls.recorded))
    columns = [np.concatenate([getattr(part, name) for part in rows])[:n] for name in Calls.__dataclass_fields__]
    calls = Calls(*columns)
    agreement = generator.random(n) >= calls.wrong_rate
    member = np.arange(n)
    if copies > 1:
        member = generator.permutation(np.repeat(member, generator.integers(1, copies + 1, n)))
    return Sample(
        calls.scores[member], agreement[member], calls.answered[member], 1 / calls.recorded[member], groups=member
    )


@lru_cache(maxsize=1)
def _all_calls(model: Model, target: float) -> Calls:
    """Calls that fill the unit square evenly (a golden-section lattice): a mean over them is an integral."""
    i = np.arange(_GRID)
    return model((i + 0.5) / _GRID, np.modf(i * 0.6180339887498949)[0], target)


def _is_broken(handled: Callable[[Calls], np.ndarray], calls: Calls, target: float) -> bool:
    rows = handled(calls)
    return bool(rows.any()) and float(calls.wrong_rate[rows].mean()) > 1 - target + 1e-9


def check(gate: Gate, model: Model, target: float, n: int, draws: int = 1_000, copies: int = 1) -> float:
    """Assert that the promise is broken in at most 1 - confidence of the draws; the share of draws that pass anything.

    Allowed is what a promise kept exactly would exceed in about one run of forty.
    """
    generator = np.random.default_rng(11)
    calls = _all_calls(model, target)
    broken = passed = 0
    for _ in range(draws):
        parts = gate(_draw(model, target, n, generator, copies), target)
        passed += bool(parts)
        broken += any(_is_broken(part, calls, target) for part in parts)
    delta = 1 - _CONFIDENCE
    assert broken / draws <= delta + 2 * np.sqrt(delta * (1 - delta) / draws)
    return passed / draws


@pytest.mark.parametrize("n", _SIZES)
@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("model", [easy, hard, just_below, below, bad_top, coarse, two_labels])
def test_the_promise_is_kept(model: Model, target: float, n: int) -> None:
    """Over 1,000 draws the chosen threshold is below target in at most one of ten, within binomial error."""
    check(the_gate, model, target, n)


def test_the_promise_is_not_kept_by_refusing() -> None:
    """Where much can be handled the gate passes nearly always."""
    assert check(the_gate, easy, 0.95, 1_600, 300) > 0.98
    assert check(the_gate, easy, 0.99, 6_000, 300) > 0.98
    assert check(the_gate_with_weights, audited_easy, 0.95, 1_600, 100) > 0.98
    assert check(the_gate_with_groups, easy, 0.95, 1_600, 100, copies=5) > 0.98


@pytest.mark.parametrize("model", [just_below, hard])
def test_a_point_estimate_fails_the_same_check(model: Model) -> None:
    """The check has power: the loosest threshold with enough observed agreement breaks the promise far more often."""
    with pytest.raises(AssertionError):
        check(point_estimate, model, 0.95, 1_600, 300)


@pytest.mark.parametrize("n", _SIZES)
@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("model", [audited_below, audited_hard, lightly_audited, one_audit_rate])
def test_the_promise_is_kept_for_weighted_rows(model: Model, target: float, n: int) -> None:
    """Rows recorded with unequal probability count by its inverse, and the promise holds for all calls."""
    check(the_gate_with_weights, model, target, n, 500)


def test_ignored_weights_fail_the_same_check() -> None:
    """Without weights, calls that are always recorded hide those that seldom are."""
    with pytest.raises(AssertionError):
        check(the_gate, audited_below, 0.95, 1_600, 300)
    with pytest.raises(AssertionError):
        check(the_gate, audited_hard, 0.95, 1_600, 300)


@pytest.mark.parametrize("n", [400, 1_600])
@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("model", [just_below, hard])
def test_the_promise_is_kept_for_copied_rows(model: Model, target: float, n: int) -> None:
    """Rows copied 1 to 10 times, in random order, are evidence once."""
    check(the_gate_with_groups, model, target, n, copies=10)


@pytest.mark.parametrize("target", [0.90, 0.95])
def test_the_promise_is_kept_for_copied_weighted_rows(target: float) -> None:
    """The same for rows that carry weights."""
    check(the_gate_with_both, audited_below, target, 1_600, 300, copies=5)


@pytest.mark.parametrize("target", [0.90, 0.95])
def test_the_promise_is_kept_where_some_inputs_come_often(target: float) -> None:
    """Traffic is 500 inputs of very different frequency, each always right or always wrong, about at target.

    What is promised is the agreement over calls, frequent inputs counting as often as they come.
    """
    generator = np.random.default_rng(12)
    broken = 0
    for _ in range(500):
        frequency = 1 / np.arange(1, 501)
        frequency /= frequency.sum()
        scores, right = generator.random(500), generator.random(500) < target
        rows = generator.choice(500, 1_600, p=frequency)
        threshold = choose_threshold(scores[rows], right[rows], target, _CONFIDENCE, rows).threshold
        if threshold is not None:
            handled = scores >= threshold
            broken += float(np.average(right[handled], weights=frequency[handled])) < target
    assert broken / 500 <= 0.10 + 2 * np.sqrt(0.09 / 500)


def test_copies_taken_for_evidence_fail_the_same_check() -> None:
    """Without groups, copies break the promise."""
    with pytest.raises(AssertionError):
        check(the_gate, just_below, 0.95, 1_600, 300, copies=10)


@pytest.mark.parametrize("n", _SIZES)
@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("model", [three_labels, three_labels_apart])
def test_the_promise_is_kept_for_protected_labels_jointly(model: Model, target: float, n: int) -> None:
    """In at most one of ten draws is any of the pool, a protected label, or all that is handled below target."""
    check(the_gate_with_protected_labels, model, target, n)


def test_one_threshold_for_all_labels_fails_the_same_check() -> None:
    """A label that is not protected may well be below target on its own."""

    def unprotected(sample: Sample, target: float) -> list[Callable[[Calls], np.ndarray]]:
        threshold = choose_threshold(sample.scores, sample.agreement, target, _CONFIDENCE).threshold
        return [] if threshold is None else [_part(label, threshold) for label in range(3)]

    with pytest.raises(AssertionError):
        check(unprotected, three_labels_apart, 0.95, 1_600, 300)
