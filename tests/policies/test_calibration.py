"""Probabilities mean what they say: they add up, agree with the decision, and come true as often as they claim."""

from pathlib import Path

import numpy as np
import pytest

from policies.calibration import calibrated, calibration_bins, calibration_error
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Reason, Trace
from tests.traces_maker import make_open_traces, make_traces


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A certified policy of traces whose truth is known."""
    folder = tmp_path_factory.mktemp("policy")
    fit_policy(make_open_traces(2_500), folder, FitConfig(0.85))
    return Policy.load(folder)


@pytest.fixture(scope="module")
def calls() -> list[Trace]:
    """Fresh calls of the same world."""
    return make_open_traces(4_000, seed=90)


def test_the_answer_gets_the_accept_score_and_the_others_the_rest() -> None:
    """In proportion to the softmax."""
    np.testing.assert_allclose(calibrated(np.array([0.2, 0.6, 0.1, 0.1]), 1, 0.8), [0.1, 0.8, 0.05, 0.05])


@pytest.mark.parametrize("score", [0.0, 0.1, 0.3, 0.4])
def test_a_rival_never_overtakes_the_answer(score: float) -> None:
    """Where the acceptor doubts the answer, it is lifted until its nearest rival is level with it."""
    found = calibrated(np.array([0.5, 0.3, 0.2]), 0, score)
    assert found.argmax() == 0
    assert found.max() == pytest.approx(max(score, 0.375))
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found[1] / found[2] == pytest.approx(1.5)


def test_a_softmax_that_leaves_nothing_to_the_others_is_shared_evenly() -> None:
    """float32 rounds a sure surrogate's rivals to zero; the acceptor may still doubt it."""
    np.testing.assert_allclose(calibrated(np.array([0.0, 1.0, 0.0]), 1, 0.9), [0.05, 0.9, 0.05])
    np.testing.assert_allclose(calibrated(np.array([0.0, 1.0]), 1, 0.2), [0.5, 0.5])


def test_any_softmax_and_any_score_give_probabilities() -> None:
    """Not negative, one in sum, and the answer first, for thousands of random ones."""
    generator = np.random.default_rng(0)
    for _ in range(3_000):
        logits = generator.normal(size=generator.integers(2, 40)) * generator.choice([0.01, 1, 30])
        shares = np.exp(logits - logits.max())
        found = calibrated(shares / shares.sum(), int(shares.argmax()), float(generator.random()))
        assert (found >= 0).all()
        assert abs(found.sum() - 1) < 1e-9
        assert found[shares.argmax()] == found.max()


def test_the_error_is_the_mean_gap_of_bins_of_equal_mass() -> None:
    """Two bins by hand, and nothing at all for no rows."""
    probabilities, right = np.array([0.6, 0.9, 0.6, 0.9]), np.array([True, True, False, True])
    assert calibration_bins(probabilities, right, 2) == [(2, 0.6, 0.5), (2, 0.9, 1.0)]
    assert calibration_error(probabilities, right, 2) == pytest.approx(0.1)
    assert calibration_error(np.zeros(0), np.zeros(0, np.bool_)) == 0.0


def test_probabilities_come_true_as_often_as_they_say(policy: Policy, calls: list[Trace]) -> None:
    """Over fresh calls with known truth the expected calibration error is a few hundredths at most."""
    found = [policy.probabilities(call.input) for call in calls]
    tops = [max(row, key=lambda label: row[label]) for row in found if row is not None]
    assert len(tops) == len(calls)
    right = np.array([top == call.teacher for top, call in zip(tops, calls, strict=True)])
    error = calibration_error(np.array([max(row.values()) for row in found if row is not None]), right)
    assert 0.5 < right.mean() < 0.95
    assert error < 0.03


def test_probabilities_agree_with_the_decision(policy: Policy, calls: list[Trace]) -> None:
    """All labels, one in sum, the guess first, and never less than the accept score."""
    for call in calls[:500]:
        found, decision = policy.probabilities(call.input), policy.decide(call.input)
        assert found is not None
        assert set(found) == set(policy.labels)
        assert abs(sum(found.values()) - 1) < 1e-9
        assert next(iter(found)) == decision.guess
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert found[next(iter(found))] >= decision.accept_score


def test_what_was_scored_has_a_guess(policy: Policy, calls: list[Trace]) -> None:
    """The guess is the label where the call is handled, and what the surrogate would have said where not."""
    decisions = policy.decide_many([call.input for call in calls[:500]])
    assert {decision.handled for decision in decisions} == {True, False}
    for decision in decisions:
        assert decision.guess in policy.labels
        assert decision.guess == decision.label or not decision.handled
    assert policy.decide("zqx vkk 蟹 🦀 ωδ").guess in policy.labels


@pytest.mark.parametrize("text", ["", " \n", "x" * 20_000])
def test_what_cannot_be_scored_has_neither(policy: Policy, text: str) -> None:
    """No probabilities and no guess for nothing to read, and for too much."""
    assert policy.probabilities(text) is None
    assert policy.decide(text).guess is None


def test_a_policy_that_cannot_read_the_text_gives_none(refused_folder: Path, tmp_path: Path) -> None:
    """A refused policy has nothing to say, and one that reads embeddings nothing about a text."""
    assert Policy.load(refused_folder).probabilities("refund my money") is None
    traces = make_traces(400)
    names = sorted({trace.teacher for trace in traces})
    rows = np.eye(len(names), dtype=np.float32)[[names.index(trace.teacher) for trace in traces]]
    rows += np.random.default_rng(0).normal(scale=0.1, size=rows.shape).astype(np.float32)
    fit_policy(traces, tmp_path, FitConfig(0.8), rows)
    policy = Policy.load(tmp_path)
    assert policy.probabilities("refund my money") is None
    assert policy.decide("refund my money").reason == Reason.NO_EMBEDDING
    assert policy.decide(rows[0]).guess == traces[0].teacher
