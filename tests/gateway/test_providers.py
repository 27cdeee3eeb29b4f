"""An upstream that litellm speaks to, in a process of its own: the import changes whoever makes it."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import yaml

from policies.store import Store
from tests.raw_upstream import Connection, Handler, RawUpstream, answering, response, silent
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import GatewayProcess

QUESTION = [{"role": "user", "content": "where is my card?"}]


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedTeacher]:
    """One teacher for the module's one gateway."""
    with ScriptedTeacher(label_of=lambda _: "card_lost") as teacher:
        yield teacher


@pytest.fixture(scope="module")
def claude() -> Iterator[RawUpstream]:
    """Answers what a test has it answer."""
    with RawUpstream(silent) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def internet() -> Iterator[socket.socket]:
    """What a process takes for its proxy: whoever tries to leave the machine knocks here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def provider(
    tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedTeacher, claude: RawUpstream, internet: socket.socket
) -> Iterator[GatewayProcess]:
    """A gateway whose upstreams are vLLM, hosted on the scripted teacher, and something that speaks like Anthropic."""
    folder = tmp_path_factory.mktemp("provider")
    tree = {
        "store": {"url": f"sqlite:///{folder}/traces.db", "spool": f"{folder}/spool.jsonl"},
        "upstreams": {
            "vllm": {"provider": "hosted_vllm", "base_url": scripted.url, "read_timeout": 2.0, "breaker_failures": 0},
            "claude": {
                "provider": "anthropic",
                "base_url": f"http://127.0.0.1:{claude.port}",
                "read_timeout": 1.0,
                "breaker_failures": 0,
            },
            "nobody": {"provider": "anthropic", "base_url": "http://127.0.0.1:9", "breaker_failures": 0},
            "nap": {"provider": "anthropic", "base_url": f"http://127.0.0.1:{claude.port}"},
            "ours": {
                "provider": "anthropic",
                "base_url": f"http://127.0.0.1:{claude.port}",
                "ambient_credentials": True,
            },
            "gemini": {"provider": "gemini", "base_url": f"http://127.0.0.1:{claude.port}", "breaker_failures": 0},
            "mistral": {"provider": "mistral", "base_url": f"http://127.0.0.1:{claude.port}", "breaker_failures": 0},
        },
        "default_upstream": "vllm",
        "projects": {
            "bank": {"policy": f"{folder}/absent", "teacher": "some-model"},
            "claude": {"policy": f"{folder}/absent", "teacher": "claude-x", "upstream": "claude"},
            "nobody": {"policy": f"{folder}/absent", "teacher": "claude-x", "upstream": "nobody"},
            **{
                name: {"policy": f"{folder}/absent", "teacher": "some-model", "upstream": name}
                for name in ("nap", "ours", "gemini", "mistral")
            },
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    proxy = f"http://127.0.0.1:{internet.getsockname()[1]}"
    environ = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1"}
    environ |= dict.fromkeys(("ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY"), "sk-house")
    environ |= dict.fromkeys(("HOSTED_VLLM_API_KEY", "ANTHROPIC_AUTH_TOKEN", "GOOGLE_API_KEY"), "sk-house")
    with GatewayProcess(folder, "--config", "config.yaml", environ=environ) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(scripted: ScriptedTeacher) -> None:
    """Each test finds a teacher that has not been called."""
    scripted.calls.clear()
    scripted.script = "answer"
    scripted.released.clear()
    scripted.arrived.clear()
    scripted.disconnected.clear()


def _client(provider: GatewayProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=provider.base_url, api_key="sk-client", max_retries=0)


def test_a_call_is_answered_by_the_provider(provider: GatewayProcess, scripted: ScriptedTeacher) -> None:
    """With the client's own key and the project's model; the official client takes the answer."""
    with _client(provider) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="tracer/bank", messages=[{"role": "user", "content": "where?"}], temperature=0, metadata={"a": "b"}
        )
    assert raw.parse().choices[0].message.content == "card_lost"
    assert (raw.headers["x-tracer-lane"], raw.headers["x-tracer-reason"]) == ("teacher", "no_policy")
    (call,) = scripted.calls
    assert call.header("authorization") == "Bearer sk-client"
    assert (call.json["model"], call.json["temperature"]) == ("some-model", 0)


def test_an_answer_names_the_providers_model(provider: GatewayProcess) -> None:
    """As the provider does, whole or streamed: litellm's own names for providers are no part of it."""
    with _client(provider) as client:
        question: Any = [{"role": "user", "content": "where?"}]
        whole = client.chat.completions.create(model="tracer/bank", messages=question)
        streamed = list(client.chat.completions.create(model="tracer/bank", messages=question, stream=True))
    assert whole.model == "some-model"
    assert {chunk.model for chunk in streamed} == {"some-model"}


def test_a_stream_is_answered_by_the_provider(provider: GatewayProcess) -> None:
    """Chunks the official client takes, and an end."""
    with _client(provider) as client:
        stream = client.chat.completions.create(
            model="tracer/bank", messages=[{"role": "user", "content": "where?"}], stream=True
        )
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "card_lost"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("script", "stream", "status"),
    [("rate_limited", False, 429), ("rate_limited", True, 429), ("error", False, 500), ("html", False, 502)],
)
def test_the_providers_error_keeps_its_status(
    provider: GatewayProcess, scripted: ScriptedTeacher, script: str, stream: bool, status: int
) -> None:
    """In OpenAI's shape, with what the provider said and when to come back."""
    scripted.script = script
    answer = _post(provider, stream=stream)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    if script == "rate_limited":
        assert "slow down" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "7"


def test_a_provider_that_is_too_slow_is_a_504(provider: GatewayProcess, scripted: ScriptedTeacher) -> None:
    """`read_timeout` holds for providers too."""
    scripted.script = "hang"
    assert _post(provider).status_code == 504
    assert scripted.disconnected.wait(5)


def test_a_client_that_leaves_closes_the_providers_call(provider: GatewayProcess, scripted: ScriptedTeacher) -> None:
    """In the middle of a stream."""
    body = json.dumps({"model": "tracer/bank", "messages": QUESTION, "stream": True}).encode()
    scripted.script = "slow_stream"
    with httpx.stream("POST", f"{provider.base_url}/chat/completions", content=body) as answer:
        next(answer.iter_raw())
    assert scripted.disconnected.wait(5)


def test_a_stream_that_breaks_before_its_first_event_is_a_502(
    provider: GatewayProcess, scripted: ScriptedTeacher
) -> None:
    """Nothing was sent, so a whole error can be."""
    scripted.script = "cut_body"
    answer = _post(provider, stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("script", ["cut_stream", "html"])
def test_a_stream_that_ends_too_early_is_cut(provider: GatewayProcess, scripted: ScriptedTeacher, script: str) -> None:
    """litellm would say "stop"; the client must not take it for a whole answer."""
    scripted.script = script
    with pytest.raises(httpx.RemoteProtocolError):
        _post(provider, stream=True)


@pytest.mark.parametrize(
    "key", ["api_base", "api_key", "mock_response", "custom_llm_provider", "base_url", "extra_headers"]
)
def test_a_client_cannot_steer_litellm(provider: GatewayProcess, scripted: ScriptedTeacher, key: str) -> None:
    """Only OpenAI's parameters travel: our key goes to the configured place and nowhere else."""
    fields: dict[str, Any] = {key: "http://elsewhere.example"}
    answer = _post(provider, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, key)
    assert scripted.calls == []


JSON_TYPE = b"content-type: application/json\r\n"
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {}}}}}
    for name in ("weather", "time")
]
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "toolu_2", "name": "time", "input": {"city": "Rome"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 5},
}


def _events() -> bytes:
    started = MESSAGE | {"content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": started}]
    for index, block in enumerate(MESSAGE["content"]):
        begun = {"type": "content_block_start", "index": index, "content_block": block | {"input": {}}}
        text = json.dumps(block["input"])
        deltas = [
            {
                "type": "content_block_delta",
                "index": index,
                "delta": {"type": "input_json_delta", "partial_json": part},
            }
            for part in (text[:5], text[5:])
        ]
        events += [begun, *deltas, {"type": "content_block_stop", "index": index}]
    ended = {"stop_reason": "tool_use", "stop_sequence": None}
    events += [{"type": "message_delta", "delta": ended, "usage": {"output_tokens": 5}}, {"type": "message_stop"}]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def _scripted_claude(claude: RawUpstream, handler: Handler) -> None:
    claude.handler = handler
    claude.requests.clear()


def _asked(claude: RawUpstream) -> Any:
    (request,) = claude.requests
    assert b"x-api-key: sk-client\r\n" in request
    return json.loads(request.partition(b"\r\n\r\n")[2])


CALLED = [("weather", {"city": "Paris"}), ("time", {"city": "Rome"})]


def test_parallel_tool_calls_are_put_into_a_providers_terms_and_back(
    provider: GatewayProcess, claude: RawUpstream
) -> None:
    """Tools, a forced choice of one, an earlier call and its result go out; two calls come back."""
    _scripted_claude(claude, answering(response(200, json.dumps(MESSAGE).encode(), JSON_TYPE), hang_up=True))
    earlier = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages: list[Any] = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [earlier]},
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
    ]
    with _client(provider) as client:
        answer = client.chat.completions.create(
            model="tracer/claude",
            messages=messages,
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=True,
        )
    (choice,) = answer.choices
    calls = [call for call in choice.message.tool_calls or [] if call.type == "function"]
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == CALLED
    assert ([call.id for call in calls], choice.finish_reason) == (["toolu_1", "toolu_2"], "tool_calls")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 15
    body = _asked(claude)
    assert [tool["name"] for tool in body["tools"]] == ["weather", "time"]
    assert (body["tool_choice"]["type"], body["tool_choice"]["name"]) == ("tool", "weather")
    used, result = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert (used["type"], used["input"]) == ("tool_use", {"city": "Bonn"})
    assert (result["type"], result["tool_use_id"]) == ("tool_result", "t1")


def test_streamed_tool_calls_and_their_usage_come_back(provider: GatewayProcess, claude: RawUpstream) -> None:
    """In pieces that add up, with the usage in a last event that has no choice."""
    _scripted_claude(claude, answering(response(200, _events(), b"content-type: text/event-stream\r\n"), hang_up=True))
    with _client(provider) as client:
        stream = client.chat.completions.create(
            model="tracer/claude",
            messages=[{"role": "user", "content": "where?"}],
            tools=TOOLS,
            tool_choice="required",
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for chunk in chunks[:-1]:
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            names[call.index] = names.get(call.index, "") + (call.function.name or "")
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert [(names[index], json.loads(arguments[index])) for index in sorted(names)] == CALLED
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 15
    assert _asked(claude)["tool_choice"] == {"type": "any"}


async def _no_event(upstream: RawUpstream, connection: Connection) -> None:
    """Begins a stream and sends nothing in it."""
    upstream.requests.append(await connection.request())
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await connection.gone()


@pytest.mark.parametrize(("handler", "stream"), [(silent, False), (silent, True), (_no_event, True)])
def test_a_client_that_leaves_before_the_first_event_closes_the_providers_call(
    provider: GatewayProcess, claude: RawUpstream, handler: Handler, stream: bool
) -> None:
    """Within a second, long before any time-out."""
    _scripted_claude(claude, handler)
    claude.wait_until(0)
    with pytest.raises(httpx.ReadTimeout):
        _post(provider, timeout=0.3, model="tracer/nap", stream=stream)
    claude.wait_until(0, 1.0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
def test_a_refusal_is_told_in_the_providers_words(
    provider: GatewayProcess, claude: RawUpstream, status: int, stream: bool
) -> None:
    """With its own status and type, and when to come back."""
    told = {"type": "error", "error": {"type": "some_error", "message": "no such luck"}}
    refusal = response(status, json.dumps(told).encode(), JSON_TYPE + b"retry-after: 3\r\n")
    _scripted_claude(claude, answering(refusal, hang_up=True))
    answer = _post(provider, model="tracer/claude", stream=stream)
    assert answer.status_code == status
    assert answer.json()["error"] == {"message": "no such luck", "type": "some_error", "param": None, "code": None}
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["x-tracer-upstream"] == "claude"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tools": TOOLS, "tool_choice": 7},
        {"max_tokens": "many"},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"logit_bias": {"1": 2}},
        {"unheard_of": 1},
    ],
)
def test_a_clients_mistake_is_the_clients(
    provider: GatewayProcess, claude: RawUpstream, fields: dict[str, Any]
) -> None:
    """A 400 that nobody takes for an upstream that is away, though litellm says APIConnectionError."""
    _scripted_claude(claude, silent)
    before = _unreachable(provider, "claude")
    answer = _post(provider, model="tracer/claude", **fields)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert claude.requests == []
    assert _unreachable(provider, "claude") == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_is_away_is_no_answer(provider: GatewayProcess, claude: RawUpstream, stream: bool) -> None:
    """litellm would say 500: nobody there, nothing said, and nothing that can be read."""
    before = _unreachable(provider, "nobody")
    answer = _post(provider, model="tracer/nobody", stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert _unreachable(provider, "nobody") == before + 1
    _scripted_claude(claude, silent)
    answer = _post(provider, model="tracer/claude", stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    if not stream:
        _scripted_claude(claude, answering(response(200, b"<html>", b"content-type: text/html\r\n"), hang_up=True))
        assert _post(provider, model="tracer/claude").status_code == 502


def test_a_key_of_ours_stays_here(provider: GatewayProcess, scripted: ScriptedTeacher) -> None:
    """It is no key of the provider's."""
    body = {"model": "tracer/bank", "messages": QUESTION}
    headers = {"authorization": "Bearer trc_ours"}
    httpx.post(f"{provider.base_url}/chat/completions", json=body, headers=headers, timeout=20)
    assert all("trc_ours" not in repr(call.headers) for call in scripted.calls)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "made-up"}, {"authorization": "Bearer trc_ours"}])
@pytest.mark.parametrize("project", ["bank", "claude", "gemini", "mistral"])
def test_a_key_of_the_environment_is_nobodys(
    provider: GatewayProcess, scripted: ScriptedTeacher, claude: RawUpstream, project: str, headers: dict[str, str]
) -> None:
    """Who brings none is called with none: litellm would take the gateway's own."""
    _scripted_claude(claude, answering(response(401), hang_up=True))
    body = {"model": f"tracer/{project}", "messages": QUESTION}
    answer = httpx.post(f"{provider.base_url}/chat/completions", json=body, headers=headers, timeout=20)
    assert answer.status_code == (200 if project == "bank" else 401)
    asked = repr(scripted.calls if project == "bank" else claude.requests)
    assert len(asked) > 10
    assert "sk-house" not in asked


def test_a_key_of_the_environment_may_be_allowed(provider: GatewayProcess, claude: RawUpstream) -> None:
    """Then it is the upstream's own, and the client's stays here."""
    _scripted_claude(claude, answering(response(200, json.dumps(MESSAGE).encode(), JSON_TYPE), hang_up=True))
    assert _post(provider, model="tracer/ours").status_code == 200
    (request,) = claude.requests
    assert b"x-api-key: sk-house\r\n" in request
    assert b"sk-client" not in request


@pytest.mark.parametrize("body", [b"<html>Welcome to the proxy</html>", b"[]", b"\xff"])
@pytest.mark.parametrize("project", ["claude", "gemini", "mistral"])
def test_an_answer_that_is_none_is_the_upstreams_fault(
    provider: GatewayProcess, claude: RawUpstream, project: str, body: bytes
) -> None:
    """litellm calls it a bad request; a 502."""
    before = _unreachable(provider, project)
    _scripted_claude(claude, answering(response(200, body, JSON_TYPE), hang_up=True))
    answer = _post(provider, model=f"tracer/{project}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert _unreachable(provider, project) == before + 1


@pytest.mark.parametrize("project", ["claude", "mistral", "gemini"])
def test_unreadable_json_of_the_clients_stays_the_clients(
    provider: GatewayProcess, claude: RawUpstream, project: str
) -> None:
    """Arguments of an earlier call that are no JSON: not taken for an answer that is none."""
    _scripted_claude(claude, answering(response(200, b"<html>", JSON_TYPE), hang_up=True))
    called = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [called]}]
    messages.append({"role": "tool", "tool_call_id": "t1", "content": "x"})
    answer = _post(provider, model=f"tracer/{project}", messages=messages)
    assert answer.status_code == (502 if claude.requests else 400)


def test_a_parameter_that_cannot_be_written_is_a_400(provider: GatewayProcess) -> None:
    """A name that JSON can hold and UTF-8 cannot."""
    content = b'{"model": "tracer/claude", "messages": [{"role": "user", "content": "x"}], "\\ud800": 1}'
    answer = httpx.post(f"{provider.base_url}/chat/completions", content=content, timeout=20)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "\\ud800")


def _unreachable(provider: GatewayProcess, upstream: str) -> float:
    page = httpx.get(f"{provider.url}/metrics").text
    wanted = f'tracer_upstream_errors_total{{kind="unreachable",upstream="{upstream}"}} '
    return sum(float(line.removeprefix(wanted)) for line in page.splitlines() if line.startswith(wanted))


def test_other_paths_say_that_there_is_nothing(provider: GatewayProcess) -> None:
    """litellm serves chat completions only, and so it is said."""
    for path in ("models", "responses"):
        answer = httpx.post(f"{provider.base_url}/{path}", content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "/v1/chat/completions only" in answer.json()["error"]["message"]


def test_whole_answers_are_learned_and_nothing_left_the_machine(
    provider: GatewayProcess, internet: socket.socket
) -> None:
    """Last in the module, because it ends the gateway: traces of this and the earlier tests, none of a cut answer."""
    assert _post(provider, stream=True).status_code == 200
    store_url = f"sqlite:///{provider.folder}/traces.db"
    assert provider.terminate() == 0
    store = Store.open(store_url)
    labels = {trace.teacher for trace in store.traces("bank")}
    store.close()
    assert labels == {"card_lost"}
    with pytest.raises(BlockingIOError):
        internet.accept()
    assert "where" not in provider.log()


def _post(provider: GatewayProcess, timeout: float = 20, **fields: object) -> httpx.Response:
    body = {"model": "tracer/bank", "messages": QUESTION} | fields
    headers = {"authorization": "Bearer sk-client"}
    return httpx.post(f"{provider.base_url}/chat/completions", json=body, headers=headers, timeout=timeout)
