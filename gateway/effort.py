"""How much work a client's JSON schema may make: nobody's schema may hold up the event loop.

References that branch, and `unevaluated...` inside one another, take a validator twice as long a level or more: forty
levels fit in a few kilobytes and take hours.
"""

from typing import Any
from urllib.parse import unquote

# Subschemas, and subschemas visited with every reference followed: some microseconds each. Of the schemas that
# applications send for an answer few come to 1,000.
MOST_EFFORT = 10_000
# Compiled size of a pattern: some milliseconds, where jsonschema-rs's own limit allows for 100.
PATTERN_BYTES = 262_144
_PATTERN_EFFORT = 500
# Each of these looks at everything beside it again: three times as long a level, measured with jsonschema-rs 0.60.
_UNEVALUATED = frozenset({"unevaluatedProperties", "unevaluatedItems"})
_UNEVALUATED_FACTOR = 4
_DEFINITIONS = frozenset({"$defs", "definitions"})
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_TOO_MUCH = MOST_EFFORT + 1


def affordable(schema: Any) -> bool:
    """Whether checking a small value against `schema` surely takes less than some ten milliseconds.

    A reference other than a JSON pointer into the schema itself counts as too much.
    """
    try:
        return _size(schema) <= MOST_EFFORT and _Reader(schema).effort(schema) <= MOST_EFFORT
    except RecursionError:
        return False


def _size(schema: Any) -> int:
    """Of a schema as it is written."""
    if type(schema) is dict:
        return 1 + sum(map(_size, schema.values()))
    return 1 + sum(map(_size, schema)) if type(schema) is list else 1


class _Reader:
    """Adds up effort; what lies behind a reference is added up once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[str, int] = {}

    def effort(self, schema: Any) -> int:
        """Subschemas visited for one place of a value, at least."""
        if type(schema) is list:
            return min(1 + sum(map(self.effort, schema)), _TOO_MUCH)
        if type(schema) is not dict:
            return 1
        root = schema is self._root
        # Definitions count where they are referred to; elsewhere `$defs` may be a property's name.
        counted = [key for key in schema if not (root and key in _DEFINITIONS)]
        total = 1 + sum(self._keyword(key, schema[key]) for key in counted)
        if not root and type(schema.get("$id")) is str:
            return _TOO_MUCH  # pointers beneath would start from here
        if not _UNEVALUATED.isdisjoint(schema):
            total *= _UNEVALUATED_FACTOR
        return min(total, _TOO_MUCH)

    def _keyword(self, key: str, value: Any) -> int:
        if key in _REFERENCES and type(value) is str:
            return self._behind(value)
        if key == "pattern" and type(value) is str:
            return _PATTERN_EFFORT
        if key == "patternProperties" and type(value) is dict:
            return _PATTERN_EFFORT * len(value) + self.effort(value)
        return self.effort(value)

    def _behind(self, pointer: str) -> int:
        if pointer not in self._known:
            self._known[pointer] = 1  # while it is read: where it comes back to itself, the validator stops, too
            self._known[pointer] = self._read(pointer)
        return self._known[pointer]

    def _read(self, pointer: str) -> int:
        found = self._root
        first, *parts = pointer.split("/")
        for part in parts:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if type(found) is list and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif type(found) is dict and name in found:
                found = found[name]
            else:
                return _TOO_MUCH
        return self.effort(found) if first == "#" else _TOO_MUCH
