"""Decisions: the same one by one, in a batch, and in the fitted model; doubt always defers."""

import numpy as np
import pytest

from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Answer, AnswerKind, Reason
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
