"""A teacher with a script: an OpenAI-compatible server, a process of its own, that answers each input as its file says.

    python -m gateway.demo.teacher SCRIPT.jsonl --port 8001 --median 0.32 --spread 0.35

The script has the format of a trace file. The time an answer takes is a fixed function of the input: lognormal around
the median, or exactly the median where the spread is zero.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import orjson
import typer
import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.demo import costs

CHAT_PATH = "/v1/chat/completions"
HEALTH_PATH = "/healthz"


@dataclass(frozen=True, slots=True)
class Script:
    """What the teacher says, and how long it takes: `median` in seconds, `spread` the deviation of the logarithm."""

    labels: Mapping[str, str]
    median: float
    spread: float

    def seconds(self, text: str) -> float:
        """The time the answer to `text` takes."""
        return self.median * Random(text).lognormvariate(0.0, self.spread) if self.spread else self.median


class Teacher:
    """The ASGI app. It answers chat completions that are not streamed; anything else is an error in OpenAI's shape."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        body = await _read(receive)
        if scope["path"] == HEALTH_PATH:
            await _answer(send, 200, {"status": "ok"})
        elif scope["path"] != CHAT_PATH:
            await _answer(send, 404, _error(f"the scripted teacher has only {CHAT_PATH}"))
        else:
            await _answer(send, *await self._complete(body))

    async def _complete(self, body: bytes) -> tuple[int, dict[str, Any]]:
        try:
            request = orjson.loads(body)
            texts = [message["content"] for message in request["messages"]]
            label = self._script.labels.get(texts[-1])
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
            return 400, _error("the scripted teacher reads messages with plain text")
        if request.get("stream"):
            return 400, _error("the scripted teacher does not stream")
        if label is None:
            return 400, _error("this message is not in the script")
        await asyncio.sleep(self._script.seconds(texts[-1]))
        return 200, _completion(label, request.get("model", ""), costs.estimate(texts, label))


def read_script(path: Path) -> dict[str, str]:
    """Label by input; where an input stands twice, the last line counts. Raises OSError, KeyError, JSONDecodeError."""
    rows = (orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip())
    return {row["input"]: row["teacher"] for row in rows}


def write_script(path: Path, labels: Mapping[str, str]) -> None:
    """The file that `read_script` reads."""
    path.write_bytes(b"".join(orjson.dumps({"input": text, "teacher": labels[text]}) + b"\n" for text in labels))


def serve(
    script: Path,
    port: Annotated[int, typer.Option()],
    median: Annotated[float, typer.Option(help="Seconds.")] = 0.0,
    spread: Annotated[float, typer.Option(help="Deviation of the logarithm of the time.")] = 0.0,
) -> None:
    """Serve until SIGTERM."""
    teacher = Teacher(Script(read_script(script), median, spread))
    uvicorn.run(
        teacher,
        host="127.0.0.1",
        port=port,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,  # providers keep idle connections for a minute or more
    )


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = orjson.dumps(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _completion(label: str, model: str, usage: costs.Usage) -> dict[str, Any]:
    message = {"role": "assistant", "content": label, "refusal": None}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
        },
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "scripted_teacher"}}


if __name__ == "__main__":
    typer.run(serve)
