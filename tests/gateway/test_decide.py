"""A policy that needs an encoder never holds up the event loop, and defers what it cannot take."""

import asyncio
import threading

import pytest

from gateway import decide as module
from gateway.decide import Decider, Lane
from gateway.metrics import Metrics
from gateway.registry import Serving
from policies.encoders import TransformerEncoder
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Reason
from tests.encoder_maker import make_encoder
from tests.traces_maker import make_traces


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A certified cascade."""
    folder = tmp_path_factory.mktemp("cascade")
    features = f"lexical,static,transformer:{make_encoder(folder / 'encoder')}"
    fit_policy(make_traces(1_500), folder / "policy", FitConfig(0.85, features=features))
    loaded = Policy.load(folder / "policy")
    assert loaded.slow
    return loaded


def _split(policy: Policy) -> tuple[list[str], list[str]]:
    """Texts that the cheap stage settles, and texts that it does not."""
    texts = [trace.input for trace in make_traces(300, seed=5)]
    settled = [text for text in texts if policy.decide_quickly(text) is not None]
    return settled, [text for text in texts if policy.decide_quickly(text) is None]


def test_what_the_gateway_says_is_what_the_policy_says(policy: Policy) -> None:
    """Quick or slow, a call gets the decision of `Policy.decide`."""
    decider, serving = Decider(Metrics()), Serving(policy)
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
    asyncio.run(Decider(Metrics()).decide(Serving(policy), open_[0]))
    assert threads
    assert threading.get_ident() not in threads


def test_more_than_the_encoder_can_take_is_deferred_as_busy(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls on top of the limit go to the teacher at once; what needs no encoder is answered all the same."""
    monkeypatch.setattr(module, "_MOST_ENCODING", 2)
    settled, open_ = _split(policy)
    gate = threading.Event()
    encode = TransformerEncoder.encode
    monkeypatch.setattr(TransformerEncoder, "encode", lambda self, text: gate.wait(10) and encode(self, text))

    async def play() -> tuple[list[Reason | None], Reason | None]:
        decider, serving = Decider(Metrics()), Serving(policy)
        waiting = [asyncio.create_task(decider.decide(serving, text)) for text in open_[:2]]
        await asyncio.sleep(0.05)
        third = await decider.decide(serving, open_[2])
        quick = await decider.decide(serving, settled[0])
        assert quick.reason is policy.decide(settled[0]).reason
        gate.set()
        return [(await task).reason for task in waiting], third.reason

    reasons, third = asyncio.run(play())
    assert third is Reason.BUSY
    assert Reason.BUSY not in reasons


def test_an_encoder_that_hangs_is_given_up_and_keeps_its_place(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call goes to the teacher after the limit; the place is free again only when the encoder is."""
    monkeypatch.setattr(module, "_LONGEST_SECONDS", 0.05)
    monkeypatch.setattr(module, "_MOST_ENCODING", 1)
    open_ = _split(policy)[1]
    gate = threading.Event()
    encode = TransformerEncoder.encode
    monkeypatch.setattr(TransformerEncoder, "encode", lambda self, text: gate.wait(10) and encode(self, text))

    async def play() -> list[Reason | None]:
        decider, serving = Decider(Metrics()), Serving(policy)
        hung = await decider.decide(serving, open_[0])
        meanwhile = await decider.decide(serving, open_[1])
        gate.set()
        await asyncio.sleep(0.3)
        monkeypatch.setattr(module, "_LONGEST_SECONDS", 10.0)
        after = await decider.decide(serving, open_[2])
        decider.close()
        return [hung.reason, meanwhile.reason, after.reason]

    hung, meanwhile, after = asyncio.run(play())
    assert hung is Reason.BUSY
    assert meanwhile is Reason.BUSY
    assert after is policy.decide(open_[2]).reason


def test_an_encoder_that_fails_ends_in_a_forward(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every fault of local scoring: deferred with its reason, and counted."""

    def broken(_: TransformerEncoder, __: str) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(TransformerEncoder, "encode", broken)
    metrics = Metrics()
    found = asyncio.run(Decider(metrics).decide(Serving(policy), _split(policy)[1][0]))
    assert (found.lane, found.reason) == (Lane.TEACHER, Reason.ERROR)
    assert metrics.internal_errors.labels("decide")._value.get() == 1
