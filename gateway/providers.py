"""Every provider that does not speak the OpenAI API, through litellm: the only module that imports it.

The import costs seconds and 180 MB, so it happens when a configured upstream needs it, in a thread, and never fetches
litellm's price list from the network.
"""

import asyncio
import importlib
import logging
import os
from typing import Any

import httpx

from gateway.encoding import JSON
from gateway.errors import InvalidRequest, NotFound, UpstreamBroken
from gateway.headers import forwarded
from gateway.provider_errors import answered
from gateway.settings import UpstreamSettings
from gateway.upstream import Origin, UpstreamAnswer, UpstreamCall
from gateway.wire import parse_object

_CHAT = "/chat/completions"
_JSON = (b"content-type", JSON)
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
# litellm looks for a key in the environment where it is given none. It must not: that key would be everybody's.
# A server without keys (a local ollama) takes no notice, every other one refuses it.
_NO_KEY = "none"
# Parameters that steer OpenAI's own platform; other providers have nothing they could mean.
_IGNORED = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"})


class ProviderUpstream:
    """An upstream that litellm speaks to, for chat completions. `secret` never travels to it."""

    def __init__(self, name: str, settings: UpstreamSettings, api_key: str | None, secret: bytes = b"") -> None:
        self.name = name
        self.training_allowed = settings.training_allowed
        self._settings = settings
        self._api_key = api_key
        self._secret = secret
        self._litellm: Any = None
        # litellm hands all four to a few providers, and the read time-out to the others.
        self._timeout = httpx.Timeout(
            connect=settings.connect_timeout,
            read=settings.read_timeout,
            write=settings.write_timeout,
            pool=settings.pool_timeout,
        )

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
            raise NotFound(f"The upstream {self.name!r} ({self._settings.provider}) serves /v1/chat/completions only.")
        body = {key: value for key, value in parse_object(call.body).items() if key not in _IGNORED}
        unknown = sorted(body.keys() - _PARAMETERS)
        if unknown:
            raise InvalidRequest(f"The upstream {self.name!r} does not take {unknown[0]!r}.", param=unknown[0])
        streamed = bool(body.get("stream"))
        answer: Any = None
        try:
            answer = await self._litellm.acompletion(
                **body,
                custom_llm_provider=self._settings.provider,
                api_base=self._settings.base_url,
                api_key=self._key(call),
                timeout=self._timeout,
                max_retries=0,
                # It would import a server's worth of packages, absent here, to look for tools this gateway has none of.
                _skip_mcp_handler=True,
            )
            # Some providers are asked only now, and a refusal can still be told as one.
            first = await anext(answer, None) if streamed else None
        except Exception as error:  # noqa: BLE001 - litellm lets its providers' own exceptions through beside its own
            status, headers, refusal = answered(error, self.name)
            return _WholeAnswer(status, [_JSON, *headers], refusal, Origin(self.name))
        except asyncio.CancelledError:
            if streamed and answer is not None:
                await answer.aclose()
            raise
        if streamed:
            # litellm puts the model that was asked for into a stream, whatever the provider says there.
            return _StreamAnswer(answer, first, Origin(self.name, named=False))
        if isinstance(answer.model, str):  # for some providers their name stands before the model's
            answer.model = answer.model.removeprefix(f"{self._settings.provider}/")
        return _WholeAnswer(200, [_JSON], answer.model_dump_json().encode(), Origin(self.name))

    def _key(self, call: UpstreamCall) -> str | None:
        """The key litellm is given; None, where the settings allow it, for what it finds in the environment."""
        if self._settings.ambient_credentials:
            return self._api_key
        return self._api_key or _bearer(call, self._secret) or _NO_KEY


class _WholeAnswer:
    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, origin: Origin) -> None:
        self.status = status
        self.origin = origin
        self.headers = [*headers, (b"content-length", b"%d" % len(body))]
        self._body = body

    def at_hand(self) -> bytes:
        body, self._body = self._body, b""
        return body

    async def read(self) -> bytes:
        return self.at_hand()

    async def close(self) -> None:
        pass


class _StreamAnswer:
    """A stream of litellm's; `first` has been taken from it, None where it was empty."""

    def __init__(self, chunks: Any, first: Any, origin: Origin) -> None:
        self.status = 200
        self.origin = origin
        self.headers = [_EVENTS, (b"cache-control", b"no-cache")]
        self._chunks = chunks
        self._first = first
        self._ended = False

    def at_hand(self) -> bytes:
        return b""

    async def read(self) -> bytes:
        if self._ended:
            return b""
        try:
            chunk, self._first = self._first or await anext(self._chunks), None
        except StopAsyncIteration:
            self._ended = True
            # litellm says "stop" where a provider's stream just ended; a label cut short must not look whole.
            if not (self._chunks.received_finish_reason or self._chunks.intermittent_finish_reason):
                raise UpstreamBroken("the answer ended without a finish reason") from None
            return b"data: [DONE]\n\n"
        except Exception as error:  # litellm lets whatever its providers raise through in mid-stream
            raise UpstreamBroken(f"the answer broke off ({type(error).__name__})") from error
        return b"data: %b\n\n" % _event(chunk)

    async def close(self) -> None:
        if not self._ended:
            await self._chunks.aclose()


def _event(chunk: Any) -> bytes:
    if getattr(chunk, "usage", None) is not None and not any(choice.finish_reason for choice in chunk.choices):
        # OpenAI's last event holds the usage and no choice; litellm's an empty one, which a client would read.
        chunk.choices = []
    event: str = chunk.model_dump_json(exclude_none=True)
    return event.encode()


def _import_litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # It logs a line a call, and whole requests where one fails.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm


def _bearer(call: UpstreamCall, secret: bytes) -> str | None:
    """The client's own key, which travels where none is configured and it is not one of ours."""
    given = next((v.decode("latin-1") for n, v in forwarded(call.headers, secret) if n == b"authorization"), "")
    scheme, _, key = given.partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
