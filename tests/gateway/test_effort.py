"""Bounded work for schemas that clients write."""

import json
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from gateway.effort import affordable
from gateway.wanted import arguments_fit

ANSWER = '{"intent":"refund"}'


def _branching(levels: int, keyword: str, pointer: str = "#/$defs/{}") -> dict[str, Any]:
    """A chain of definitions, each referring twice to the next."""
    made: dict[str, Any] = {f"a{i}": {keyword: [{"$ref": pointer.format(f"a{i + 1}")}] * 2} for i in range(levels)}
    return {"$ref": pointer.format("a0"), "$defs": {**made, f"a{levels}": {"type": "object"}}}


def _nested(levels: int, around: Callable[[Any], Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"properties": {"intent": {"type": "string"}}}
    for _ in range(levels):
        schema = around(schema)
    return schema


_HOURS: dict[str, dict[str, Any]] = {
    "branching references": _branching(40, "allOf"),
    "branching references, all looked at": _branching(40, "oneOf"),
    "references with escapes": _branching(40, "anyOf", "#/%24defs/{}"),
    "references into arrays": {
        "allOf": [{"allOf": [{"$ref": f"#/allOf/{i + 1}"}] * 2} for i in range(40)] + [{"type": "object"}]
    },
    "a reference to itself": {"$ref": "#"},
    "references to each other": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
    },
    "a reference read at two depths": {
        "$ref": "#/$defs/B",
        "$defs": {
            "B": {"properties": {"x": {"$ref": "#/$defs/A"}}, "allOf": [{"$ref": "#/$defs/A"}]},
            "A": {"$ref": "#/$defs/B"},
        },
    },
    "a property named like a keyword": {"dependentSchemas": {"items": {"$ref": "#"}}},
    "references by anchor": {"$ref": "#a", "$defs": {"a": {"$anchor": "a", "type": "object"}}},
    "references from an inner id": {"$id": "urn:a", "allOf": [{"$id": "urn:b", "$ref": "#/$defs/c"}]},
    "unevaluated properties": _nested(40, lambda schema: {"allOf": [schema], "unevaluatedProperties": False}),
    "unevaluated properties of conditions": _nested(40, lambda s: {"if": s, "unevaluatedProperties": False}),
    "a property called $defs": {
        "properties": {"$defs": _nested(40, lambda schema: {"allOf": [schema], "unevaluatedProperties": False})}
    },
    "huge patterns": {"properties": {f"p{i}": {"pattern": "x{300}{300}" + str(i)} for i in range(90)}},
    "many patterns": {"properties": {f"p{i}": {"pattern": f"[a-z]+{i}"} for i in range(10_000)}},
    "patterns of names": {"patternProperties": {f"[a-z]+{i}": {} for i in range(10_000)}},
    "many properties": {"properties": {f"p{i}": {"type": "string"} for i in range(100_000)}},
}


@pytest.mark.parametrize("name", _HOURS)
def test_a_schema_that_would_take_long_allows_nothing(name: str) -> None:
    """And says so at once: the call goes to the teacher, whose business it is."""
    started = time.perf_counter()
    assert not arguments_fit(ANSWER, _HOURS[name])
    assert time.perf_counter() - started < 0.5


class _Inner(BaseModel):
    kind: Literal["a", "b"]
    inner: "_Inner | None" = None


class _Outer(BaseModel):
    intent: str
    first: _Inner | None = None
    second: list[_Inner] = []


@pytest.mark.parametrize(
    "schema",
    [
        _Outer.model_json_schema(),
        {"properties": {"inner": {"$ref": "#"}, "more": {"items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}},
        {"properties": {"$ref": {"type": "string"}, "intent": {"$ref": "#/$defs/intent"}}, "$defs": {"intent": {}}},
        {"properties": {"intent": {"enum": [f"label {i}" for i in range(999)] + ["refund"]}}},
        {"properties": {"intent": {"pattern": r"^[\w .-]{1,40}$"}}, "unevaluatedProperties": False},
        {
            "$id": "urn:intent",
            "$defs": {"a/b": {"type": "string"}},
            "properties": {"intent": {"$ref": "#/$defs/a~1b"}},
        },
        _branching(10, "allOf"),
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_what_people_write_is_checked(schema: dict[str, Any]) -> None:
    """Models that refer to themselves, a thousand labels, patterns: none of it is much."""
    assert affordable(schema)
    assert arguments_fit(ANSWER, schema)
