"""Values to JSON: quick, and whatever a client may have sent."""

import json
from typing import Any

import orjson

from gateway.errors import InvalidRequest

JSON = b"application/json"


def encoded(value: Any) -> bytes:
    """The value as JSON.

    Lone surrogates and integers beyond 64 bits, which orjson refuses, are written as the standard library does; what is
    no number (NaN, infinities) becomes null either way. Raises InvalidRequest where it is nested too deeply.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        try:
            finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
            return json.dumps(finite, separators=(",", ":")).encode()
        except RecursionError:
            raise InvalidRequest("The body is nested too deeply.") from None
