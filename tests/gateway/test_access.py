"""Who may ask: loopback only, the client's own key judged by the upstream, or keys of ours; and where keys never go."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway import keys
from gateway.access import ANYBODY, Caller, KeyedAccess, PassthroughAccess, check_access
from gateway.errors import InvalidKey, SettingsError
from gateway.metrics import Metrics
from gateway.settings import AccessSettings, ProjectSettings, Settings, build_settings
from policies.store import Store
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

CANARY = "CANARY-0123456789-do-not-tell"
UPSTREAM_KEY = "sk-upstream-CANARY-0123456789"


def _eventually(holds: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _chat(text: str, model: str = "tracer/bank") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def _projects(policy: Path) -> dict[str, Any]:
    return {
        "bank": {"policy": str(policy), "teacher": "gpt-teacher", "prompt": "Sort."},
        "shop": {"policy": str(policy), "teacher": "gpt-teacher"},
    }


def _passthrough(folder: Path, policy: Path, teacher: ScriptedTeacher, **access: Any) -> Settings:
    tree = {"projects": _projects(policy), "access": {"mode": "passthrough", **access}, "default_project": "bank"}
    return make_settings(folder, tree, teacher.url)


def _keyed(folder: Path, policy: Path, teacher: ScriptedTeacher, api_key_env: str | None = "UP_KEY") -> Settings:
    tree = {
        "projects": _projects(policy),
        "default_project": "bank",
        "access": {"mode": "keys", "keys_file": str(folder / "keys.json")},
        "upstreams": {"teacher": {"base_url": teacher.url, "api_key_env": api_key_env}},
        "default_upstream": "teacher",
    }
    return make_settings(folder, tree)


def _key(folder: Path, *projects: str) -> str:
    return keys.create(folder / "keys.json", frozenset(projects) or "*", "", None)[1]


@pytest.fixture
def keyed(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    """A gateway with keys of its own, which calls its upstream with a key from the environment."""
    keys.create(tmp_path / "keys.json", "*", "", None)
    with ThreadedGateway(_keyed(tmp_path, policy_folder, teacher), {"UP_KEY": UPSTREAM_KEY}) as running:
        yield running


@pytest.fixture
def judged(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    """A gateway whose upstream judges the clients' keys."""
    with ThreadedGateway(_passthrough(tmp_path, policy_folder, teacher)) as running:
        yield running


def _ask(gateway: ThreadedGateway, text: str, key: str | None, **headers: str) -> httpx.Response:
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return httpx.post(f"{gateway.base_url}/chat/completions", json=_chat(text), headers=headers)


def _reason(answer: httpx.Response) -> tuple[str, str]:
    return answer.headers["x-tracer-decision"], answer.headers["x-tracer-reason"]


# What may be open without a key.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0", "192.0.2.1", "203.0.113.9", "no-such-host.invalid"])
def test_without_access_settings_only_loopback_is_served(host: str) -> None:
    """The refusal says what to do instead."""
    with pytest.raises(SettingsError) as refused:
        check_access(build_settings({"server": {"host": host}}, {}))
    for hint in ("server.host", "access.mode", "tracer keys create", "127.0.0.1", "pod", "--network container:APP"):
        assert hint in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1"])
def test_loopback_needs_no_access_settings(host: str) -> None:
    """Whoever is on this machine may ask."""
    check_access(build_settings({"server": {"host": host}}, {}))


@pytest.mark.parametrize("mode", ["passthrough", "keys"])
def test_with_a_mode_any_address_is_served(mode: str, tmp_path: Path) -> None:
    """Then somebody checks keys."""
    access = {"mode": mode, "keys_file": str(tmp_path / "keys.json")}
    check_access(build_settings({"server": {"host": "0.0.0.0"}, "access": access}, {}))


def test_a_damaged_keys_file_is_found_before_the_start(tmp_path: Path) -> None:
    """With its path in the message."""
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(SettingsError, match=r"access\.keys_file: .*keys\.json: not a keys file"):
        check_access(build_settings({"access": {"mode": "keys", "keys_file": str(tmp_path / "keys.json")}}, {}))


UPSTREAM = {"base_url": "http://localhost:1/v1"}
PROJECT = {"policy": ".tracer"}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"access": {"mode": "passthrough"}, "upstreams": {"a": UPSTREAM | {"api_key_env": "K"}}},
            "upstreams.a.api_key_env: with access.mode passthrough",
        ),
        ({"access": {"mode": "passthrough"}, "projects": {"a": PROJECT}}, "projects.a.upstream: with access.mode"),
        ({"access": {"mode": "keys"}, "upstreams": {"a": UPSTREAM}}, "upstreams.a.api_key_env: is required"),
        ({"access": {"mode": "open"}}, "access.mode: "),
        ({"access": {"keys": 1}}, "access.keys: unknown key"),
        ({"access": {"key_headers": ["a b"]}}, "access.key_headers: should be names of headers"),
    ],
)
def test_a_mode_that_cannot_work_is_a_settings_error(tree: Any, expected: str) -> None:
    """Nobody would judge the keys, or no key would reach the upstream."""
    with pytest.raises(SettingsError) as refused:
        build_settings(tree, {})
    assert str(refused.value).startswith(expected)


# The client's own key.


def test_a_made_up_key_gets_no_answer_of_ours(
    judged: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """Not from chat, classify, predict or predict_batch, and no score either: the upstream's refusal, or nothing."""
    answer = _ask(judged, handled_text, CANARY, **{"x-script": "unauthorized"})
    assert (answer.status_code, _reason(answer)) == (401, ("deferred", "key"))
    assert answer.headers["x-tracer-score"] == "none"
    assert teacher.chat_calls[-1].header("authorization") == f"Bearer {CANARY}"
    headers = {"authorization": f"Bearer {CANARY}"}
    teacher.script = "unauthorized"
    classified = httpx.post(f"{judged.url}/bank/classify", json={"input": handled_text}, headers=headers)
    assert (classified.status_code, _reason(classified)) == (401, ("deferred", "key"))
    predicted = httpx.post(f"{judged.url}/predict", json={"input": handled_text}, headers=headers).json()
    assert (predicted["label"], predicted["decision"], predicted["accept_score"]) == (None, "deferred", 0.0)
    batch = httpx.post(f"{judged.url}/predict_batch", json={"inputs": [handled_text] * 20}, headers=headers).json()
    assert batch["labels"] == [None] * 20
    assert judged.metric("tracer_requests_total", project="bank", lane="surrogate", reason="") == 0


def test_a_key_that_the_upstream_accepted_is_answered(
    judged: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """After one forward, on every surface; another key, or none, is another caller."""
    assert _reason(_ask(judged, handled_text, "sk-good")) == ("deferred", "key")
    assert _reason(_ask(judged, handled_text, "sk-good")) == ("handled", "none")
    headers = {"authorization": "Bearer sk-good"}
    assert httpx.post(f"{judged.url}/predict", json={"input": handled_text}, headers=headers).json()["label"]
    assert len(teacher.chat_calls) == 1
    for key, extra in (("sk-other", {}), (None, {}), ("sk-good", {"openai-project": "p"}), (None, {"api-key": "a"})):
        assert _reason(_ask(judged, handled_text, key, **extra)) == ("deferred", "key")
        assert _reason(_ask(judged, handled_text, key, **extra)) == ("handled", "none")


@pytest.mark.parametrize("script", ["unauthorized", "forbidden"])
def test_a_key_that_the_upstream_refuses_is_forgotten(
    judged: ThreadedGateway, handled_text: str, deferred_text: str, script: str
) -> None:
    """A revoked key gets no further answers."""
    _ask(judged, handled_text, "sk-good")
    assert _reason(_ask(judged, handled_text, "sk-good"))[0] == "handled"
    _ask(judged, deferred_text, "sk-good", **{"x-script": "rate_limited"})
    assert _reason(_ask(judged, handled_text, "sk-good"))[0] == "handled", "a 429 says nothing of a key"
    _ask(judged, deferred_text, "sk-good", **{"x-script": script})
    assert _reason(_ask(judged, handled_text, "sk-good", **{"x-script": script})) == ("deferred", "key")


def test_another_path_is_no_proof_of_a_key(judged: ThreadedGateway, handled_text: str) -> None:
    """Lists of models are open on some upstreams."""
    headers = {"authorization": "Bearer sk-unknown"}
    assert httpx.get(f"{judged.base_url}/models", headers=headers).status_code == 200
    assert _reason(_ask(judged, handled_text, "sk-unknown")) == ("deferred", "key")


def test_a_yes_holds_for_a_while(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """`access.key_seconds` after the upstream's last yes, however often it was used since."""
    with ThreadedGateway(_passthrough(tmp_path, policy_folder, teacher, key_seconds=0.5)) as gateway:
        _ask(gateway, handled_text, "sk-good")
        assert _reason(_ask(gateway, handled_text, "sk-good"))[0] == "handled"
        _eventually(lambda: _reason(_ask(gateway, handled_text, "sk-good")) == ("deferred", "key"))


def test_an_observing_project_says_that_it_has_no_policy(
    tmp_path: Path, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """The key is no reason where nothing could be answered anyway."""
    with ThreadedGateway(_passthrough(tmp_path, tmp_path / "absent", teacher)) as gateway:
        assert _reason(_ask(gateway, handled_text, "sk-new")) == ("deferred", "no_policy")


def test_accepted_keys_are_bounded_and_held_as_salted_digests() -> None:
    """10,000 of them, the ones accepted longest ago dropped first; each for one upstream."""
    access, other = PassthroughAccess(AccessSettings()), PassthroughAccess(AccessSettings())
    callers = [access.enter({"headers": [(b"authorization", b"Bearer %d" % number)]}) for number in range(10_001)]
    for caller in callers:
        access.learned("a", caller, 200)
    assert not access.accepts("a", callers[0])
    assert all(access.accepts("a", caller) for caller in callers[1:])
    assert not access.accepts("b", callers[1])
    assert CANARY.encode() not in repr(vars(access)).encode()
    scope = {"headers": [(b"authorization", CANARY.encode())]}
    assert access.enter(scope) == access.enter(scope) != other.enter(scope)


def test_headers_cannot_be_arranged_to_look_like_other_ones() -> None:
    """Names, lengths and values all count."""
    access = PassthroughAccess(AccessSettings())
    lists = [
        [(b"api-key", b"a"), (b"x-api-key", b"b")],
        [(b"api-key", b"ax-api-key:1:b")],
        [(b"api-key", b"a"), (b"api-key", b"b")],
        [(b"x-api-key", b"b")],
        [],
    ]
    assert len({access.enter({"headers": headers}).identity for headers in lists}) == len(lists)


# Keys of ours.


SURFACES: list[tuple[str, str, Any]] = [
    ("POST", "/v1/chat/completions", _chat("hi")),
    ("POST", "/v1/chat/completions", _chat("hi", "gpt-4")),
    ("POST", "/v1/responses", {"model": "gpt-4", "input": "hi"}),
    ("POST", "/v1/decisions", {}),
    ("POST", "/bank/classify", {"input": "hi"}),
    ("POST", "/nobody/classify", {"input": "hi"}),
    ("POST", "/predict", {"input": "hi"}),
    ("POST", "/predict_batch", {"inputs": ["hi"]}),
    ("GET", "/v1/models", None),
    ("DELETE", "/v1/files/f", None),
]


@pytest.mark.parametrize(("method", "path", "body"), SURFACES)
@pytest.mark.parametrize("key", [None, "sk-CANARY-0123456789abcdef", "trc_0123456789ab_CANARY0123456789", "x"])
def test_without_a_key_every_surface_is_a_401(
    keyed: ThreadedGateway, teacher: ScriptedTeacher, method: str, path: str, body: Any, key: str | None
) -> None:
    """In OpenAI's shape, with at most eight characters of what was given, and nothing reaches the upstream."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    answer = httpx.request(method, keyed.url + path, json=body, headers=headers)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert key is None or len(key) < 9 or key[:9] not in answer.text
    assert key != "x" or "provided: ***" in answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    assert teacher.calls == []


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/metrics"])
def test_what_orchestrators_ask_stays_open(keyed: ThreadedGateway, path: str) -> None:
    """They bring no keys."""
    assert httpx.get(keyed.url + path).status_code == 200


def test_a_refusal_does_not_wait_for_the_body(keyed: ThreadedGateway) -> None:
    """A stranger's upload is not read."""

    def endless() -> Iterator[bytes]:
        yield b"{"
        time.sleep(0.5)
        yield b"}"

    answer = httpx.post(f"{keyed.base_url}/chat/completions", content=endless(), headers={"expect": "100-continue"})
    assert (answer.status_code, answer.headers["connection"]) == (401, "close")


@pytest.mark.parametrize("name", ["authorization", "api-key", "x-api-key", "x-goog-api-key"])
def test_a_key_may_be_given_as_the_official_clients_do(
    keyed: ThreadedGateway, tmp_path: Path, handled_text: str, name: str
) -> None:
    """OpenAI, Azure, Anthropic and Google each have a header for it."""
    key = _key(tmp_path, "bank")
    headers = {name: f"bearer {key}" if name == "authorization" else key}
    url = f"{keyed.base_url}/chat/completions"
    _eventually(lambda: httpx.post(url, json=_chat(handled_text), headers=headers).status_code == 200)


def test_a_key_is_for_its_projects(keyed: ThreadedGateway, tmp_path: Path, handled_text: str) -> None:
    """403 elsewhere, and a key for some projects is not told which others there are."""
    key = _key(tmp_path, "bank")
    headers = {"authorization": f"Bearer {key}"}
    _eventually(lambda: _ask(keyed, handled_text, key).status_code == 200)
    for body in (_chat(handled_text, "tracer/shop"), _chat(handled_text, "gpt-4"), _chat(handled_text, "tracer/none")):
        answer = httpx.post(f"{keyed.base_url}/chat/completions", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "project_not_allowed")
        assert "shop" not in answer.text or body["model"] == "tracer/shop"
    for path, payload in (
        ("/shop/classify", {"input": "a"}),
        ("/predict", {"input": "a", "project": "shop"}),
        ("/predict_batch", {"inputs": ["a"], "project": "shop"}),
    ):
        assert httpx.post(keyed.url + path, json=payload, headers=headers).status_code == 403
    assert httpx.get(f"{keyed.base_url}/models", headers=headers).status_code == 403
    assert httpx.post(f"{keyed.url}/bank/classify", json={"input": handled_text}, headers=headers).json()["label"]
    everything = _key(tmp_path)
    _eventually(lambda: _ask(keyed, handled_text, everything).status_code == 200)
    headers = {"authorization": f"Bearer {everything}"}
    assert httpx.get(f"{keyed.base_url}/models", headers=headers).status_code == 200


def test_the_official_client_raises_what_applications_catch(keyed: ThreadedGateway, tmp_path: Path) -> None:
    """AuthenticationError and PermissionDeniedError."""
    key = _key(tmp_path, "bank")
    _eventually(lambda: _ask(keyed, "hi", key).status_code == 200)
    question: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
    with (
        openai.OpenAI(base_url=keyed.base_url, api_key=CANARY, max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as unknown,
    ):
        stranger.chat.completions.create(model="tracer/bank", messages=question)
    assert unknown.value.code == "invalid_api_key"
    assert CANARY[:8] in str(unknown.value)
    assert CANARY[:9] not in str(unknown.value)
    with (
        openai.OpenAI(base_url=keyed.base_url, api_key=key, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError) as denied,
    ):
        client.chat.completions.create(model="tracer/shop", messages=question)
    assert denied.value.code == "project_not_allowed"


def test_keys_are_read_again_when_their_file_changes(keyed: ThreadedGateway, tmp_path: Path, handled_text: str) -> None:
    """A new key within a second, a revoked one out; a damaged file changes nothing, without the file nobody gets in."""
    key_id, key = keys.create(tmp_path / "keys.json", "*", "", None)
    _eventually(lambda: _ask(keyed, handled_text, key).status_code == 200, 1.5)
    whole = (tmp_path / "keys.json").read_bytes()
    (tmp_path / "keys.json").write_bytes(whole[:-20])
    _eventually(lambda: keyed.metric("tracer_key_file_reads_total", outcome="damaged") == 1)
    assert _ask(keyed, handled_text, key).status_code == 200
    (tmp_path / "keys.json").write_bytes(whole)
    keys.revoke(tmp_path / "keys.json", key_id)
    _eventually(lambda: _ask(keyed, handled_text, key).status_code == 401, 1.5)
    assert keyed.metric("tracer_keys") == 1
    (tmp_path / "keys.json").unlink()
    _eventually(lambda: keyed.metric("tracer_keys") == 0)
    assert keyed.metric("tracer_errors_total", code="invalid_api_key") >= 1


@pytest.mark.parametrize(("variable", "expected"), [("UP_KEY", f"Bearer {UPSTREAM_KEY}"), (None, None)])
def test_our_keys_never_reach_the_upstream(
    tmp_path: Path,
    policy_folder: Path,
    teacher: ScriptedTeacher,
    deferred_text: str,
    variable: str | None,
    expected: str | None,
) -> None:
    """On no surface, in no header: the upstream sees the key from the environment, or none at all."""
    key = _key(tmp_path)
    with ThreadedGateway(_keyed(tmp_path, policy_folder, teacher, variable), {"UP_KEY": UPSTREAM_KEY}) as gateway:
        carried = {"api-key": key, "x-api-key": key, "x-goog-api-key": key, "x-anything": f"k={key}"}
        carried |= {"openai-organization": "theirs", "authorization": f"Bearer {key}"}
        for method, path, body in [*SURFACES, ("POST", "/v1/chat/completions", _chat(deferred_text))]:
            httpx.request(method, gateway.url + path, json=body, headers=carried | {"x-kept": "1"})
        packed = {"content-encoding": "gzip", "x-script": "raw", **carried}
        httpx.post(f"{gateway.base_url}/chat/completions", content=b"\x1f\x8b...", headers=packed)
    asked = {"chat/completions", "responses", "decisions", "models", "files/f"}
    assert {call.path for call in teacher.calls} == {f"/v1/{path}" for path in asked}
    secret = key.rpartition("_")[2].encode()
    for call in teacher.calls:
        assert call.header("authorization") == expected
        assert secret not in repr(call).encode()
        assert not {"api-key", "x-api-key", "openai-organization"} & {name.decode() for name, _ in call.headers}
    assert any(call.header("x-kept") == "1" for call in teacher.calls)


@pytest.mark.parametrize("mode", ["keys", "passthrough"])
def test_no_key_stands_in_a_log_a_trace_an_answer_or_a_metric(
    tmp_path: Path,
    policy_folder: Path,
    teacher: ScriptedTeacher,
    handled_text: str,
    deferred_text: str,
    caplog: pytest.LogCaptureFixture,
    mode: str,
) -> None:
    """Ours, the client's and the upstream's, at DEBUG, with faults, refusals and a store that is away."""
    caplog.set_level(logging.DEBUG)
    key = _key(tmp_path) if mode == "keys" else CANARY
    make = _keyed if mode == "keys" else _passthrough
    (tmp_path / "away").write_text("a file where a folder should be")
    seen: list[str] = []
    for store in (f"sqlite:///{tmp_path}/traces.db", f"sqlite:///{tmp_path}/away/traces.db"):
        settings = make(tmp_path, policy_folder, teacher)
        settings = settings.model_copy(update={"store": settings.store.model_copy(update={"url": store})})
        with ThreadedGateway(settings, {"UP_KEY": UPSTREAM_KEY}) as gateway:
            for script in ("answer", "error", "unauthorized", "hang_up", "cut_body", "rate_limited"):
                for text in (handled_text, deferred_text):
                    try:
                        answer = _ask(gateway, text, key, **{"x-script": script})
                    except httpx.HTTPError:
                        continue
                    seen += [answer.text, repr(answer.headers)]
            for wrong in ("CANARY-" * 20, f"trc_{'0' * 12}_{CANARY}"):
                seen += [_ask(gateway, handled_text, wrong).text] if mode == "keys" else []
            for path in ("/metrics", "/health"):
                seen.append(httpx.get(gateway.url + path).text)
    assert any("tracer_requests_total" in text for text in seen)
    seen.append("\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.records))
    seen += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir() if path.is_file()]
    assert (tmp_path / "spool.jsonl").stat().st_size > 0
    opened = Store.open(f"sqlite:///{tmp_path}/traces.db")
    assert opened.count("bank") > 0
    opened.close()
    for text in seen:
        for secret in (CANARY, key.split("_", 2)[-1], UPSTREAM_KEY, "CANARY-0123", "CANARY-CANARY"):
            assert secret not in text


def test_a_caller_of_no_project_needs_a_key_for_everything() -> None:
    """`may_use(None)` is about calls that no project recognises."""
    assert ANYBODY.may_use(None)
    assert ANYBODY.may_use("bank")
    assert not Caller(frozenset({"bank"})).may_use(None)
    assert not Caller(frozenset()).may_use("bank")


def test_a_compressed_body_is_relayed_as_it_is(judged: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Nothing of a client's is inflated: it may be a bomb. Where the gateway would have to read it, a 415."""
    headers = {"content-encoding": "gzip", "authorization": "Bearer sk"}
    bomb = b"\x1f\x8b" + bytes(1000)
    answer = httpx.post(f"{judged.base_url}/chat/completions", content=bomb, headers={**headers, "x-script": "raw"})
    assert answer.status_code == 200
    assert (teacher.calls[-1].body, teacher.calls[-1].header("content-encoding")) == (bomb, "gzip")
    refused = httpx.post(f"{judged.url}/bank/classify", content=bomb, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_batch_has_a_limit(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> None:
    """`server.max_batch_rows`."""
    tree = {"projects": {"bank": {"policy": str(policy_folder)}}, "server": {"max_batch_rows": 3}}
    with ThreadedGateway(make_settings(tmp_path, tree, teacher.url)) as gateway:
        for rows, status in ((3, 200), (4, 413)):
            answer = httpx.post(f"{gateway.url}/predict_batch", content=json.dumps({"inputs": ["a"] * rows}))
            assert answer.status_code == status
        assert answer.json()["error"]["code"] == "too_many_rows"


# By which name the gateway is called.


BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"


def _as(gateway: ThreadedGateway, host: str, path: str = "/predict") -> httpx.Response:
    headers = {"host": host, "user-agent": BROWSER}
    return httpx.post(gateway.url + path, json={"input": "a", "project": "bank"}, headers=headers)


@pytest.fixture
def open_one(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    """A gateway of this machine's own, with one more name."""
    tree = {"projects": _projects(policy_folder), "access": {"hosts": ["Host.Docker.Internal"]}}
    with ThreadedGateway(make_settings(tmp_path, tree, teacher.url)) as running:
        yield running


OWN_NAMES = ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.8.9.10", "[::1]:8000", "[::ffff:127.0.0.1]"]
OTHER_NAMES = ["evil.example", "evil.example:8000", "localhost.evil.example", "192.0.2.1", "0.0.0.0", "[::2]", "["]


@pytest.mark.parametrize("host", [*OWN_NAMES, "host.docker.internal:8000"])
def test_this_machine_is_called_by_its_own_names(open_one: ThreadedGateway, host: str) -> None:
    """Or those of `access.hosts`, with any port."""
    assert _as(open_one, host).status_code == 200


@pytest.mark.parametrize("host", [*OTHER_NAMES, "evil@localhost", "localhost/a"])
def test_a_name_from_elsewhere_is_refused(open_one: ThreadedGateway, teacher: ScriptedTeacher, host: str) -> None:
    """A page whose own name leads here (DNS rebinding) reads nothing, on any surface."""
    for method, path, body in SURFACES:
        for browser in ({"user-agent": BROWSER}, {"origin": f"http://{host}"}, {"sec-fetch-site": "same-origin"}):
            answer = httpx.request(method, open_one.url + path, json=body, headers={"host": host, **browser})
            assert answer.status_code == 403
            error = answer.json()["error"]
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "host_not_allowed", None)
    assert teacher.calls == []


def test_what_is_no_browser_may_use_any_name(open_one: ThreadedGateway) -> None:
    """An alias in /etc/hosts, a tunnel, a test: it could say any name, and has no page that would read along."""
    answer = httpx.post(f"{open_one.url}/predict", json={"input": "a", "project": "bank"}, headers={"host": "gateway"})
    assert answer.status_code == 200


def test_a_call_without_a_name_is_no_browsers(open_one: ThreadedGateway) -> None:
    """HTTP/1.0 has none; a second name counts like the first."""
    port = int(open_one.url.rpartition(":")[2])
    for head, status in (
        (b"GET /v1/models HTTP/1.0\r\nUser-Agent: Mozilla/5.0\r\n\r\n", b"200"),
        (b"GET /v1/models HTTP/1.1\r\nOrigin: a\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"40"),
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(5)
            connection.sendall(head)
            assert connection.recv(65_536).partition(b" ")[2].startswith(status)


@pytest.mark.parametrize("mode", ["keyed", "judged"])
def test_where_a_key_is_asked_for_the_name_is_nobodys_business(mode: str, request: pytest.FixtureRequest) -> None:
    """A page has no key."""
    gateway: ThreadedGateway = request.getfixturevalue(mode)
    assert _as(gateway, "gateway.example").status_code == (401 if mode == "keyed" else 200)


def test_a_host_with_a_port_is_a_settings_error() -> None:
    """It would never match."""
    with pytest.raises(SettingsError, match=r"access\.hosts: should be names of hosts"):
        build_settings({"access": {"hosts": ["a:8000"]}}, {})


# Which credentials an upstream is called with.


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"access": {"mode": "passthrough"}, "upstreams": {"a": {"provider": "anthropic"}}},
            "upstreams.a.provider: with access.mode passthrough",
        ),
        ({"upstreams": {"a": {"provider": "bedrock"}}}, "upstreams.a: the provider 'bedrock' finds credentials"),
        ({"upstreams": {"a": {"provider": "vertex_ai"}}}, "upstreams.a: the provider 'vertex_ai' finds credentials"),
        ({"upstreams": {"a": UPSTREAM | {"ambient_credentials": True}}}, "upstreams.a: ambient_credentials is for"),
    ],
)
def test_credentials_of_the_environment_need_to_be_allowed(tree: Any, expected: str) -> None:
    """They are the gateway's own, whoever calls."""
    with pytest.raises(SettingsError) as refused:
        build_settings(tree, {})
    assert str(refused.value).startswith(expected)


def test_allowed_credentials_are_an_upstreams_own() -> None:
    """Like a key: for every mode but passthrough, for a mini, and for a fallback of somebody else's."""
    ambient = {"provider": "bedrock", "ambient_credentials": True}
    upstreams = {"a": UPSTREAM | {"fallbacks": [{"upstream": "b", "model": "m"}], "api_key_env": "K"}, "b": ambient}
    project = PROJECT | {"mini": "m", "mini_upstream": "b"}
    for mode in ("none", "keys"):
        tree = {"access": {"mode": mode}, "upstreams": upstreams, "default_upstream": "a", "projects": {"p": project}}
        build_settings(tree, {"K": "k"})


# What a key for some projects may ask.


def test_a_key_for_a_project_may_ask_its_teacher() -> None:
    """Under its own name or as `tracer/<project>`; a project without a teacher leaves the choice to the caller."""
    taught, free = ProjectSettings(policy=Path("a"), teacher="small"), ProjectSettings(policy=Path("a"))
    scoped = Caller(frozenset({"bank"}))
    assert scoped.may_ask(taught, "small")
    assert scoped.may_ask(taught, "tracer/bank")
    for dearer in ("o9-pro", "Small", "small ", "", "tracer"):
        assert not scoped.may_ask(taught, dearer)
        assert scoped.may_ask(free, dearer)
        assert ANYBODY.may_ask(taught, dearer)
        assert Caller(None, "id").may_ask(taught, dearer)


# The keys file, where it cannot be read for a while.


def test_a_key_for_a_project_brings_no_other_model(keyed: ThreadedGateway, tmp_path: Path) -> None:
    """Through whatever names the project; 403 in OpenAI's shape."""
    key = _key(tmp_path, "bank")
    _eventually(lambda: _ask(keyed, "x", key).status_code == 200)
    headers = {"authorization": f"Bearer {key}", "x-tracer-project": "bank"}
    for model, status in (("gpt-teacher", 200), ("gpt-dearest", 403)):
        answer = httpx.post(f"{keyed.base_url}/chat/completions", json=_chat("x", model), headers=headers)
        assert answer.status_code == status
    assert answer.json()["error"]["code"] == "model_not_allowed"


def test_a_file_that_is_mended_without_a_change_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key revoked meanwhile is out; until then the trouble is told once, not at every look."""
    file = tmp_path / "keys.json"
    key_id, key = keys.create(file, "*", "", None)
    metrics = Metrics()
    access = KeyedAccess(AccessSettings(mode="keys", keys_file=file), metrics)
    scope = {"headers": [(b"authorization", f"Bearer {key}".encode())]}
    readable = {"now": True}

    def read(path: Path) -> dict[str, keys.KeyRecord]:
        if not readable["now"]:
            raise keys.KeysError(f"{path}: cannot be read: Permission denied")
        return keys.read_keys(path)

    def damaged() -> bool:
        return metrics.registry.get_sample_value("tracer_key_file_reads_total", {"outcome": "damaged"}) == 1

    async def live() -> None:
        await access.start()
        access.enter(dict(scope))
        readable["now"] = False
        keys.revoke(file, key_id)
        await asyncio.to_thread(_eventually, damaged)
        access.enter(dict(scope))
        await asyncio.sleep(1.2)
        assert damaged()
        before = file.stat().st_ctime_ns
        readable["now"] = True  # as where a folder above it, or its list of readers, is mended
        await asyncio.to_thread(_eventually, lambda: not access._records)
        assert file.stat().st_ctime_ns == before
        with pytest.raises(InvalidKey):
            access.enter(dict(scope))
        await access.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.access.read_keys", read)
        asyncio.run(live())
    assert sum("stay in force" in record.getMessage() for record in caplog.records) == 1
