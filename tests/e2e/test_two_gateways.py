"""Two gateway processes on one store: evidence, promotion and demotion are one, and one may be killed."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from policies.policy import Policy
from policies.projects import Projects
from policies.record import Record
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import GatewayProcess
from tests.traces_maker import make_traces

TRUTH = {trace.input: trace.teacher for trace in make_traces(6_000, seed=9, blur=0.05)}
TEXTS = list(TRUTH)
EVERY = {"rate": 1.0, "first_rate": 1.0, "most_rate": 1.0, "daily_calls": 100_000}


@pytest.fixture
def teacher() -> Iterator[ScriptedTeacher]:
    """A teacher that knows the labels of this world."""
    with ScriptedTeacher(label_of=lambda text: TRUTH.get(text, "other")) as running:
        yield running


class Two:
    """Both gateways, and what their store says."""

    def __init__(self, folder: Path, url: str, policy: Path, teacher: ScriptedTeacher, promotion: str) -> None:
        self.url = url
        self.policy = Policy.load(policy)
        self.places = []
        for name in ("a", "b"):
            place = folder / name
            place.mkdir()
            tree = {
                "store": {"url": url, "spool": str(place / "spool.jsonl")},
                "upstreams": {"teacher": {"base_url": teacher.url}},
                "default_upstream": "teacher",
                "projects": {"bank": {"policy": str(policy), "teacher": "gpt", "promotion": promotion, "audit": EVERY}},
            }
            (place / "config.yaml").write_text(yaml.safe_dump(tree))
            self.places.append(place)

    def __enter__(self) -> "Two":
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.gateways = [stack.enter_context(self._gateway(number)) for number in (0, 1)]
            self._stack = stack.pop_all()
        return self

    def _gateway(self, number: int) -> GatewayProcess:
        return GatewayProcess(self.places[number], "--config", self.places[number] / "config.yaml")

    def start_again(self, number: int) -> None:
        """Another process in the place of one that is gone."""
        self.gateways[number] = self._stack.enter_context(self._gateway(number))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, number: int, texts: Sequence[str]) -> list[tuple[str, str, str]]:
        """Ask one gateway; decision, reason and answer of each call."""
        with httpx.Client() as client, ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda text: ask(client, self.gateways[number], text), texts))

    def settled(self, number: int, seconds: float = 10.0) -> None:
        """Wait until a gateway has been told that the policy is live. The text is one that no policy answers."""
        eventually(lambda: self.send(number, ["zyxq wvut blorf"])[0][1] in ("uncertain", "novel"), seconds)

    def handled(self, texts: Sequence[str]) -> int:
        """How many of them the policy answers."""
        return sum(self.policy.decide(text).handled for text in texts)

    def summary(self) -> dict[str, Any]:
        """The project's policy, as the store has it."""
        with contextlib.closing(Projects.open(self.url)) as projects:
            return projects.summary("bank")

    def audits(self) -> int:
        """How many the evidence of the live policy counts."""
        return int(self.summary()["policies"][0]["live"]["audits"])

    def moves(self) -> list[tuple[str | None, str]]:
        """All there were."""
        with contextlib.closing(Projects.open(self.url)) as projects:
            return [(move["old"], move["new"]) for move in projects.moves("bank")]

    def ids(self, kind: str) -> list[str]:
        """Of all comparisons that were counted."""
        with contextlib.closing(Record.open(self.url, create=False)) as record:
            return [found.id for found in record.comparisons("bank", kind=kind, limit=100_000)]


def ask(client: httpx.Client, gateway: GatewayProcess, text: str) -> tuple[str, str, str]:
    """One call."""
    body = {"model": "tracer/bank", "messages": [{"role": "user", "content": text}]}
    answer = client.post(f"{gateway.base_url}/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    said = answer.json()["choices"][0]["message"]["content"]
    return answer.headers["x-tracer-decision"], answer.headers["x-tracer-reason"], said


def eventually(holds: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait until it does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def early_in_a_minute(seconds: float = 20.0) -> None:
    """Wait until so much of a minute is left: a retry is one within the same."""
    while time.time() % 60 > 60 - seconds:
        time.sleep(0.2)


def test_what_both_have_seen_in_shadow_is_one_sequence_with_one_promotion(
    tmp_path: Path, url: str, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """Neither counts for itself, and when it is proved both answer."""
    with Two(tmp_path, url, policy_folder, teacher, "shadow") as two:
        first = TEXTS[:16]  # too few to prove anything: what is left over then would not count
        for number in (0, 1):
            assert {found[:2] for found in two.send(number, first[number::2])} == {("deferred", "shadow")}
        eventually(lambda: two.summary()["policies"][0]["shadow"][0]["comparisons"] == two.handled(first))
        start = len(first)
        while two.summary()["state"] == "shadow":
            assert start < 4_000
            for number in (0, 1):
                two.send(number, TEXTS[start + number : start + 100 : 2])
            start += 100
        probe = TEXTS[-1_000:][: 40 * 2]
        for number in (0, 1):
            two.settled(number, 1.0)
            assert "handled" in {found[0] for found in two.send(number, probe[number::2])}
        assert two.moves() == [("observing", "candidate"), ("candidate", "shadow"), ("shadow", "live")]
        ids = two.ids("shadow")
        assert len(ids) == len(set(ids))


def test_audits_of_both_are_one_count_and_a_demotion_reaches_both(
    tmp_path: Path, url: str, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """A retry that reaches the other process is counted once; what one has seen stops the other within a second."""
    with Two(tmp_path, url, policy_folder, teacher, "immediate") as two:
        early_in_a_minute()
        for number in (0, 1):
            two.settled(number)
            two.send(number, TEXTS[-20:])
        eventually(lambda: two.audits() == two.handled(TEXTS[-20:]))
        texts = TEXTS[:200]
        two.send(0, texts[:120])
        two.send(1, texts[80:])  # forty of them again
        two.send(1, texts[:20])  # and twenty
        counted = two.handled(texts) + two.handled(TEXTS[-20:])
        eventually(lambda: two.audits() >= counted)
        time.sleep(1.5)
        assert two.audits() == counted == len(set(two.ids("audit")))
        labels = sorted(set(TRUTH.values()))
        swapped = dict(zip(labels, reversed(labels), strict=True))
        teacher.label_of = lambda text: swapped[TRUTH[text]]
        start = 200
        while two.summary()["state"] == "live":
            assert start < 4_000
            two.send(0, TEXTS[start : start + 50])
            start += 50
        time.sleep(1.0)
        for number in (0, 1):
            assert {found[:2] for found in two.send(number, TEXTS[-20:])} == {("deferred", "demoted")}
        assert [new for _, new in two.moves()].count("demoted") == 1


def test_one_that_is_killed_leaves_the_other_going_and_comes_back_to_the_same_word(
    tmp_path: Path, url: str, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """What the killed one had not handed in is lost; nothing is counted twice."""
    with Two(tmp_path, url, policy_folder, teacher, "immediate") as two:
        for number in (0, 1):
            two.settled(number)
            two.send(number, TEXTS[-20:])
        stop, failed = threading.Event(), list[Exception]()

        def keep_asking() -> None:
            with httpx.Client() as client:
                for text in TEXTS[:2_000]:
                    try:
                        ask(client, two.gateways[0], text)
                    except (httpx.HTTPError, AssertionError) as error:
                        failed.append(error)
                        return
                    if stop.is_set():
                        return

        asking = threading.Thread(target=keep_asking)
        asking.start()
        eventually(lambda: two.audits() > 60)
        two.gateways[0].process.kill()
        asking.join(10)
        assert failed, "it was not killed in the midst"
        before = two.audits()
        other = TEXTS[2_000:2_200]
        answers = two.send(1, other)
        assert sum(found[0] == "handled" for found in answers) == two.handled(other)
        eventually(lambda: two.audits() >= before + two.handled(other))
        two.start_again(0)
        version = two.summary()["live"]
        assert version == two.policy.version
        again = TEXTS[2_200:2_300]
        two.settled(0)
        assert two.send(0, again) == two.send(1, again)
        ids = two.ids("audit")
        eventually(lambda: two.audits() == len(two.ids("audit")))
        assert len(ids) == len(set(ids))
        assert [new for _, new in two.moves()].count("live") == 1
