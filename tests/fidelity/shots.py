"""Requests that nobody should send, drawn by hypothesis: around valid ones, in every way to get them wrong."""

import functools
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fidelity.world import FORMS, STRANGE, World

_SHOWN = 400


@dataclass(frozen=True)
class Shot:
    """One request. With `leaves` the client hangs up after so many bytes of the body."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"
    leaves: int | None = None

    def __repr__(self) -> str:
        body = self.body if len(self.body) <= _SHOWN else self.body[:_SHOWN] + b"..."
        return f"Shot({self.method} {self.path} {self.headers} {body!r}, leaves={self.leaves})"


@dataclass(frozen=True)
class Raw:
    """JSON text as it is to be written, valid or not."""

    text: str


@dataclass(frozen=True)
class Twice:
    """A value whose key is written a second time, with another value."""

    first: Any
    second: Any


def written(value: Any) -> str:
    """JSON text with everything the standard library would not write: duplicate keys, huge numbers, lone surrogates."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Twice):  # changed again, where there is no key to repeat
        return written(value.second)
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            both = (item.first, item.second) if isinstance(item, Twice) else (item,)
            pairs += [f"{json.dumps(key)}:{written(one)}" for one in both]
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**63, 2**64, 10**30, 0.1, "", " ", "\x00", "\ud800", "\udfff\ud800", "é" * 500),
    *([], {}, [[]], [{}], {"": ""}, {"type": None}, {"type": []}, "tracer/text", "tracer/", "tracer/nobody"),
    *("a" * 20_000, Raw("1e400"), Raw("-1e-400"), Raw("9" * 3_000), Raw("9" * 6_000), Raw("NaN"), Raw("-Infinity")),
    *(Raw('"\\ud83d"'), Raw('"\\u0000"'), Raw("[" * 900 + "]" * 900), Raw("[" * 5_000 + "]" * 5_000), Raw("'")),
    *(Raw('{"a":' * 200 + "1" + "}" * 200), Raw("01")),
)
_TANGLED: dict[str, Any] = {
    f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"$ref": f"#/$defs/a{i + 1}"}]} for i in range(40)
}
ODD_SCHEMAS: tuple[dict[str, Any], ...] = (
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"allOf": [{"$ref": "#"}]},
    {"properties": {"intent": {"$ref": "#"}}},
    {"$ref": "#/nowhere"},
    {"$dynamicRef": "#x"},
    {"$ref": "http://127.0.0.1:9/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"$schema": "http://example.com/own"},
    {"$id": "http://[bad"},
    {"type": "nonsense"},
    {"minProperties": 1e308},
    {"maxProperties": -1},
    {"enum": []},
    {"pattern": "("},
    {"properties": {"intent": {"pattern": "(a|a)*(a|a)*b{1000000}"}}},
    {"patternProperties": {"(": {}}},
    {"$ref": "#/$defs/a0", "$defs": {**_TANGLED, "a40": {}}},
    {"unevaluatedProperties": {"$ref": "#"}},
)


def _any_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """As `sampled_from`, without the values in the strategy's name: hypothesis would print them all."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


_WORDS = st.text(max_size=30) | st.sampled_from(["refund", STRANGE, "model", "messages", "$ref"])
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | _WORDS | _any_of(ODD_VALUES)
ANY_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3), max_leaves=6
)
_CHANGES = st.lists(st.tuples(st.integers(0, 30), ANY_JSON), max_size=3)
_METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
_HEADERS = st.sampled_from(
    [
        ("x-tracer-mode", "teacher"),
        ("x-tracer-mode", "shadow"),
        ("x-tracer-mode", "LOCAL"),
        ("x-tracer-mode", "\xff"),
        ("x-tracer-min-agreement", "0.99"),
        ("x-tracer-min-agreement", "nan"),
        ("x-tracer-min-agreement", "1e400"),
        ("x-tracer-explain", "true"),
        ("x-tracer-explain", "maybe"),
        ("x-tracer-project", "text"),
        ("x-tracer-project", "../x"),
        ("content-type", "text/plain; charset=utf-16"),
        ("accept-encoding", "br, zstd, gzip;q=0"),
        ("accept", "text/event-stream"),
        ("authorization", "Bearer \xff"),
        ("connection", "x-tracer-mode, close"),
        ("te", "trailers"),
        ("expect", "100-continue"),
    ]
)


def shots(world: World) -> st.SearchStrategy[Shot]:
    """Requests around valid ones, in every way that a client may get them wrong."""
    valid = _valid(world)
    return st.one_of(
        st.builds(_changed, _any_of(valid), st.just([]), _more()),
        st.builds(_changed, _any_of(valid), st.lists(st.tuples(st.integers(0, 30), ANY_JSON), max_size=3), _more()),
        st.builds(_damaged, _any_of(valid), st.integers(0, 400), st.binary(max_size=6), st.integers(0, 40)),
        st.builds(_reschemed, _any_of(valid), _any_of(ODD_SCHEMAS), _more()),
        st.builds(_whole, st.sampled_from(_PATHS), ANY_JSON, _more()),
        st.builds(_bytes, st.sampled_from(_PATHS), st.binary(max_size=200), _more()),
        st.builds(_compressed, st.sampled_from(_PATHS), st.sampled_from(["gzip", "deflate", "br", "x, gzip"])),
        st.builds(_leaving, _any_of(valid), st.integers(0, 300)),
        st.builds(
            _elsewhere, st.text(max_size=20), st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
        ),
    )


_PATHS = (
    *("/v1/chat/completions", "/v1/responses", "/v1/decisions", "/text/classify", "/predict", "/predict_batch"),
    "/v1/embeddings",
)


def _valid(world: World) -> list[tuple[str, dict[str, Any]]]:
    """(path, body) of requests that are fine, handled and forwarded."""
    found: list[tuple[str, dict[str, Any]]] = []
    for form in FORMS.values():
        for text in (world.known[form.name], STRANGE):
            found.append(("/v1/chat/completions", form.chat(text)))
            found.append(("/v1/chat/completions", {**form.chat(text), "stream": True}))
            found.append(("/v1/responses", form.responses(text)))
            found.append(("/v1/responses", {**form.responses(text), "stream": True}))
    known = world.known["text"]
    choices = [{"value": label} for label in sorted(set(world.topics.values()))]
    question = {"type": "choice", "name": "q", "instructions": FORMS["text"].prompt, "choices": choices}
    found += [("/v1/decisions", {"model": "m", "input": text, "questions": [question]}) for text in (known, STRANGE)]
    found += [("/text/classify", {"input": text, "explain": True}) for text in (known, STRANGE)]
    asked = [{"role": "user", "content": STRANGE, "name": "n"}]
    found += [("/json/classify", {"input": STRANGE}), ("/json/classify", {"input": STRANGE, "messages": asked})]
    found += [("/v1/chat/completions", {"model": "tracer/text", "messages": asked})]
    found += [("/predict", {"input": known, "project": "text"}), ("/predict", {"embedding": [0.5], "project": "text"})]
    found += [("/predict_batch", {"inputs": [known, STRANGE], "project": "text"})]
    return found


def _more() -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    return st.lists(_HEADERS, max_size=1).map(tuple)


def _changed(valid: tuple[str, dict[str, Any]], changes: list[tuple[int, Any]], more: Any) -> Shot:
    path, body = valid
    for place, value in changes:
        body = _with(body, place, value)
    return Shot(path, _encoded(body), more)


def _with(value: Any, place: int, new: Any) -> Any:
    """`value` with something at a place inside it replaced, removed, added or written twice."""
    if isinstance(value, list) and value:
        index = place % len(value)
        return [*value[:index], _with(value[index], place // 2, new), *value[index + 1 :]]
    if not isinstance(value, dict) or not value:
        return new
    keys = list(value)
    key = keys[place % len(keys)]
    changed: tuple[Any, ...] = (
        {**value, key: new},
        {name: item for name, item in value.items() if name != key},
        {**value, key: Twice(value[key], new)},
        {**value, f"x_{key}": new},
        {**value, key: _with(value[key], place // 2, new)},
    )
    return changed[place // len(keys) % len(changed)]


def _damaged(valid: tuple[str, dict[str, Any]], at: int, bytes_in: bytes, cut: int) -> Shot:
    path, body = valid
    whole = _encoded(body)
    at %= len(whole)
    return Shot(path, whole[:at] + bytes_in + whole[at + cut :])


def _reschemed(valid: tuple[str, dict[str, Any]], schema: Any, more: Any) -> Shot:
    path, body = valid
    wanted = {"name": "odd", "strict": True, "schema": schema}
    if "tools" in body:
        tools = [_tool_with(tool, schema) for tool in body["tools"]]
        return Shot(path, _encoded({**body, "tools": tools}), more)
    if path == "/v1/responses":
        return Shot(path, _encoded({**body, "text": {"format": {"type": "json_schema", **wanted}}}), more)
    return Shot(path, _encoded({**body, "response_format": {"type": "json_schema", "json_schema": wanted}}), more)


def _tool_with(tool: dict[str, Any], schema: Any) -> dict[str, Any]:
    if "function" in tool:
        return {**tool, "function": {**tool["function"], "parameters": schema}}
    return {**tool, "parameters": schema}


def _whole(path: str, body: Any, more: Any) -> Shot:
    return Shot(path, _encoded(body), more)


def _bytes(path: str, body: bytes, more: Any) -> Shot:
    return Shot(path, body, more)


def _compressed(path: str, encoding: str) -> Shot:
    return Shot(path, _bomb(), (("content-encoding", encoding),))


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(b"[" * 20_000_000)


def _leaving(valid: tuple[str, dict[str, Any]], after: int) -> Shot:
    path, body = valid
    return Shot(path, _encoded(body), leaves=after)


def _elsewhere(name: str, method: str) -> Shot:
    quoted = "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "replace"))
    return Shot(f"/v1/{quoted}", b"", method=method)


def _encoded(value: Any) -> bytes:
    return written(value).encode("utf-8", "surrogatepass")
