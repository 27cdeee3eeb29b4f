"""Two servers that do nothing but what no server can leave out: the limits that ours is measured against.

uvicorn bench.bare:empty     parses the body of any request and answers with one constant chat completion
BARE_UPSTREAM=http://127.0.0.1:9000 uvicorn bench.bare:relay     posts the body to the same path there, gives its answer

Start them as the gateway runs: `--loop uvloop --http httptools --no-access-log`. Neither copies headers, streams,
records, limits or survives anything.
"""

import contextlib
import os
from collections.abc import AsyncIterator

import aiohttp
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_COMPLETION = {
    "id": "chatcmpl-bare",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "bare",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "card_arrival", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    },
    "service_tier": "default",
    "system_fingerprint": None,
}
COMPLETION: bytes = orjson.dumps(_COMPLETION)
"""A constant chat completion, of the shape and about the size of ours."""


async def _answer(request: Request) -> Response:
    orjson.loads(await request.body())
    return Response(COMPLETION, media_type="application/json")


async def _relay(request: Request) -> Response:
    client: aiohttp.ClientSession = request.app.state.client
    body = await request.body()
    async with client.post(request.app.state.upstream + request.url.path, data=body, headers=_JSON) as answer:
        return Response(await answer.read(), answer.status, media_type=answer.content_type)


@contextlib.asynccontextmanager
async def _with_client(app: Starlette) -> AsyncIterator[None]:
    app.state.upstream = os.environ["BARE_UPSTREAM"]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as app.state.client:
        yield


_JSON = {"Content-Type": "application/json"}
empty = Starlette(routes=[Route("/{path:path}", _answer, methods=["POST"])])
relay = Starlette(routes=[Route("/{path:path}", _relay, methods=["POST"])], lifespan=_with_client)
