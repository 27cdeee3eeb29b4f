"""Recorded requests: what applications send, the odd ones included, as bytes."""

import json
from dataclasses import dataclass
from typing import Any

from tests.fidelity.world import FORMS, MODEL, STRANGE


@dataclass(frozen=True)
class Recorded:
    """One request. `script` is how the teacher behaves."""

    name: str
    path: str
    body: bytes
    method: str = "POST"
    script: str = "openai"
    content_type: str | None = "application/json"

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers."""
        sent = {"authorization": "Bearer sk-application", "x-script": self.script, "x-stainless-lang": "python"}
        sent["accept-encoding"] = "gzip, deflate"
        return sent if self.content_type is None else {**sent, "content-type": self.content_type}


_USER = [{"role": "user", "content": STRANGE}]
_PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAA"
_WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
_CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "n": {"n": 3},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "stop": {"stop": ["\n", "END"]},
    "bias": {"logit_bias": {"50256": -100}, "seed": 7, "temperature": 0.2, "top_p": 0.9},
    "penalties": {"frequency_penalty": 0.5, "presence_penalty": -0.5, "max_tokens": 5},
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it"},
                    {"type": "image_url", "image_url": {"url": _PIXEL, "detail": "low"}},
                ],
            }
        ]
    },
    "audio": {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
    "file": {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
    "turns": {"messages": [*_USER, {"role": "assistant", "content": "refund"}, *_USER]},
    "tool results": {
        "messages": [
            *_USER,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "rain"},
        ]
    },
    "tools": {"tools": [_WEATHER], "tool_choice": "required", "parallel_tool_calls": True},
    "old functions": {"functions": [{"name": "weather", "parameters": {}}], "function_call": "auto"},
    "prediction": {"prediction": {"type": "content", "content": "refund"}},
    "search": {"web_search_options": {}},
    "reasoning": {"reasoning_effort": "low", "verbosity": "low", "store": True, "metadata": {"a": "b"}},
    "not invented yet": {"x_future": {"deep": [1, 2.50, 1e400, None]}},
    "stream": {"stream": True},
    "stream with usage": {"stream": True, "stream_options": {"include_usage": True}},
    "stream of a call": {"stream": True, "tools": [_WEATHER], "tool_choice": "required"},
}
_RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "items": {"input": [{"role": "user", "content": [{"type": "input_text", "text": STRANGE}]}], "instructions": "Hi"},
    "stored": {"store": True, "previous_response_id": "resp_1"},
    "tools": {"tools": [{"type": "web_search"}, {"type": "function", "name": "weather", "parameters": {}}]},
    "reasoning": {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"]},
    "stream": {"stream": True},
}
_QUESTIONS = [
    {"type": "choice", "name": "topic", "instructions": "Which?", "choices": [{"value": "loan"}, {"value": True}]},
    {"type": "predicate", "instructions": "Is it urgent?"},
    {"type": "score", "instructions": "How bad?", "levels": [{"label": "calm"}, {"label": "loan"}]},
]
_UPLOAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" + bytes(range(256)) + b"\r\n--b--\r\n"
)


def _dumped(value: Any) -> bytes:
    # As a client would not write it: white space and key order must survive.
    return json.dumps(value, indent=1, allow_nan=True).encode()


def _recorded() -> list[Recorded]:
    chat, responses = "/chat/completions", "/responses"
    found = [
        Recorded(f"chat: {name}", chat, _dumped({"model": MODEL, "messages": _USER, **more}))
        for name, more in _CHATS.items()
    ]
    found += [
        Recorded(f"responses: {name}", responses, _dumped({"model": MODEL, "input": STRANGE, **more}))
        for name, more in _RESPONSES.items()
    ]
    # Calls of projects, which are read and copied on their way.
    found += [Recorded(f"{form.name} of a project", chat, _dumped(form.chat(STRANGE))) for form in FORMS.values()]
    found += [
        Recorded(f"{form.name} of a project, streamed", chat, _dumped({**form.chat(STRANGE), "stream": True}))
        for form in FORMS.values()
    ]
    found += [
        Recorded("decisions", "/decisions", _dumped({"model": MODEL, "input": STRANGE, "questions": _QUESTIONS})),
        Recorded("embeddings", "/embeddings", _dumped({"model": MODEL, "input": ["a"], "encoding_format": "base64"})),
        Recorded("moderations", "/moderations", _dumped({"input": "kill"})),
        Recorded("speech", "/audio/speech", _dumped({"model": MODEL, "voice": "alloy", "input": "hello"})),
        Recorded("upload", "/files", _UPLOAD, content_type="multipart/form-data; boundary=b"),
        Recorded("models", "/models?limit=2&after=a%2Fb", b"", "GET", content_type=None),
        Recorded("no such model", "/models/nothing", b"", "GET", content_type=None),
        Recorded("no such path", "/fine_tuning/jobs", b"{}"),
        Recorded("deletion", "/models/gpt-old", b"", "DELETE", content_type=None),
    ]
    return found + [_failing(script, form, path) for script in _SCRIPTS for form, path in _PLACES]


# Answers that are no 200 with JSON, to calls of no project and of one.
_SCRIPTS = (
    *("rate_limited", "error", "html", "redirect", "gzip", "deflate", "unknown_encoding", "refusal", "truncated"),
    *("status_400", "status_401", "status_403", "status_404", "status_409", "status_422", "status_429", "status_500"),
    "status_503",
)
_PLACES = ((None, "/chat/completions"), ("text", "/chat/completions"), (None, "/responses"), ("json", "/responses"))


def _failing(script: str, name: str | None, path: str) -> Recorded:
    if path == "/responses":
        body = {"model": MODEL, "input": STRANGE} if name is None else FORMS[name].responses(STRANGE)
    else:
        body = {"model": MODEL, "messages": _USER} if name is None else FORMS[name].chat(STRANGE)
    return Recorded(f"{script} at {path} ({name or 'no project'})", path, _dumped(body), script=script)


RECORDED = _recorded()
