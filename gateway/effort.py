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
# Keywords whose schemas are about a part of the value.
_INWARD = frozenset(
    {"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames", "items"}
    | {"prefixItems", "additionalItems", "unevaluatedItems", "contains"}
)
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"})
_TOO_MUCH = MOST_EFFORT + 1


def affordable(schema: Any) -> bool:
    """Whether checking a small value against `schema` surely takes less than some ten milliseconds.

    A reference other than a JSON pointer into the schema itself counts as too much, and so does one that comes back to
    itself without having gone on to a part of the value: what such a schema allows is not defined.
    """
    try:
        return _size(schema) <= MOST_EFFORT and _Reader(schema).effort(schema) <= MOST_EFFORT
    except RecursionError:
        return False


def _size(schema: Any) -> int:
    """Of a schema as it is written, or a little more than MOST_EFFORT."""
    waiting, total = [schema], 0
    while waiting and total <= MOST_EFFORT:
        found = waiting.pop()
        parts = found.values() if type(found) is dict else found if type(found) is list else ()
        total += 1 + len(parts)
        waiting += (part for part in parts if type(part) in (dict, list))
    return total


class _Reader:
    """Adds up effort; what lies behind a reference is added up once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[str, int] = {}
        # How far into the value the schema has gone, and had gone where each reference being read was met.
        self._depth = 0
        self._met = {"#": 0}
        self._met_again = 0
        self._steps = 0

    def effort(self, schema: Any) -> int:
        """Subschemas visited for one place of a value, at least."""
        self._steps += 1
        if self._steps > MOST_EFFORT:
            return _TOO_MUCH
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
        patterns = len(value) if key == "patternProperties" and type(value) is dict else 0
        inward = key in _INWARD
        self._depth += inward
        # In a map the keys are names, whatever they look like.
        parts = list(value.values()) if key in _MAPS and type(value) is dict else value
        total = self.effort(parts)
        self._depth -= inward
        return total + _PATTERN_EFFORT * patterns

    def _behind(self, pointer: str) -> int:
        if pointer in self._met:
            self._met_again += 1
            return 1 if self._met[pointer] < self._depth else _TOO_MUCH
        if pointer in self._known:
            return self._known[pointer]
        before = self._met_again
        self._met[pointer] = self._depth
        total = self._read(pointer)
        del self._met[pointer]
        if self._met_again == before:  # else it hangs on where it was met
            self._known[pointer] = total
        return total

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
