"""The life of a policy through a gateway on a real socket: shadow, promotion, audits, and what stops it."""

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from policies.fitting import fit_policy
from policies.projects import Projects
from policies.record import Record
from policies.settings import FitConfig
from policies.store import Store
from policies.types import Comparison
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings
from tests.traces_maker import make_traces

TRACES = make_traces(6_000, seed=9, blur=0.05)
TRUTH = {trace.input: trace.teacher for trace in TRACES}
TEXTS = list(TRUTH)
# As sure as the defaults are, and in force as soon as it can be.
EAGER = {"rate": 1.0, "first_rate": 1.0, "most_rate": 1.0, "daily_calls": 100_000}


@pytest.fixture
def teacher() -> Iterator[ScriptedTeacher]:
    """A teacher that knows the labels of this world."""
    with ScriptedTeacher(label_of=lambda text: TRUTH.get(text, "other")) as running:
        yield running


def _settings(folder: Path, policy: Path, teacher: ScriptedTeacher, **project: Any) -> Any:
    usual = {"policy": str(policy), "teacher": "gpt", "promotion": "shadow", "audit": EAGER}
    return make_settings(folder, {"projects": {"bank": usual | project}}, teacher.url)


@contextlib.contextmanager
def _gateway(folder: Path, policy: Path, teacher: ScriptedTeacher, **project: Any) -> Iterator[ThreadedGateway]:
    with ThreadedGateway(_settings(folder, policy, teacher, **project)) as running:
        yield running


class Application:
    """Sends texts through a gateway, several at a time; says how each was decided."""

    def __init__(self, gateway: ThreadedGateway, prompt: str | None = "Sort.", model: str = "tracer/bank") -> None:
        self.url = f"{gateway.base_url}/chat/completions"
        self.prompt, self.model = prompt, model

    def ask(self, client: httpx.Client, text: str) -> tuple[str, str, str]:
        messages = [{"role": "user", "content": text}]
        if self.prompt is not None:
            messages.insert(0, {"role": "system", "content": self.prompt})
        body = {"model": self.model, "messages": messages}
        answer = client.post(self.url, json=body, headers={"x-tracer-project": "bank"})
        assert answer.status_code == 200, answer.text
        said = answer.json()["choices"][0]["message"]["content"]
        return answer.headers["x-tracer-decision"], answer.headers["x-tracer-reason"], said

    def send(self, texts: Sequence[str]) -> list[tuple[str, str, str]]:
        with httpx.Client() as client, ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda text: self.ask(client, text), texts))


def _eventually(holds: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _summary(gateway: ThreadedGateway) -> dict[str, Any]:
    with contextlib.closing(Projects.open(gateway.services.settings.store.url)) as projects:
        return projects.summary("bank")


def _moves(gateway: ThreadedGateway) -> list[tuple[str | None, str, str]]:
    with contextlib.closing(Projects.open(gateway.services.settings.store.url)) as projects:
        return [(move["old"], move["new"], move["cause"]) for move in projects.moves("bank")]


def _until(
    application: Application, gateway: ThreadedGateway, texts: Iterator[str], holds: Callable[[], object]
) -> int:
    """Send calls, some at a time, until something holds; how many it took."""
    sent = 0
    while not holds():
        part = [text for text, _ in zip(texts, range(100), strict=False)]
        if not part:
            with contextlib.suppress(AssertionError):
                _eventually(holds)  # what has been sent may not have been handed in yet
            assert holds(), f"it never came true: {_summary(gateway)}"
            break
        application.send(part)
        sent += len(part)
        time.sleep(0.05)
    return sent


def _state(gateway: ThreadedGateway) -> str:
    return gateway.services.registry.serving("bank").state


def test_a_certified_policy_answers_nothing_before_it_has_proved_itself_on_live_calls(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """In shadow every call is the teacher's; then the policy goes live by itself, and says on what evidence."""
    with _gateway(tmp_path, policy_folder, teacher) as gateway:
        application, texts = Application(gateway), iter(TEXTS)
        assert {found[:2] for found in application.send(TEXTS[-50:])} == {("deferred", "shadow")}
        _until(application, gateway, texts, lambda: _state(gateway) == "live")
        assert _moves(gateway)[:2] == [("observing", "candidate", "certified"), ("candidate", "shadow", "certified")]
        assert _moves(gateway)[2][:2] == ("shadow", "live")
        found = application.send(TEXTS[-400:])
        assert sum(decision == "handled" for decision, _, _ in found) > 100
        _eventually(lambda: _summary(gateway)["policies"][0]["live"]["audits"] > 100)
        figures = _summary(gateway)["policies"][0]["live"]
        assert 0 < figures["agreement_lower"] < figures["agreement"] <= 1
        assert gateway.metric("tracer_project_state", project="bank", state="live") == 1
        assert gateway.metric("tracer_agreement_audits", project="bank") > 100
        with contextlib.closing(Store.open(gateway.services.settings.store.url)) as store:
            audited = [trace for trace in store.traces("bank") if trace.reason == ""]
        assert audited
        assert {trace.sampling_probability for trace in audited} == {1.0}


def test_with_promotion_manual_only_a_person_promotes(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """The evidence is gathered all the same; the promotion is in force within a second."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="manual") as gateway:
        application = Application(gateway)
        application.send(TEXTS[:600])
        _eventually(lambda: _summary(gateway)["policies"][0]["shadow"][0]["comparisons"] > 300)
        assert _state(gateway) == "shadow"
        with contextlib.closing(Projects.open(gateway.services.settings.store.url)) as projects:
            projects.promote("bank", None, "test")
        _eventually(lambda: _state(gateway) == "live", 1.0)


def test_a_teacher_that_changes_its_mind_stops_the_policy(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """Evidence from the audits demotes it: every call is the teacher's then."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate") as gateway:
        application, texts = Application(gateway), iter(TEXTS)
        application.send([next(texts) for _ in range(400)])
        _eventually(lambda: _summary(gateway)["policies"][0]["live"]["audits"] > 100)
        assert _state(gateway) == "live"
        swapped = dict(zip(sorted(set(TRUTH.values())), sorted(set(TRUTH.values()), reverse=True), strict=True))
        teacher.label_of = lambda text: swapped[TRUTH[text]]
        _until(application, gateway, texts, lambda: _state(gateway) == "demoted")
        assert {found[:2] for found in application.send(TEXTS[-20:])} == {("deferred", "demoted")}
        assert _moves(gateway)[-1][1] == "demoted"


def test_one_label_that_goes_wrong_is_withheld_and_returns_when_it_is_right_again(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """The other labels are answered as before."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate") as gateway:
        application = Application(gateway)
        texts = iter([text for text in TEXTS if TRUTH[text] != "loan" or hash(text) % 3 == 0] * 2)
        application.send([next(texts) for _ in range(600)])
        teacher.label_of = lambda text: "card_lost" if TRUTH[text] == "loan" else TRUTH[text]
        _until(application, gateway, texts, lambda: gateway.services.registry.serving("bank").withheld)
        assert gateway.services.registry.serving("bank").withheld == {"loan"}
        found = [application.send([text])[0][:2] for text in TEXTS[-200:] if TRUTH[text] == "loan"]
        assert ("deferred", "label") in found
        assert "handled" not in {decision for decision, _ in found}
        assert _state(gateway) == "live"
        teacher.label_of = lambda text: TRUTH[text]
        loans = iter([text for text in TEXTS if TRUTH[text] == "loan"])
        _until(application, gateway, loans, lambda: not gateway.services.registry.serving("bank").withheld)
        assert _moves(gateway)[-1][2] == "label returned"


def test_a_changed_prompt_is_the_teachers_at_once_and_the_policy_proves_itself_again(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """A date in it is no change. Recovery costs live calls, not a fit."""
    # So sure that it takes longer to prove than to see that the old prompt is gone.
    with _gateway(tmp_path, policy_folder, teacher, proof={"promotion_risk": 1e-15}) as gateway:
        texts = iter(TEXTS)
        day = Application(gateway, "Today is 2026-11-23. Sort the message into a queue.")
        _until(day, gateway, texts, lambda: _state(gateway) == "live")
        next_day = Application(gateway, "Today is 2026-11-24. Sort the message into a queue.")
        assert "handled" in {decision for decision, _, _ in next_day.send(TEXTS[-60:])}
        changed = Application(gateway, "Today is 2026-11-24. Sort the message into a queue. Be strict.")
        assert {found[:2] for found in changed.send(TEXTS[-60:])} == {("deferred", "prompt")}
        _until(changed, gateway, texts, lambda: _state(gateway) == "shadow")
        assert _moves(gateway)[-1] == ("live", "shadow", "prompt")
        _until(changed, gateway, texts, lambda: _state(gateway) == "live")
        assert "handled" in {decision for decision, _, _ in changed.send(TEXTS[-60:])}


def test_a_second_prompt_beside_the_known_one_is_accepted_when_it_has_proved_itself(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """Meanwhile calls with the known one are answered."""
    with _gateway(tmp_path, policy_folder, teacher) as gateway:
        texts = iter(TEXTS)
        known, other = Application(gateway), Application(gateway, "Which queue is this for?")
        _until(known, gateway, texts, lambda: _state(gateway) == "live")

        def accepted() -> bool:
            known.send([text for text, _ in zip(texts, range(200), strict=False)])
            return any(cause == "prompt accepted" for _, _, cause in _moves(gateway))

        _until(other, gateway, texts, accepted)
        assert _state(gateway) == "live"
        assert "handled" in {decision for decision, _, _ in other.send(TEXTS[-60:])}


def test_another_model_behind_the_same_name_sends_the_policy_back_to_shadow(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """Forwarded calls and audits say who answered."""
    with _gateway(tmp_path, policy_folder, teacher) as gateway:
        application, texts = Application(gateway), iter(TEXTS)
        _until(application, gateway, texts, lambda: _state(gateway) == "live")
        teacher.model = "gpt-other"
        _until(application, gateway, texts, lambda: _state(gateway) == "shadow")
        assert _moves(gateway)[-1] == ("live", "shadow", "teacher")


def test_an_answer_that_is_no_label_withholds_what_the_surrogate_makes_of_it(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """A new label takes its texts from an old one: the old one is not answered until it is learned."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate") as gateway:
        application, texts = Application(gateway), iter(TEXTS)
        application.send([next(texts) for _ in range(400)])
        teacher.label_of = lambda text: "mortgage" if TRUTH[text] == "loan" and "interest" in text else TRUTH[text]
        _until(application, gateway, texts, lambda: "loan" in gateway.services.registry.serving("bank").withheld)
        assert _state(gateway) == "live"


def test_calls_unlike_any_send_the_policy_back_to_shadow(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """The certificate is about calls like the traces."""
    with _gateway(tmp_path, policy_folder, teacher) as gateway:
        application, texts = Application(gateway), iter(TEXTS)
        _until(application, gateway, texts, lambda: _state(gateway) == "live")
        strange = (f"zyxq {i} wvut blorf {i * 7} grumph {i * 13} snarf" for i in range(10_000))
        mixed = (next(strange) if i % 2 else next(texts) for i in range(8_000))
        _until(application, gateway, mixed, lambda: _state(gateway) == "shadow")
        assert _moves(gateway)[-1] == ("live", "shadow", "novelty")


def test_in_a_pause_every_call_says_something_of_the_policy_that_is_to_come(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """No audit is made, and still it proves itself: all calls are the teacher's, not only those the live one left."""
    folder = tmp_path / "policy"
    shutil.copytree(policy_folder, folder)
    with _gateway(tmp_path, folder, teacher, audit={"rate": 0}) as gateway:
        application, texts = Application(gateway), iter(TEXTS)
        _until(application, gateway, texts, lambda: _state(gateway) == "live")
        first = _summary(gateway)["live"]
        with contextlib.closing(Projects.open(gateway.services.settings.store.url)) as projects:
            projects.pause("bank", "test")
            fit_policy(make_traces(700, seed=3), folder, FitConfig(target_teacher_agreement=0.85))
            _eventually(lambda: _summary(gateway)["shadow"])
            _until(application, gateway, texts, lambda: _summary(gateway)["live"] != first)
            assert {found[:2] for found in application.send(TEXTS[-20:])} == {("deferred", "paused")}
            projects.resume("bank", "test")
        _eventually(lambda: _state(gateway) == "live")
        assert "handled" in {decision for decision, _, _ in application.send(TEXTS[-60:])}


def test_without_an_upstream_a_certified_policy_answers_at_once_and_says_why(
    tmp_path: Path, policy_folder: Path
) -> None:
    """There is nobody to be compared with."""
    tree = {"projects": {"bank": {"policy": str(policy_folder), "promotion": "shadow"}}}
    with ThreadedGateway(make_settings(tmp_path, tree)) as gateway:
        assert _state(gateway) == "live"
        _eventually(lambda: _moves(gateway)[-1][1:] == ("live", "no upstream to compare with"))


def test_calls_that_bring_no_prompt_use_up_no_trust(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """After a batch the application's prompt is still taken on trust; that of the 201st call is not."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate", audit={"rate": 0}) as gateway:
        httpx.post(f"{gateway.url}/predict_batch", json={"inputs": TEXTS[:600]}).raise_for_status()
        time.sleep(1.5)
        assert "handled" in {found[0] for found in Application(gateway).send(TEXTS[:250])}
        _eventually(lambda: gateway.services.registry.serving("bank").family is not None)
        strange = Application(gateway, "Write a poem about this.")
        assert {found[:2] for found in strange.send(TEXTS[:40])} == {("deferred", "prompt")}
        assert "handled" in {found[0] for found in Application(gateway).send(TEXTS[:40])}


def test_classify_asks_for_the_prompt_as_well(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """Where it brings messages: they are a prompt like any other."""
    with _gateway(tmp_path, policy_folder, teacher) as gateway:
        _until(Application(gateway), gateway, iter(TEXTS), lambda: _state(gateway) == "live")
        policy = gateway.services.registry.serving("bank").policy
        assert policy is not None
        (text,) = [text for text in TEXTS[-300:] if policy.decide(text).handled][:1]
        for prompt, expected in (("Sort.", None), ("Write a poem.", "prompt")):
            messages = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
            body = {"input": text, "messages": messages, "explain": True}
            assert httpx.post(f"{gateway.url}/bank/classify", json=body).json()["reason"] == expected


def test_a_project_whose_document_is_spoilt_stops_no_other(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """It stays as it is; a pause of the other one is in force within a second."""
    projects = {name: {"policy": str(policy_folder), "teacher": "gpt"} for name in ("aaa", "bank")}
    with ThreadedGateway(make_settings(tmp_path, {"projects": projects}, teacher.url)) as gateway:
        with contextlib.closing(sqlite3.connect(tmp_path / "traces.db")) as store, store:
            store.execute("UPDATE projects SET document = '{}x', revision = revision + 1 WHERE project = 'aaa'")
        with contextlib.closing(Projects.open(gateway.services.settings.store.url)) as found:
            found.pause("bank", "test")
        _eventually(lambda: _state(gateway) == "paused", 1.5)
        assert gateway.services.registry.serving("aaa").state == "live"
        assert gateway.metric("tracer_internal_errors_total", where="watch") > 0
        assert gateway.metric("tracer_store_up") == 1


def test_a_retry_is_counted_once(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """The same call within a minute is one comparison, however often it comes."""
    with _gateway(tmp_path, policy_folder, teacher) as gateway:
        application = Application(gateway)
        (text,) = [text for text in TEXTS[:200] if gateway.services.registry.offered("bank").decide(text).handled][:1]  # type: ignore[union-attr]
        while time.time() % 60 > 50:
            time.sleep(0.5)
        application.send([text] * 30)
        _eventually(lambda: _summary(gateway)["policies"][0]["shadow"][0]["comparisons"] == 1)
        time.sleep(1.0)
        assert _summary(gateway)["policies"][0]["shadow"][0]["comparisons"] == 1


def test_a_store_that_cannot_be_read_at_the_start_defers_every_call(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """Nobody knows whether the policy was demoted. Clients see the teacher's answers, and the reason."""
    (tmp_path / "traces.db").write_bytes(b"this is no database" * 100)
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate") as gateway:
        assert {found[:2] for found in Application(gateway).send(TEXTS[:10])} == {("deferred", "state")}
        assert gateway.metric("tracer_store_up") == 0
        (tmp_path / "traces.db").unlink()
        _eventually(lambda: _state(gateway) == "live")


def test_a_store_that_goes_away_changes_nothing_for_clients(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """What was live goes on answering, and what was seen meanwhile is counted when the store is back."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate") as gateway:
        application = Application(gateway)
        application.send(TEXTS[:300])
        _eventually(lambda: _summary(gateway)["policies"][0]["live"]["audits"] > 50)
        before = _summary(gateway)["policies"][0]["live"]["audits"]
        store = tmp_path / "traces.db"
        with contextlib.closing(Record.open(f"sqlite:///{store}")):  # keeps its files together
            pass
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        for path in tmp_path.glob("traces.db*"):
            path.rename(hidden / path.name)
        store.mkdir()  # nothing can be opened there
        _eventually(lambda: gateway.metric("tracer_store_up") == 0)
        assert "handled" in {decision for decision, _, _ in application.send(TEXTS[300:600])}
        store.rmdir()
        for path in hidden.iterdir():
            path.rename(tmp_path / path.name)
        _eventually(lambda: gateway.metric("tracer_store_up") == 1)
        _eventually(lambda: _summary(gateway)["policies"][0]["live"]["audits"] > before + 50)


def _ahead(clock: Callable[[], float], seconds: float) -> float:
    return clock() + seconds


def _more_audits(gateway: ThreadedGateway, than: int) -> bool:
    return bool(_summary(gateway)["policies"][0]["live"]["audits"] > than)


def test_a_clock_that_jumps_moves_nothing(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year ahead and two back: states, counts and rates stay sane."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate") as gateway:
        application, real = Application(gateway), time.time
        application.send(TEXTS[:300])
        _eventually(lambda: _summary(gateway)["policies"][0]["live"]["audits"] > 50)
        for years in (1, -1):
            monkeypatch.setattr(time, "time", partial(_ahead, real, years * 31_557_600))
            audits = _summary(gateway)["policies"][0]["live"]["audits"]
            start = 300 if years > 0 else 600
            application.send(TEXTS[start : start + 300])
            _eventually(partial(_more_audits, gateway, audits + 30))
            found = _summary(gateway)
            assert found["state"] == "live"
            assert 0 < found["audit_rate"] <= 1
            assert found["handled_per_second"] >= 0


def test_the_teachers_absence_changes_nothing_for_what_is_answered_here(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher
) -> None:
    """Deferred calls get the gateway's error for an upstream that is away; nothing is invented."""
    with _gateway(tmp_path, policy_folder, teacher, promotion="immediate") as gateway:
        policy = gateway.services.registry.offered("bank")
        assert policy is not None
        handled = [text for text in TEXTS[:300] if policy.decide(text).handled][:50]
        deferred = [text for text in TEXTS[:900] if not policy.decide(text).handled][:5]
        teacher.stop()
        assert {found[0] for found in Application(gateway).send(handled)} == {"handled"}
        for text in deferred:
            body = {"model": "tracer/bank", "messages": [{"role": "user", "content": text}]}
            answer = httpx.post(f"{gateway.base_url}/chat/completions", json=body)
            assert answer.status_code in (502, 503)
            assert answer.json()["error"]["message"]


def test_a_comparison_handed_in_twice_is_counted_once(tmp_path: Path) -> None:
    """By its id, whichever process it comes from."""
    with contextlib.closing(Record.open(f"sqlite:///{tmp_path}/traces.db")) as record:
        made = Comparison("a" * 32, "bank", "v1", "audit", 0.0, "x", "x", False, 0.5, 0.5)
        seen: list[int] = []

        def step(document: dict[str, Any], new: Sequence[Comparison], _: object) -> tuple[dict[str, Any], list[Any]]:
            seen.append(len(new))
            return document, []

        record.change("bank", [made, made], step)
        record.change("bank", [made], step)
        assert seen == [1, 0]
