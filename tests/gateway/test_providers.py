"""An upstream that litellm speaks to, in a process of its own: the import changes whoever makes it."""

import json
import socket
from collections.abc import Iterator

import httpx
import openai
import pytest
import yaml

from policies.store import Store
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import GatewayProcess

QUESTION = [{"role": "user", "content": "where is my card?"}]


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedTeacher]:
    """One teacher for the module's one gateway."""
    with ScriptedTeacher(label_of=lambda _: "card_lost") as teacher:
        yield teacher


@pytest.fixture(scope="module")
def internet() -> Iterator[socket.socket]:
    """What a process takes for its proxy: whoever tries to leave the machine knocks here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def provider(
    tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedTeacher, internet: socket.socket
) -> Iterator[GatewayProcess]:
    """A gateway whose upstream is vLLM, hosted on the scripted teacher."""
    folder = tmp_path_factory.mktemp("provider")
    tree = {
        "store": {"url": f"sqlite:///{folder}/traces.db", "spool": f"{folder}/spool.jsonl"},
        "upstreams": {"vllm": {"provider": "hosted_vllm", "base_url": scripted.url, "read_timeout": 2.0}},
        "default_upstream": "vllm",
        "projects": {"bank": {"policy": f"{folder}/absent", "teacher": "some-model"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    proxy = f"http://127.0.0.1:{internet.getsockname()[1]}"
    environ = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1"}
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


@pytest.mark.parametrize("script", ["cut_stream", "cut_body", "html"])
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
    answer = _post(provider, **{key: "http://elsewhere.example"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, key)
    assert scripted.calls == []


def test_other_paths_say_that_there_is_nothing(provider: GatewayProcess) -> None:
    """litellm serves chat completions only."""
    answer = httpx.get(f"{provider.base_url}/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


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


def _post(provider: GatewayProcess, **fields: object) -> httpx.Response:
    body = {"model": "tracer/bank", "messages": QUESTION} | fields
    return httpx.post(f"{provider.base_url}/chat/completions", json=body, timeout=20)
