"""What OpenAI sends for the rest of its API, as far as tests ask: models, embeddings, files, speech, moderations."""

import base64
import email.parser
import email.policy
import hashlib
import struct
from collections.abc import Callable
from typing import Any

import orjson

from tests.openai_answers import CREATED

Resource = tuple[int, str, bytes]  # status, content type, body
MODELS = ("gpt-scripted", "gpt-scripted-mini")
_JSON = "application/json"


class Resources:
    """Answers by method and path, and keeps what is uploaded."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}

    def answer(self, method: str, path: str, content_type: str, body: bytes) -> Resource:
        """The answer to one request; `path` is what follows /v1/."""
        kind, _, rest = path.partition("/")
        if method == "POST" and path == "files":
            return self._keep(content_type, body)
        if method == "POST" and path in _POSTED:
            return _POSTED[path](orjson.loads(body))
        if method == "GET" and kind == "models" and rest in ("", *MODELS):
            return _json(_model(rest) if rest else {"object": "list", "data": [_model(name) for name in MODELS]})
        name, _, content = rest.partition("/")
        if kind == "files" and name in self._files and content in ("", "content"):
            return self._file(method, name, content)
        message = f"Invalid URL ({method} /v1/{path})"
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "unknown_url"}
        return 404, _JSON, orjson.dumps({"error": error})

    def _file(self, method: str, name: str, content: str) -> Resource:
        shown, held = self._files[name]
        if method == "DELETE":
            del self._files[name]
            return _json({"id": name, "object": "file", "deleted": True})
        return (200, "application/octet-stream", held) if content else _json(shown)

    def _keep(self, content_type: str, body: bytes) -> Resource:
        head = f"content-type: {content_type}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        content = parts["file"].get_payload(decode=True)
        assert isinstance(content, bytes)
        name = "file-" + hashlib.sha256(content).hexdigest()[:20]
        shown = {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": CREATED,
            "filename": parts["file"].get_filename(),
            "purpose": str(parts["purpose"].get_payload()).strip(),
            "status": "processed",
            "expires_at": None,
            "status_details": None,
        }
        self._files[name] = (shown, content)
        return _json(shown)


def _json(value: Any) -> Resource:
    return 200, _JSON, orjson.dumps(value)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "system"}


def _embeddings(body: dict[str, Any]) -> Resource:
    if type(body["model"]) is not str:
        raise TypeError("model")
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = []
    for index, text in enumerate(given):
        vector = [byte / 255 - 0.5 for byte in _noise(str(text), 16)]
        packed: Any = vector
        if body.get("encoding_format") == "base64":
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed})
    usage = {"prompt_tokens": 3 * len(given), "total_tokens": 3 * len(given)}
    return _json({"object": "list", "data": data, "model": body["model"], "usage": usage})


def _moderation(body: dict[str, Any]) -> Resource:
    flagged = "kill" in str(body["input"])
    categories = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")
    result = {
        "flagged": flagged,
        "categories": {name: flagged and name == "violence" for name in categories},
        "category_scores": dict.fromkeys(categories, 0.01),
        "category_applied_input_types": {name: ["text"] for name in categories},
    }
    return _json({"id": "modr-scripted", "model": body.get("model", "omni-moderation-latest"), "results": [result]})


def _speech(body: dict[str, Any]) -> Resource:
    return 200, "audio/mpeg", _noise(body["input"], 4096)


def _noise(text: str, size: int) -> bytes:
    return hashlib.shake_128(text.encode()).digest(size)


_POSTED: dict[str, Callable[[dict[str, Any]], Resource]] = {
    "embeddings": _embeddings,
    "moderations": _moderation,
    "audio/speech": _speech,
}
