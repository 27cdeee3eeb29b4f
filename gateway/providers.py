"""Every provider that does not speak the OpenAI API, through litellm: the only module that imports it.

The import costs seconds and 180 MB, so it happens when a configured upstream needs it, in a thread, and never fetches
litellm's price list from the network.
"""

import asyncio
import importlib
import logging
import os
from typing import Any

import orjson

from gateway.errors import InvalidRequest, NotFound, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from gateway.headers import forwarded
from gateway.settings import UpstreamSettings
from gateway.upstream import Origin, UpstreamAnswer, UpstreamCall
from gateway.wire import parse_object

_CHAT = "/chat/completions"
_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")

# litellm takes its own settings (api_base, api_key, mock_response, ...) as arguments beside OpenAI's. Only these come
# from a client's body, or a client could send our key to a server of its own.
_PARAMETERS = frozenset(
    {"model", "messages", "audio", "frequency_penalty", "function_call", "functions", "logit_bias"}
    | {"logprobs", "max_completion_tokens", "max_tokens", "modalities", "n", "parallel_tool_calls"}
    | {"prediction", "presence_penalty", "reasoning_effort", "response_format", "seed", "stop", "stream"}
    | {"stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user"}
    | {"verbosity", "web_search_options"}
)
# Parameters that steer OpenAI's own platform; other providers have nothing they could mean.
_IGNORED = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"})


class ProviderUpstream:
    """An upstream that litellm speaks to, for chat completions."""

    def __init__(self, name: str, settings: UpstreamSettings, api_key: str | None) -> None:
        self.name = name
        self.training_allowed = settings.training_allowed
        self._settings = settings
        self._api_key = api_key
        self._litellm: Any = None

    async def start(self) -> None:
        """Import litellm."""
        self._litellm = await asyncio.to_thread(_import_litellm)

    async def stop(self) -> None:
        """Close litellm's connections."""
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()

    async def send(self, call: UpstreamCall) -> UpstreamAnswer:
        """Ask the provider. Its errors are answers, in OpenAI's shape and with its status."""
        if call.path != _CHAT or not isinstance(call.body, bytes):
            raise NotFound(f"The upstream {self.name!r} ({self._settings.provider}) serves chat completions only.")
        body = {key: value for key, value in parse_object(call.body).items() if key not in _IGNORED}
        unknown = sorted(body.keys() - _PARAMETERS)
        if unknown:
            raise InvalidRequest(f"The upstream {self.name!r} does not take {unknown[0]!r}.", param=unknown[0])
        try:
            answer = await self._litellm.acompletion(
                **body,
                custom_llm_provider=self._settings.provider,
                api_base=self._settings.base_url,
                api_key=self._api_key or _bearer(call),
                timeout=self._settings.read_timeout,
                max_retries=0,
            )
        except Exception as error:  # noqa: BLE001 - litellm lets its providers' own exceptions through beside its own
            return self._refusal(error)
        if body.get("stream"):
            return _StreamAnswer(answer, Origin(self.name))
        return _WholeAnswer(200, [_JSON], answer.model_dump_json().encode(), Origin(self.name))

    def _refusal(self, error: Exception) -> UpstreamAnswer:
        """The provider's own status and message in OpenAI's shape; raises where it gave none."""
        if isinstance(error, self._litellm.exceptions.Timeout):
            raise UpstreamTimeout(f"The upstream {self.name!r} did not answer in time.") from error
        status = getattr(error, "status_code", None)
        if (
            not isinstance(status, int)
            or status < 400
            or isinstance(error, self._litellm.exceptions.APIConnectionError)
        ):
            raise UpstreamUnreachable(f"The upstream {self.name!r} gave no answer ({type(error).__name__}).") from error
        fields = {
            "message": str(getattr(error, "message", error)),
            "type": getattr(error, "type", None) or ("invalid_request_error" if status < 500 else "server_error"),
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
        headers = [_JSON]
        given = getattr(error, "litellm_response_headers", None) or {}
        if retry_after := given.get("retry-after"):
            headers.append((b"retry-after", str(retry_after).encode("latin-1")))
        return _WholeAnswer(status, headers, orjson.dumps({"error": fields}, default=str), Origin(self.name))


class _WholeAnswer:
    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, origin: Origin) -> None:
        self.status = status
        self.origin = origin
        self.headers = [*headers, (b"content-length", b"%d" % len(body))]
        self._body = body

    async def read(self) -> bytes:
        body, self._body = self._body, b""
        return body

    async def close(self) -> None:
        pass


class _StreamAnswer:
    def __init__(self, chunks: Any, origin: Origin) -> None:
        self.status = 200
        self.origin = origin
        self.headers = [_EVENTS, (b"cache-control", b"no-cache")]
        self._chunks = chunks
        self._ended = False

    async def read(self) -> bytes:
        if self._ended:
            return b""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
            # litellm says "stop" where a provider's stream just ended; a label cut short must not look whole.
            if not (self._chunks.received_finish_reason or self._chunks.intermittent_finish_reason):
                raise UpstreamBroken("the answer ended without a finish reason") from None
            return b"data: [DONE]\n\n"
        except Exception as error:  # litellm lets whatever its providers raise through in mid-stream
            raise UpstreamBroken(f"the answer broke off ({type(error).__name__})") from error
        event: str = chunk.model_dump_json(exclude_none=True)
        return f"data: {event}\n\n".encode()

    async def close(self) -> None:
        if not self._ended:
            await self._chunks.aclose()


def _import_litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # It logs a line a call, and whole requests where one fails.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm


def _bearer(call: UpstreamCall) -> str | None:
    """The client's own key, which travels where none is configured and it is not one of ours."""
    given = next((v.decode("latin-1") for n, v in forwarded(call.headers) if n == b"authorization"), "")
    scheme, _, key = given.partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
