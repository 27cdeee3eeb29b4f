"""Decisions: the same one by one, in a batch, and in the fitted model; doubt always defers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.artifact import read_file, read_manifest
from policies.features import TextEncoder
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Answer, AnswerKind, Reason
from policies.word_table import load_words
from tests.traces_maker import make_traces


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A certified policy."""
    folder = tmp_path_factory.mktemp("policy")
    fit_policy(make_traces(1_200), folder, FitConfig(0.9))
    return Policy.load(folder)


def test_a_handled_decision_carries_label_score_and_stage(policy: Policy) -> None:
    """A clear call is answered with a score at or above the threshold."""
    decision = policy.decide("i lost my card it was stolen please block it")
    assert (decision.label, decision.handled, decision.reason, decision.stage) == ("card_lost", True, None, 0)
    assert policy.threshold <= decision.accept_score <= 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.EMPTY),
        ("  \n\t ", Reason.EMPTY),
        ("x" * 20_000, Reason.TOO_LONG),
        ("zqx vkk 蟹 🦀 ωδ", Reason.NOVEL),
        ("\ud800 \udfff", Reason.NOVEL),
        ("\x00", Reason.NOVEL),
    ],
)
def test_doubt_defers_with_its_reason(policy: Policy, text: str, reason: Reason) -> None:
    """Nothing to read, too much to read, and nothing like the traces are deferred, each by its name."""
    decision = policy.decide(text)
    assert not decision.handled
    assert decision.label is None
    assert decision.reason in ({reason, Reason.UNCERTAIN} if reason == Reason.NOVEL else {reason})


def test_many_inputs_decide_like_single_ones(policy: Policy) -> None:
    """`decide_many` is `decide`, row by row."""
    texts = [trace.input for trace in make_traces(50, seed=4)]
    assert policy.decide_many(texts) == [policy.decide(text) for text in texts]


def test_a_one_token_text_has_no_bigrams_and_is_decided(policy: Policy) -> None:
    """The shortest text there is goes through the graph."""
    assert policy.decide("refund").accept_score > 0


def test_a_policy_knows_the_teachers_answer_for_every_label(policy: Policy) -> None:
    """And which label an answer is, however it is spelled."""
    assert set(policy.answers) == set(policy.labels)
    assert policy.answers["loan"] == Answer("loan")
    assert policy.label_of(Answer(" Loan.")) == "loan"
    assert policy.label_of(Answer("mortgage")) is None
    assert policy.label_of(Answer("loan", AnswerKind.TOOL, "{}")) is None
    assert policy.label_of(Answer("loan", AnswerKind.OTHER)) is None


def test_case_does_not_matter(policy: Policy) -> None:
    """Texts are lower-cased before they are read."""
    assert policy.decide("REFUND My Money").accept_score == policy.decide("refund my money").accept_score


def test_an_embedding_is_refused_by_a_text_policy(policy: Policy) -> None:
    """A vector given to a policy that reads text is the caller's mistake."""
    with pytest.raises(ValueError, match="text"):
        policy.decide(np.zeros(4, np.float32))


@pytest.fixture(scope="module")
def protecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with a label that is certified on its own."""
    folder = tmp_path_factory.mktemp("protecting")
    fit_policy(make_traces(2_500, blur=0.05), folder, FitConfig(0.85, protect=("refund",)))
    return folder


def test_agreement_up_to_the_target_changes_nothing(policy: Policy) -> None:
    """What is certified already costs nothing to ask for."""
    texts = [trace.input for trace in make_traces(100, seed=4)]
    for asked in (0.0, 0.5, 0.9):
        assert [policy.decide(text, asked) for text in texts] == policy.decide_many(texts)


def test_more_agreement_is_answered_by_the_next_row_of_the_frontier(tmp_path: Path) -> None:
    """The smallest certified target that is at least as high sets the threshold, whatever lies between."""
    fit_policy(make_traces(1_500, blur=0.1), tmp_path, FitConfig(0.85))
    policy = Policy.load(tmp_path)
    rows = [row for row in policy.manifest.frontier if row.target > 0.85]
    assert len(rows) >= 2
    below = policy.manifest.certificate.target
    texts = [trace.input for trace in make_traces(400, seed=4)]
    for row in rows:
        limit = row.thresholds[0]
        assert limit is not None
        for text in texts:
            plain = policy.decide(text)
            for asked in ((below + row.target) / 2, row.target):
                found = policy.decide(text, asked)
                assert policy.decide_quickly(text, asked) == found
                assert found.accept_score == plain.accept_score
                assert found.handled == (plain.reason != Reason.NOVEL and plain.accept_score >= limit)
        below = row.target


@pytest.mark.parametrize("asked", [0.9999, 1.0, 7.0, float("inf"), float("nan")])
def test_more_than_any_row_certifies_is_deferred_unscored(policy: Policy, asked: float) -> None:
    """Nobody can promise that much, so nothing is scored, and the reason says so."""
    for found in (policy.decide("refund my money", asked), policy.decide_quickly("refund my money", asked)):
        assert found is not None
        assert (found.handled, found.reason, found.accept_score) == (False, Reason.MIN_AGREEMENT, 0.0)


def test_a_protected_label_keeps_its_own_threshold_at_every_target(protecting: Path) -> None:
    """The frontier tests protected labels on their own as well, and each row carries their thresholds."""
    policy = Policy.load(protecting)
    row = next(row for row in policy.manifest.frontier if row.target > 0.85 and row.protected["refund"] is not None)
    handled = 0
    for trace in make_traces(1_000, seed=5, blur=0.05):
        plain, found = policy.decide(trace.input), policy.decide(trace.input, row.target)
        if plain.handled:
            limit = row.protected["refund"] if plain.label == "refund" else row.thresholds[0]
            assert found.handled == (limit is not None and plain.accept_score >= limit)
        handled += found.label == "refund"
    assert handled > 20


def test_a_protected_label_without_a_threshold_at_a_target_is_deferred(protecting: Path) -> None:
    """Where the frontier did not certify the label at the target, it is not answered there."""
    manifest = read_manifest(protecting)
    graphs = {"model": read_file(protecting, manifest, "model")}
    bare = [replace(row, protected={"refund": None}) for row in manifest.frontier]
    tokenizer = TextEncoder(read_file(protecting, manifest, "tokenizer"))
    policy = Policy(replace(manifest, frontier=bare), graphs, tokenizer, words=load_words(protecting, manifest))
    texts = [trace.input for trace in make_traces(300, seed=5, blur=0.05)]
    assert any(policy.decide(text).label == "refund" for text in texts)
    assert not any(policy.decide(text, 0.86).label == "refund" for text in texts)
    assert any(policy.decide(text, 0.86).handled for text in texts)
