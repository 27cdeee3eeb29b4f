"""The official Node client sees the same of a gateway as of the teacher, but for the written list."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fidelity.conftest import Route
from tests.fidelity.differences import handled
from tests.fidelity.world import FORMS, STRANGE, Form, World
from tests.traces_maker import LABELS

SOURCES = Path(__file__).parent / "node"
_INSTALL_SECONDS = 120
_CHAT = ("create", "raw", "stream", "usage", "helper", "parse")
_RESPONSES = ("response", "response_stream", "response_helper", "response_parse")


@dataclass(frozen=True)
class Call:
    """One call of the Node client."""

    name: str
    way: str
    body: dict[str, Any]
    script: str = "openai"
    handled: bool = False


@pytest.fixture(scope="module")
def node(pytestconfig: pytest.Config) -> Path:
    """A folder with the client and our script; installed once and kept in pytest's cache."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    assert pytestconfig.cache is not None
    folder = Path(pytestconfig.cache.mkdir("openai-node"))
    wanted = (SOURCES / "package.json").read_text()
    for name in ("package.json", "run.mjs"):
        shutil.copy(SOURCES / name, folder / name)
    installed = folder / "installed.json"
    if not installed.is_file() or installed.read_text() != wanted:
        _install(npm, folder)
        installed.write_text(wanted)
    return folder


def _install(npm: str, folder: Path) -> None:
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not install the openai package in time")
    if done.returncode:
        last = done.stderr.strip().splitlines()
        pytest.skip(f"npm could not install the openai package: {last[0] if last else done.returncode}")


def _calls(world: World) -> Iterator[Call]:
    for form in FORMS.values():
        for way in (*_CHAT, *_RESPONSES):
            for text in (STRANGE, world.known[form.name]):
                known = text != STRANGE
                body = _body(form, way, text)
                if body is not None:
                    name = f"{form.name} {way} {'handled' if known else 'forwarded'}"
                    yield Call(name, way, body, handled=known)
    chat = FORMS["text"].chat(STRANGE)
    for status in ("400", "401", "403", "404", "409", "422", "429", "500", "503"):
        yield Call(f"status {status}", "create", chat, f"status_{status}")
        yield Call(f"status {status} to a stream", "stream", chat, f"status_{status}")
    yield Call("an error in a stream", "stream", chat, "stream_error")
    yield Call("a stream that breaks off", "stream", chat, "cut_stream")
    yield Call("models", "models", {})
    yield Call("embeddings", "embeddings", {"model": "e", "input": ["a", "b"]})
    yield Call("a file", "file", {})


def _body(form: Form, way: str, text: str) -> dict[str, Any] | None:
    """What a way is given; the helpers that parse name a zod schema in place of a JSON schema."""
    body = form.chat(text) if way in _CHAT else form.responses(text)
    if not way.endswith("parse"):
        return body
    if form.parsed is None or "response_format" not in form.asks:
        return None
    kept = {key: value for key, value in body.items() if key not in ("response_format", "text")}
    return {**kept, "schema": form.parsed.__name__}


def test_the_node_client_sees_the_same(node: Path, direct: Route, through: Route, world: World) -> None:
    """Every form in every way, errors and the rest of the API: forwarded to the letter, handled but for the list."""
    calls = list(_calls(world))
    asked = {
        "routes": {"straight": direct.base_url, "gated": through.base_url},
        "labels": LABELS,
        "calls": [{"way": call.way, "body": call.body, "script": call.script} for call in calls],
    }
    done = subprocess.run(
        ["node", "run.mjs"], cwd=node, input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for call, straight, gated in zip(calls, found["straight"], found["gated"], strict=True):
        assert gated.pop("decision") == ("handled" if call.handled else "deferred"), call.name
        assert straight.pop("decision") is None
        if call.handled:
            assert "seen" in straight, (call.name, straight)
            assert handled(gated) == handled(straight), call.name
        else:
            assert gated == straight, call.name
