"""A teacher's answer, whole or streamed, read as what may become a trace."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from gateway.wire import Surface
from policies.types import Answer, AnswerKind

LONGEST_LABEL = 512  # characters; a longer answer is prose, not a label
LONGEST_OBJECT = 4_096  # of a JSON object or a tool call's arguments

_LONGEST_NAME = 200  # of a model or a build

# What `read` can inflate; the standard library knows no more.
_READABLE = frozenset({b"gzip", b"deflate", b"identity"})
# A label's answer inflates to a few kilobytes; more is not one. (As much as is copied of an answer: COPY_LIMIT.)
_LARGEST_INFLATED = 262_144


class _NoAnswer(Exception):  # noqa: N818
    """Half an answer, an error, or nothing that could be told apart."""


class Teacher(NamedTuple):
    """Who says that it gave an answer: its `model` and its `system_fingerprint`; "" for what it does not say."""

    model: str = ""
    build: str = ""


class Reading(NamedTuple):
    """What there is in the body of a 200."""

    answer: Answer | None
    teacher: Teacher


def read(surface: Surface, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, named: bool = True) -> Reading:
    """The answer in a teacher's 200, exactly as the teacher wrote it, and who gave it.

    The answer is None where there is no whole one. Whole is one choice that ended of itself; in a stream only where its
    closing event has come too. Prose, a refusal and several tool calls are answers of kind `other`, with their first
    characters. Who gave it is read as far as the body goes; its model only where the answer can name it (`named`, see
    `gateway.relay.Outcome`).
    """
    found = {name.lower(): value.lower() for name, value in headers}
    plain = _inflate(found.get(b"content-encoding", b""), body)
    told: _Told = {}
    answer = None
    if plain is not None:
        streamed = found.get(b"content-type", b"").startswith(b"text/event-stream")
        try:
            answer = _classified(_READERS[surface, streamed](plain, told))
        except (KeyError, TypeError, orjson.JSONDecodeError, UnicodeDecodeError, _NoAnswer):
            answer = None
    return Reading(answer, Teacher(told.get("model", "") if named else "", told.get("system_fingerprint", "")))


def read_answer(surface: Surface, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Answer | None:
    """The answer that `read` finds."""
    return read(surface, headers, body).answer


def read_object(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> dict[str, Any] | None:
    """The JSON object that is an answer's body; None where it is something else, a stream for one."""
    encoding = next((value.lower() for name, value in headers if name.lower() == b"content-encoding"), b"")
    plain = _inflate(encoding, body)
    try:
        found = None if plain is None else orjson.loads(plain)
    except orjson.JSONDecodeError:
        return None
    return found if type(found) is dict else None


def readable(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Request headers with accept-encoding narrowed to what `read` can inflate; the others as they are.

    A client that would also take br or zstd still gets an answer it can read, and we get one to learn from.
    """
    return [(name, _narrowed(value) if name == b"accept-encoding" else value) for name, value in headers]


def events(body: bytes) -> Iterator[str]:
    """The data of each server-sent event in a whole stream: CR, LF and CRLF, comments and a byte order mark allowed.

    Raises UnicodeDecodeError. A line without its end was cut off and is left out.
    """
    data: list[str] = []
    for line in _lines(body.removeprefix(b"\xef\xbb\xbf").decode()):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line == "data" or line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
    if data:
        yield "\n".join(data)


def _lines(text: str) -> Iterator[str]:
    # Not splitlines(): that also breaks at characters which JSON strings may hold.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return iter(lines[:-1])


def _narrowed(accepted: bytes) -> bytes:
    tokens = [token.strip() for token in accepted.split(b",")]
    return b", ".join(t for t in tokens if t.split(b";")[0].strip().lower() in _READABLE) or b"identity"


_FILTERED = "content_filter"
# What was said: (text, refusal, tool calls as (name, arguments)).
_Said = tuple[str, str, list[tuple[str, str]]]
# Who said it: the first `model` and the first `system_fingerprint` that is not empty.
_Told = dict[str, str]


def _classified(said: _Said) -> Answer | None:
    text, refusal, calls = said
    if refusal:
        return Answer(refusal[:LONGEST_LABEL], AnswerKind.OTHER)
    if not calls:
        return _text_answer(text)
    name, arguments = calls[0]
    if len(calls) > 1 or text.strip() or len(name) + len(arguments) > LONGEST_OBJECT:
        names = ", ".join(name for name, _ in calls)
        return Answer(names[:LONGEST_LABEL], AnswerKind.OTHER) if names.strip() else None
    return Answer(name, AnswerKind.TOOL, arguments) if name.strip() else None


def _text_answer(text: str) -> Answer | None:
    if not text.strip():
        return None
    longest = LONGEST_OBJECT if text.lstrip()[0] == "{" and _is_object(text) else LONGEST_LABEL
    return Answer(text) if len(text) <= longest else Answer(text[:LONGEST_LABEL], AnswerKind.OTHER)


def _is_object(text: str) -> bool:
    try:
        return type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _NoAnswer
    return value


def _only(value: Any) -> dict[str, Any]:
    """The object in a list of one."""
    if type(value) is not list or len(value) != 1:
        raise _NoAnswer
    return _object(value[0])


def _string(value: Any) -> str:
    """Text, or nothing."""
    if value is None:
        return ""
    if type(value) is not str:
        raise _NoAnswer
    return value


def _note(source: dict[str, Any], told: _Told) -> dict[str, Any]:
    """The source, of which is taken down who wrote it."""
    for key in ("model", "system_fingerprint"):
        name = source.get(key)
        if name and key not in told and type(name) is str:
            told[key] = name[:_LONGEST_NAME]
    return source


def _read_chat(body: bytes, told: _Told) -> _Said:
    choice = _only(_note(_object(orjson.loads(body)), told).get("choices"))
    if choice.get("finish_reason") == _FILTERED:
        return "", _FILTERED, []
    message = _object(choice.get("message"))
    if choice.get("finish_reason") not in ("stop", "tool_calls") or message.get("audio"):
        raise _NoAnswer
    calls = [_function_call(call) for call in message.get("tool_calls") or ()]
    if message.get("function_call"):
        calls.append(_named_arguments(_object(message["function_call"])))
    return _string(message.get("content")), _string(message.get("refusal")), calls


def _function_call(call: Any) -> tuple[str, str]:
    return _named_arguments(_object(_object(call).get("function")))


def _named_arguments(function: Mapping[str, Any]) -> tuple[str, str]:
    return _string(function.get("name")), _string(function.get("arguments"))


def _read_chat_stream(body: bytes, told: _Told) -> _Said:
    text, refusal = [], []
    calls: dict[int, list[str]] = {}
    finished = done = False
    for data in events(body):
        if done:
            raise _NoAnswer
        if data.strip() == "[DONE]":
            done = True
            continue
        event = _note(_object(orjson.loads(data)), told)
        if event.get("error"):
            raise _NoAnswer
        if not event.get("choices"):
            continue
        choice = _only(event["choices"])
        delta = _object(choice.get("delta") or {})
        finish = choice.get("finish_reason")
        if choice.get("index") or finish not in (None, "stop", "tool_calls", _FILTERED) or delta.get("audio"):
            raise _NoAnswer
        finished = finished or finish is not None
        text.append(_string(delta.get("content")))
        refusal.append(_FILTERED if finish == _FILTERED else _string(delta.get("refusal")))
        _gather(calls, delta)
    if not (done and finished):
        raise _NoAnswer
    return "".join(text), "".join(refusal), [(name, arguments) for name, arguments in calls.values()]


def _gather(calls: dict[int, list[str]], delta: Mapping[str, Any]) -> None:
    """Add a delta's pieces of tool calls to the calls they belong to."""
    pieces = delta.get("tool_calls") or ()
    if delta.get("function_call"):
        pieces = [*pieces, {"index": -1, "function": delta["function_call"]}]
    for piece in pieces:
        index = _object(piece).get("index", 0)
        if type(index) is not int:
            raise _NoAnswer
        name, arguments = _named_arguments(_object(piece.get("function") or {}))
        call = calls.setdefault(index, ["", ""])
        call[0] += name
        call[1] += arguments


def _read_response(body: bytes, told: _Told) -> _Said:
    return _said_in(_note(_object(orjson.loads(body)), told))


def _read_response_stream(body: bytes, told: _Told) -> _Said:
    for data in events(body):
        event = _object(orjson.loads(data))
        if event.get("type") in ("response.completed", "response.incomplete"):
            return _said_in(_note(_object(event.get("response")), told))
    raise _NoAnswer


def _said_in(response: Mapping[str, Any]) -> _Said:
    """What the items of a whole response say; reasoning beside them is no part of the answer."""
    if (response.get("incomplete_details") or {}).get("reason") == _FILTERED:
        return "", _FILTERED, []
    if response.get("status") != "completed" or type(response.get("output")) is not list:
        raise _NoAnswer
    text, refusal = [], []
    calls: list[tuple[str, str]] = []
    for item in map(_object, response["output"]):
        kind = item.get("type")
        if kind == "function_call":
            calls.append(_named_arguments(item))
        elif kind == "message":
            for part in item.get("content") or ():
                found = _object(part)
                text.append(_string(found.get("text")))
                refusal.append(_string(found.get("refusal")))
        elif kind != "reasoning":
            raise _NoAnswer
    return "".join(text), "".join(refusal), calls


def _read_decisions(body: bytes, told: _Told) -> _Said:
    """The one answer: the value chosen, or the likelier side of a predicate, as text."""
    answer = _only(_note(_object(orjson.loads(body)), told).get("answers"))
    if answer.get("type") == "refusal":
        return "", "refused", []
    probability = answer.get("probability")
    value = answer.get("choice") if probability is None else probability >= 0.5
    if not isinstance(value, str | bool):
        raise _NoAnswer
    return choice_label(value), "", []


def choice_label(value: str | bool) -> str:
    """A choice's value as a label."""
    return value if isinstance(value, str) else str(value).lower()


_READERS: Mapping[tuple[Surface, bool], Callable[[bytes, _Told], _Said]] = {
    (Surface.CHAT, False): _read_chat,
    (Surface.CHAT, True): _read_chat_stream,
    (Surface.RESPONSES, False): _read_response,
    (Surface.RESPONSES, True): _read_response_stream,
    (Surface.DECISIONS, False): _read_decisions,
}


def _inflate(encoding: bytes, body: bytes) -> bytes | None:
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"deflate"):
        return None
    # 32 + MAX_WBITS reads both the gzip and the zlib header.
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, _LARGEST_INFLATED)
    except zlib.error:
        return None
    return plain if inflater.eof else None
