"""A policy that needs an encoder never holds up the event loop, and defers what it cannot take."""

import asyncio
import threading
from pathlib import Path

import pytest

from gateway.decide import Decider, Lane
from gateway.metrics import Metrics
from gateway.registry import Serving
from gateway.settings import ServerSettings
from policies.encoders import TransformerEncoder
from policies.policy import Policy
from policies.types import Reason
from tests.traces_maker import make_traces


@pytest.fixture(scope="module")
def policy(cascade_folder: Path) -> Policy:
    """A certified cascade."""
    loaded = Policy.load(cascade_folder)
    assert loaded.slow
    return loaded


def _split(policy: Policy) -> tuple[list[str], list[str]]:
    """Texts that the cheap stage settles, and texts that it does not."""
    texts = [trace.input for trace in make_traces(300, seed=5)]
    settled = [text for text in texts if policy.decide_quickly(text) is not None]
    return settled, [text for text in texts if policy.decide_quickly(text) is None]


def test_what_the_gateway_says_is_what_the_policy_says(policy: Policy) -> None:
    """Quick or slow, a call gets the decision of `Policy.decide`."""
    decider, serving = Decider(ServerSettings(), Metrics()), Serving(policy)
    settled, open_ = _split(policy)
    assert settled
    assert open_
    for text in settled[:20] + open_[:20]:
        found, local = asyncio.run(decider.decide(serving, text)), policy.decide(text)
        assert (found.label, found.reason, found.stage) == (local.label, local.reason, local.stage)


def test_encoding_happens_off_the_event_loop(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is only ever called on another thread than the loop's."""
    threads: set[int] = set()
    encode = TransformerEncoder.encode
    open_ = _split(policy)[1]

    def watched(self: TransformerEncoder, text: str) -> object:
        threads.add(threading.get_ident())
        return encode(self, text)

    monkeypatch.setattr(TransformerEncoder, "encode", watched)
    asyncio.run(Decider(ServerSettings(), Metrics()).decide(Serving(policy), open_[0]))
    assert threads
    assert threading.get_ident() not in threads


def test_an_encoder_that_fails_ends_in_a_forward(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every fault of local scoring: deferred with its reason, and counted."""

    def broken(_: TransformerEncoder, __: str) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(TransformerEncoder, "encode", broken)
    metrics = Metrics()
    found = asyncio.run(Decider(ServerSettings(), metrics).decide(Serving(policy), _split(policy)[1][0]))
    assert (found.lane, found.reason) == (Lane.TEACHER, Reason.ERROR)
    assert metrics.internal_errors.labels("decide")._value.get() == 1


def test_probabilities_need_the_encoder_only_where_the_decision_did(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the policy: at once for what a cheap stage has answered, else off the event loop, as decisions are."""
    threads: list[int] = []
    encode = TransformerEncoder.encode
    settled, open_ = _split(policy)
    decided = next(text for text in settled if policy.decide(text).handled)
    expected = [policy.probabilities(text) for text in (decided, open_[0])]

    def watched(self: TransformerEncoder, text: str) -> object:
        threads.append(threading.get_ident())
        return encode(self, text)

    monkeypatch.setattr(TransformerEncoder, "encode", watched)

    async def play() -> list[dict[str, float] | None]:
        decider, serving = Decider(ServerSettings(), Metrics()), Serving(policy)
        stage = (await decider.decide(serving, decided)).stage
        found = [
            await decider.probabilities(serving, decided, stage=stage),
            await decider.probabilities(serving, open_[0]),
        ]
        decider.close()
        return found

    assert asyncio.run(play()) == expected
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


def test_what_has_been_said_of_a_short_text_is_remembered(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """By text and by the agreement that is asked for, and only for as long as the policy is served."""
    decider, serving = Decider(ServerSettings(), Metrics()), Serving(policy)
    text = next(text for text in _split(policy)[0] if policy.decide(text).handled)
    plain, strict = decider.decide_quickly(serving, text), decider.decide_quickly(serving, text, 1.0)
    assert plain is not None
    assert strict is not None
    assert (plain.reason, strict.reason) == (None, Reason.MIN_AGREEMENT)
    asked: list[str] = []
    monkeypatch.setattr(Policy, "decide_quickly", lambda _, text, __: asked.append(text))
    assert decider.decide_quickly(serving, text) == plain
    assert decider.decide_quickly(serving, text, 1.0) == strict
    assert asked == []
    assert decider.decide_quickly(Serving(policy), text) is None
    assert asked == [text]


def test_what_an_encoder_has_said_is_remembered_too(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took milliseconds; the next time it takes none."""
    decider, serving = Decider(ServerSettings(), Metrics()), Serving(policy)
    text = _split(policy)[1][0]
    found = asyncio.run(decider.decide(serving, text))
    monkeypatch.setattr(TransformerEncoder, "encode", None)
    assert decider.decide_quickly(serving, text) == found


def test_what_is_remembered_is_bounded(policy_folder: Path) -> None:
    """In number and in length."""
    decider, serving = Decider(ServerSettings(), Metrics()), Serving(Policy.load(policy_folder))
    for number in range(10_000):
        decider.decide_quickly(serving, f"text {number}")
    assert 0 < len(serving.decided) <= 4_096
    serving.decided.clear()
    decider.decide_quickly(serving, "word " * 60)
    assert serving.decided == {}
