"""A handled call as a question to the teacher: the same decision, asked for once more, and nothing but an answer."""

from typing import Any

import orjson

from gateway.errors import InvalidRequest
from gateway.wire import Surface, parse_object

# They speak of the answer's transport, or of what the provider keeps.
_LEFT_OUT = frozenset({"stream", "stream_options", "metadata", "background"})
# What an answer would continue at the provider; the last, even empty, makes it search the web.
_REFUSED = ("conversation", "previous_response_id", "web_search_options")


def question(surface: Surface, raw: bytes, model: str) -> bytes | None:
    """The body that asks `model`, the teacher, for a whole answer to the call in `raw` that is kept nowhere.

    None where asking would do more than that: tools that the provider itself would run, turns that it would add to a
    conversation; or where the body cannot be written again.
    """
    try:
        body = parse_object(raw)
    except InvalidRequest:
        return None
    if body.get("background") or any(body.get(name) is not None for name in _REFUSED) or not _described_only(body):
        return None
    asked = {key: value for key, value in body.items() if key not in _LEFT_OUT}
    asked["model"] = model
    if "store" in asked or surface is Surface.RESPONSES:
        asked["store"] = False
    try:
        return orjson.dumps(asked)
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        return None


def _described_only(body: dict[str, Any]) -> bool:
    """Whether its tools are functions, which nobody runs who only describes them."""
    tools = body.get("tools")
    if tools is None:
        return True
    return type(tools) is list and all(type(tool) is dict and tool.get("type") == "function" for tool in tools)
