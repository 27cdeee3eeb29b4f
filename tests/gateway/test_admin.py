"""The admin API over real sockets: who may use it, what it shows, and what it moves, in every process at once."""

import base64
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway import keys
from gateway.errors import SettingsError
from policies.projects import Projects
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ROOT, GatewayProcess, ThreadedGateway, make_settings
from tests.versions import Versions

KEY = "an-admin-key-0123456789"
ENVIRON = {"ADMIN_KEY": KEY}
HEADERS = {"authorization": f"Bearer {KEY}"}
CHANGES = ("promote", "rollback", "pause", "resume")


def _tree(policy: Path, **more: Any) -> dict[str, Any]:
    project = {"policy": str(policy), "teacher": "gpt"}
    server = {"policy_poll_seconds": 0.05}
    return {"projects": {"bank": project}, "admin": {"key_env": "ADMIN_KEY"}, "server": server} | more


@contextlib.contextmanager
def _gateway(folder: Path, tree: dict[str, Any], teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    with ThreadedGateway(make_settings(folder, tree, teacher.url), ENVIRON) as running:
        yield running


def _ask(gateway: Any, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(method, f"{gateway.url}/admin/projects{path}", **{"headers": HEADERS, **options})


def _chat(text: str) -> dict[str, Any]:
    return {"model": "tracer/bank", "messages": [{"role": "user", "content": text}]}


def _answer(gateway: Any, text: str) -> httpx.Response:
    return httpx.post(f"{gateway.base_url}/chat/completions", json=_chat(text))


def _eventually(holds: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.fixture
def versions(tmp_path: Path, policy_folder: Path) -> Versions:
    """Two versions of one policy."""
    return Versions(tmp_path / "policy", policy_folder)


def test_a_project_is_shown_with_its_moves(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """All of them by name, one of them, and what has moved it."""
    tree = _tree(policy_folder)
    tree["projects"]["new"] = {"policy": str(tmp_path / "absent")}
    with _gateway(tmp_path, tree, teacher) as gateway:
        every = _ask(gateway, "GET", "").json()
        assert {name: found["state"] for name, found in every.items()} == {"bank": "live", "new": "observing"}
        one = _ask(gateway, "GET", "/bank").json()
        assert one["policies"][0]["version"] == one["live"]
        assert one["policies"][0]["since"].endswith("Z")
        moves = _ask(gateway, "GET", "/bank/moves").json()
        assert [(move["new"], move["by"]) for move in moves] == [("candidate", "gateway"), ("live", "gateway")]
        assert _ask(gateway, "GET", "/bank/moves?limit=1").json() == moves[1:]
        for limit in ("0", "x", "1001", "-1", ""):
            refused = _ask(gateway, "GET", f"/bank/moves?limit={limit}")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")
        assert _ask(gateway, "GET", "/bank").headers["x-tracer-decision"] == "none"


def test_without_a_setting_there_is_no_admin_api(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """Every path of it is a 404, whatever key comes with the call."""
    with _gateway(tmp_path, _tree(policy_folder) | {"admin": {}}, teacher) as gateway:
        for method, path in (("GET", ""), ("GET", "/bank"), ("POST", "/bank/pause"), ("POST", "/bank/promote")):
            answer = _ask(gateway, method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert _answer(gateway, "hello").status_code == 200


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "admin.key_env: the environment has no ADMIN_KEY"),
        ({"ADMIN_KEY": ""}, "admin.key_env: the environment has no ADMIN_KEY"),
        ({"ADMIN_KEY": "short"}, "admin.key_env: ADMIN_KEY should hold at least 16"),
        ({"ADMIN_KEY": "with spaces in between them"}, "admin.key_env: ADMIN_KEY should hold at least 16"),
    ],
)
def test_a_key_that_is_missing_or_can_be_guessed_keeps_the_gateway_from_starting(
    tmp_path: Path, environ: dict[str, str], told: str
) -> None:
    """The key's variable is named, the key is not."""
    with pytest.raises(SettingsError, match=told) as raised:
        ThreadedGateway(make_settings(tmp_path, {"admin": {"key_env": "ADMIN_KEY"}}), environ)
    assert not environ.get("ADMIN_KEY") or environ["ADMIN_KEY"] not in str(raised.value)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-key-0123456789"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": KEY},
    ],
)
def test_a_wrong_key_is_refused_and_counted_and_changes_nothing(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, headers: dict[str, Any]
) -> None:
    """A 401 in OpenAI's shape, for reading and for changing; the key is not repeated."""
    with _gateway(tmp_path, _tree(policy_folder), teacher) as gateway:
        before = _ask(gateway, "GET", "/bank/moves").json()
        calls = [("GET", ""), ("GET", "/bank"), ("GET", "/bank/moves"), ("GET", "/nobody")]
        calls += [("POST", f"/bank/{change}") for change in CHANGES]
        for method, path in calls:
            answer = _ask(gateway, method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "0123456789" not in answer.text
        assert gateway.metric("tracer_errors_total", code="invalid_api_key") == len(calls)
        assert _ask(gateway, "GET", "/bank/moves").json() == before


def test_the_admin_key_is_no_clients_key(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """Nor the other way round, where clients bring keys of ours."""
    access = {"mode": "keys", "keys_file": str(tmp_path / "keys.json")}
    tree = _tree(policy_folder) | {"access": access}
    tree |= {"upstreams": {"teacher": {"base_url": teacher.url, "api_key_env": None}}, "default_upstream": "teacher"}
    made = create_key(tmp_path / "keys.json")
    client = {"authorization": f"Bearer {made}"}
    with ThreadedGateway(make_settings(tmp_path, tree), ENVIRON) as gateway:
        url = f"{gateway.base_url}/chat/completions"
        assert httpx.post(url, json=_chat("hello"), headers=HEADERS).status_code == 401
        assert httpx.post(url, json=_chat("hello"), headers=client).status_code == 200
        assert _ask(gateway, "POST", "/bank/pause", headers=client).status_code == 401
        assert _ask(gateway, "POST", "/bank/pause").status_code == 200


def create_key(file: Path) -> str:
    """A client's key for everything."""
    return keys.create(file, "*", "", None)[1]


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "x-note", "proxy"])
def test_the_admin_key_never_travels(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Brought with an ordinary call, in whatever header and as Basic credentials too, it stays here, not in logs."""
    basic = base64.b64encode(f"user:{KEY}".encode()).decode()
    with caplog.at_level("INFO"), _gateway(tmp_path, _tree(policy_folder), teacher) as gateway:
        for value in (f"Bearer {KEY}", KEY, f"Basic {basic}"):
            for path in ("/chat/completions", "/embeddings"):
                sent = {"model": "gpt", "messages": [{"role": "user", "content": "x"}], "input": "x"}
                httpx.post(gateway.base_url + path, json=sent, headers={name: value, "x-kept": "yes"})
        _ask(gateway, "GET", "/nobody")
    assert len(teacher.calls) == 6
    for call in teacher.calls:
        assert (b"x-kept", b"yes") in call.headers
        assert not any(KEY.encode() in value or basic.encode() in value for _, value in call.headers)
    assert KEY not in caplog.text


def test_a_web_page_of_another_name_is_refused(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """As everywhere: a browser that was led here by a name from elsewhere gets a 403, with the right key too."""
    with _gateway(tmp_path, _tree(policy_folder), teacher) as gateway:
        led = {**HEADERS, "host": "evil.example", "origin": "http://evil.example"}
        answer = _ask(gateway, "POST", "/bank/pause", headers=led)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
        assert _ask(gateway, "GET", "/bank").json()["paused"] is False


def test_pause_and_resume_are_in_force_when_they_are_answered(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """A paused project forwards; what was live answers again afterwards."""
    with _gateway(tmp_path, _tree(policy_folder), teacher) as gateway:
        for _ in range(3):
            assert _ask(gateway, "POST", "/bank/pause").json()["state"] == "paused"
            assert _answer(gateway, handled_text).headers["x-tracer-reason"] == "paused"
            assert httpx.get(f"{gateway.url}/health").json()["projects"]["bank"]["state"] == "paused"
            assert _ask(gateway, "POST", "/bank/resume", json={}).json()["state"] == "live"
            assert _answer(gateway, handled_text).headers["x-tracer-lane"] == "surrogate"
        again = _ask(gateway, "POST", "/bank/resume")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "policy_not_moved")
        moves = _ask(gateway, "GET", "/bank/moves").json()
        assert [(m["new"], m["by"]) for m in moves[-2:]] == [("paused", "admin"), ("live", "admin")]


def test_a_policy_in_shadow_is_promoted(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """It answers as soon as that is said; /health names it before, with what its certificate says."""
    tree = _tree(policy_folder)
    tree["projects"]["bank"]["promotion"] = "manual"
    with _gateway(tmp_path, tree, teacher) as gateway:
        assert _answer(gateway, handled_text).headers["x-tracer-reason"] == "shadow"
        health = httpx.get(f"{gateway.url}/health").json()
        served = health["projects"]["bank"]
        assert (served["state"], served["policy"], served["n_labels"]) == ("shadow", None, 8)
        assert f"{served['shadow']} is in shadow" in served["reason"]
        assert health["n_traces"] == 700
        promoted = _ask(gateway, "POST", "/bank/promote").json()
        assert (promoted["state"], promoted["live"]) == ("live", served["shadow"])
        assert _answer(gateway, handled_text).headers["x-tracer-policy"] == served["shadow"]
        again = _ask(gateway, "POST", "/bank/promote")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "policy_not_moved")


def test_a_refused_policy_is_not_promoted(tmp_path: Path, refused_folder: Path, teacher: ScriptedTeacher) -> None:
    """A clear error with the gate's reason, with its name and without; nothing has moved."""
    with _gateway(tmp_path, _tree(refused_folder), teacher) as gateway:
        version = _ask(gateway, "GET", "/bank").json()["policies"][0]["version"]
        before = _ask(gateway, "GET", "/bank").json(), _ask(gateway, "GET", "/bank/moves").json()
        for body in ({}, {"version": version}):
            answer = _ask(gateway, "POST", "/bank/promote", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "policy_not_moved")
            assert f"{version} was refused by the gate and cannot be promoted: " in answer.text
            assert "cannot prove 0.99" in answer.text
        assert (_ask(gateway, "GET", "/bank").json(), _ask(gateway, "GET", "/bank/moves").json()) == before
        assert _answer(gateway, "hello").headers["x-tracer-reason"] == "refused"


def test_what_is_not_there_is_a_404(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """A project, or a version of its policy; a slip of the pen makes no project."""
    with _gateway(tmp_path, _tree(policy_folder), teacher) as gateway:
        for method, path in (
            ("GET", "/nobody"),
            ("GET", "/nobody/moves"),
            *(("POST", f"/nobody/{c}") for c in CHANGES),
        ):
            answer = _ask(gateway, method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "policy_not_found")
            assert "known: bank" in answer.text
        for change in ("promote", "rollback"):
            answer = _ask(gateway, "POST", f"/bank/{change}", json={"version": "v0"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "policy_not_found")
        assert _ask(gateway, "GET", "").json().keys() == {"bank"}
        nothing = _ask(gateway, "POST", "/bank/rollback")
        assert (nothing.status_code, "nothing to roll back to" in nothing.text) == (409, True)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("promote", b'{"version": 3}', "version"),
        ("rollback", b'{"versions": "a"}', "versions"),
        ("pause", b'{"version": "a"}', "version"),
        ("promote", b"[]", None),
        ("promote", b"{", None),
    ],
)
def test_a_body_that_says_something_else_is_a_400(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, path: str, body: bytes, param: str | None
) -> None:
    """Nothing is guessed, nothing is changed."""
    with _gateway(tmp_path, _tree(policy_folder), teacher) as gateway:
        before = _ask(gateway, "GET", "/bank/moves").json()
        answer = _ask(gateway, "POST", f"/bank/{path}", content=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert _ask(gateway, "GET", "/bank/moves").json() == before


def test_a_store_that_is_away_is_a_503(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """What is live goes on answering; when the store is back, so is the admin API."""
    with _gateway(tmp_path, _tree(policy_folder), teacher) as gateway:
        before = _ask(gateway, "GET", "/bank").json()["live"]
        store = tmp_path / "traces.db"
        with contextlib.closing(sqlite3.connect(store)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            kept = store.read_bytes()
        aside = store.rename(tmp_path / "aside.db")
        store.mkdir()
        for method, path in (("GET", ""), ("GET", "/bank"), ("POST", "/bank/pause")):
            answer = _ask(gateway, method, path, timeout=30)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert _answer(gateway, handled_text).headers["x-tracer-policy"] == before
        store.rmdir()
        aside.unlink()
        store.write_bytes(kept)
        assert _ask(gateway, "POST", "/bank/pause", timeout=30).json()["state"] == "paused"


class Hammer:
    """Sends handled calls to a gateway until the context ends; `seen` are when each was answered, how, and by whom."""

    def __init__(self, gateway: GatewayProcess, text: str) -> None:
        self.seen: list[tuple[float, int, str, str]] = []
        self._url, self._body = f"{gateway.base_url}/chat/completions", _chat(text)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> "Hammer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _send(self) -> None:
        with httpx.Client() as client:
            while not self._over.is_set():
                sent = time.monotonic()
                answer = client.post(self._url, json=self._body)
                headers = answer.headers
                self.seen.append((sent, answer.status_code, headers["x-tracer-lane"], headers["x-tracer-policy"]))


def test_a_rollback_reaches_every_process_within_a_second_and_fails_no_call(
    tmp_path: Path, versions: Versions, teacher: ScriptedTeacher
) -> None:
    """Two gateways on one store, each under load: from the second on, every answer is the old policy's."""
    config = tmp_path / "gateway.yaml"
    tree = _tree(versions.folder, store={"url": f"sqlite:///{tmp_path}/traces.db", "spool": f"{tmp_path}/spool"})
    tree["projects"]["bank"]["promotion"] = "immediate"
    tree |= {"upstreams": {"teacher": {"base_url": teacher.url}}, "default_upstream": "teacher"}
    config.write_text(yaml.safe_dump(tree))
    with contextlib.ExitStack() as stack:
        arguments = ("--config", config)
        pair = [stack.enter_context(GatewayProcess(tmp_path, *arguments, environ=ENVIRON)) for _ in range(2)]
        assert f"project bank: live {versions.first}" in pair[1].banner
        versions.serve(versions.second)
        for gateway in pair:
            _eventually(lambda: _answer(gateway, versions.text).headers["x-tracer-policy"] == versions.second)  # noqa: B023
        hammers = [stack.enter_context(Hammer(gateway, versions.text)) for gateway in pair]
        time.sleep(0.5)
        asked = time.monotonic()
        rolled = _ask(pair[0], "POST", "/bank/rollback")
        answered = time.monotonic()
        assert (rolled.status_code, rolled.json()["live"]) == (200, versions.first)
        assert _answer(pair[0], versions.text).headers["x-tracer-policy"] == versions.first
        time.sleep(1.5)
        # It survives a look at the folder, which still serves the second version, and a look at the store.
        assert _ask(pair[1], "GET", "/bank").json()["live"] == versions.first
        again = _ask(pair[1], "POST", "/bank/rollback")
        assert (again.status_code, "nothing to roll back to" in again.text) == (409, True)
    for hammer, done in zip(hammers, (answered, asked + 1.0), strict=True):
        assert {(status, lane) for _, status, lane, _ in hammer.seen} == {(200, "surrogate")}
        before = [policy for sent, *_, policy in hammer.seen if sent < asked - 0.05]
        after = [policy for sent, *_, policy in hammer.seen if sent > done]
        assert (set(before), set(after)) == ({versions.second}, {versions.first})
        assert min(len(before), len(after)) > 20
    with contextlib.closing(Projects.open(f"sqlite:///{tmp_path}/traces.db")) as projects:
        found = [(m["version"], m["new"]) for m in projects.moves("bank")]
    assert found[-2:] == [(versions.second, "retired"), (versions.first, "live")]
    assert len(found) == 7  # each move once, though two processes offered each version


def test_check_config_looks_for_the_admin_key(tmp_path: Path) -> None:
    """As for an upstream's key."""
    (tmp_path / "c.yaml").write_text("admin: {key_env: TRACER_ADMIN}")
    command = [sys.executable, "-m", "tracer", "check-config", "c.yaml"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "admin.key_env: the environment has no TRACER_ADMIN\n")
    environ["TRACER_ADMIN"] = KEY
    assert subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, check=False).returncode == 0
