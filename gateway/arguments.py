"""Tool calls whose arguments an LLM must write: the surrogate has picked the tool, a mini or the teacher fills it in.

It is asked with that one tool and a forced tool_choice, so that it need not read the others.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.asking import ask
from gateway.decide import Lane
from gateway.errors import AnswerableError
from gateway.exchange import Exchange
from gateway.reading import read_answer, read_object
from gateway.relay import Outcome
from gateway.services import Services
from gateway.upstream import Upstream
from gateway.wanted import Wanted, arguments_fit
from gateway.wire import ModelRequest, Surface
from policies.types import Answer, AnswerKind

# They speak of the answer's transport, or of several tools.
_LEFT_OUT = frozenset({"stream", "stream_options", "parallel_tool_calls"})


@dataclass(frozen=True, slots=True)
class Writer:
    """The LLM that writes arguments: `lane` is whose it is, `model` its name at `upstream`."""

    lane: Lane
    upstream: Upstream
    model: str


@dataclass(frozen=True, slots=True)
class Written:
    """A whole tool call. `model` and `usage` (JSON) are what the writer said of itself."""

    answer: Answer
    model: str
    usage: bytes | None


async def write_arguments(
    services: Services, exchange: Exchange, request: ModelRequest, asked: Wanted, tool: str, writer: Writer
) -> Written | None:
    """The call of `tool` with arguments that its schema allows; None where the writer gave none.

    Raises ClientGone. Whatever goes wrong elsewhere ends in the full call, which is the caller's to make.
    """
    body = _question(request, asked, tool, writer.model)
    if body is None:
        return None
    try:
        outcome = await ask(services, exchange, writer.upstream, request.surface, body)
    except AnswerableError:
        return None
    return _read(outcome, request.surface, asked, tool)


def _question(request: ModelRequest, asked: Wanted, tool: str, model: str) -> bytes | None:
    named: dict[str, Any] = {"name": tool}
    forced = {"type": "function", **({"function": named} if request.surface is Surface.CHAT else named)}
    kept = {key: value for key, value in request.body.items() if key not in _LEFT_OUT}
    try:
        return orjson.dumps({**kept, "model": model, "tools": [asked.tools[tool]], "tool_choice": forced})
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        return None


def _read(outcome: Outcome, surface: Surface, asked: Wanted, tool: str) -> Written | None:
    if outcome.status != 200 or not outcome.copy:
        return None
    raw = bytes(outcome.copy)
    answer = read_answer(surface, outcome.headers, raw)
    if answer is None or answer.kind is not AnswerKind.TOOL or answer.text != tool or answer.arguments is None:
        return None
    if not arguments_fit(answer.arguments, asked.parameters(tool)):
        return None
    body = read_object(outcome.headers, raw)
    if body is None:
        return None
    usage = body.get("usage")
    return Written(answer, str(body.get("model", "")), orjson.dumps(usage) if type(usage) is dict else None)
