"""Which answers are the same: a key for every answer, equal where a reader would take two answers for one.

Light and without numpy: what learns the forms and what serves them share it.
"""

import json
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from policies.types import Answer, AnswerKind

_PAIRS = {'"': '"', "'": "'", "`": "`", "*": "*", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
# Quotes in bold in quotes: no answer has more layers, and each costs a pass over the text.
_LAYERS = 8
# A fence with or without the language's name.
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)
# What parts "Intent: refund", "label = refund", "the intent is refund" in two.
_SEPARATOR = re.compile(r"(?:[:=>\u2192]|\bis\b|\s-)[\"'`*]*")
# An introduction is a few words, and so is a label; what is longer is prose.
_LONGEST_PREFIX = 60
_LONGEST_INTRODUCED = 160
# "card: lost" beside "lost" may be chance, and so may another; at three the words in front are an introduction.
_FEWEST_INTRODUCED = 3


@dataclass(frozen=True, slots=True)
class Normaliser:
    """`prefixes` are introductions that say nothing, as keys; the arguments of `open_tools` are no part of an answer.

    Without `merging`, texts are the same only where they are equal.
    """

    merging: bool = True
    prefixes: tuple[str, ...] = ()
    open_tools: tuple[str, ...] = ()

    def key(self, answer: Answer) -> str | None:
        """The answer's key; None for kind `other`, which is like no other answer."""
        if answer.kind is AnswerKind.OTHER:
            return None
        if answer.kind is AnswerKind.TOOL:
            name = json.dumps(answer.text)
            return f"tool {name}" if answer.text in self.open_tools else f"tool {name} {arguments_key(answer)}"
        found = _read_object(answer.text)
        if found is not None:
            return f"json {found[1]}"
        return f"text {self._bare(plain_key(answer.text))}" if self.merging else f"text {answer.text}"

    def _bare(self, key: str) -> str:
        """A plain key without its introduction."""
        for prefix in self.prefixes:
            if key.startswith(prefix) and (rest := plain_key(key[len(prefix) :])):
                return rest
        return key


def plain_key(text: str) -> str:
    """A text without case, surrounding quotes, backticks and asterisks, and a full stop or exclamation mark at its end.

    White space counts once, and characters that look alike (NFKC) are the same. A question mark stays: it says
    something.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    key = " ".join(folded.split())
    for _ in range(_LAYERS):
        bare = key.rstrip(".!").rstrip()
        if len(bare) > 1 and _PAIRS.get(bare[0]) == bare[-1]:
            bare = bare[1:-1].strip()
        if bare == key or not bare:
            break
        key = bare
    return key


def introductions(keys: Collection[str]) -> tuple[str, ...]:
    """The prefix of plain keys that stands before three and more keys which also occur without it; none or one.

    Several such prefixes are no manner of speaking: they tell the labels under one heading from those under another.
    """
    introduced: dict[str, set[str]] = {}
    for key in keys:
        if len(key) > _LONGEST_INTRODUCED:
            continue
        for match in _SEPARATOR.finditer(key, 0, _LONGEST_PREFIX):
            rest = plain_key(key[match.end() :])
            if rest in keys:
                introduced.setdefault(key[: match.end()], set()).add(rest)
    found = [prefix for prefix, rests in introduced.items() if len(rests) >= _FEWEST_INTRODUCED]
    return tuple(found) if len(found) == 1 else ()


def arguments_key(answer: Answer) -> str:
    """A tool call's arguments in canonical JSON, `{}` where it has none; empty where they are unknown or no object."""
    if answer.arguments is None:
        return ""
    found = _read_object(answer.arguments or "{}")
    return "" if found is None else found[1]


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, also in a fenced block; None for any other text.

    None also where a key stands twice or a number is none (NaN, Infinity, 1e999): readers disagree on what that means.
    """
    found = _read_object(text)
    return None if found is None else found[0]


def canonical(value: Any) -> str:
    """One text for equal JSON values: keys sorted, no white space."""
    return _ENCODER.encode(value)


def compact(value: Any) -> str:
    """JSON for people: keys as they came, no white space, every letter as it is."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _read_object(text: str) -> tuple[dict[str, Any], str] | None:
    """(the object, its canonical form) of `parse_object`."""
    bare = text.strip()
    if bare.startswith("```"):
        fenced = _FENCED.fullmatch(bare)
        bare = "" if fenced is None else fenced[1].strip()
    if not (bare.startswith("{") and bare.endswith("}")):
        return None
    try:
        found: dict[str, Any] = _DECODER.decode(bare)
        return found, canonical(found)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _number(text: str) -> int | float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return int(value) if value.is_integer() else value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_number, parse_constant=_no_number)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
