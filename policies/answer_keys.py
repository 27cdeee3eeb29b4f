"""Which answers are the same: a key for every answer, equal where a reader would take two answers for one.

Light and without numpy: what learns the forms and what serves them share it.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.traces import storable
from policies.types import Answer, AnswerKind

_PAIRS = {'"': '"', "'": "'", "`": "`", "*": "*", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
# Quotes in bold in quotes: no answer has more layers, and each costs a pass over the text.
_LAYERS = 8
_FENCE = "```"
# Two spellings that are both so frequent, and have this share of all that fold alike, may well be two answers.
_FREQUENT = 5
_FREQUENT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Normaliser:
    """`apart` are spellings that are answers of their own, though another one differs from them by case alone; the
    arguments of `open_tools` are no part of an answer.

    Without `merging`, texts are the same only where they are equal.
    """

    merging: bool = True
    apart: frozenset[str] = frozenset()
    open_tools: tuple[str, ...] = ()

    def key(self, answer: Answer) -> str | None:
        """The answer's key; None for kind `other`, which is like no other answer."""
        if answer.kind is AnswerKind.OTHER:
            return None
        if answer.kind is AnswerKind.TOOL:
            name = json.dumps(answer.text)
            return f"tool {name}" if answer.text in self.open_tools else f"tool {name} {arguments_key(answer)}"
        found = _read_json(answer.text)
        if found is not None:
            return f"json {found[1]}"
        spelled = spelling(answer.text) if self.merging else None
        if spelled is None:
            return f"exact {answer.text}"
        return f"spelled {spelled}" if spelled in self.apart else f"text {folded(spelled)}"


def spelling(text: str) -> str | None:
    """A text without surrounding quotes, backticks and asterisks, and a full stop or exclamation mark at its end.

    White space counts once, and a letter is the same however its accent is encoded (NFC). A question mark stays: it
    says something; so does what follows a digit or a sign (5! is not 5), and a quote whose character also stands
    within. None for what looks like JSON: that is data.
    """
    if _unfenced(text).startswith(("{", "[")):
        return None
    spelled = " ".join(unicodedata.normalize("NFC", storable(text)).split())
    for _ in range(_LAYERS):
        bare = _bare(spelled)
        if bare == spelled:
            break
        spelled = bare
    return None if spelled.startswith(("{", "[")) else spelled


def folded(spelled: str) -> str:
    """A spelling without case."""
    return unicodedata.normalize("NFC", spelled.casefold())


def told_apart(counts: Mapping[Answer, int]) -> frozenset[str]:
    """Spellings of texts that are answers of their own: frequent beside a more frequent one that folds alike.

    Where more than half of the answers have such spellings, that is how the teacher writes, and none is told apart.
    """
    spellings: dict[str, Counter[str]] = {}
    for answer, count in counts.items():
        if answer.kind is AnswerKind.TEXT and (spelled := spelling(answer.text)) is not None:
            spellings.setdefault(folded(spelled), Counter())[spelled] += count
    # Only what came so often could have two of them.
    seen = [found for found in spellings.values() if found.total() >= 2 * _FREQUENT]
    several = [frequent for found in seen if len(frequent := _frequent(found)) > 1]
    if 2 * len(several) > len(seen):
        return frozenset()
    return frozenset(spelled for frequent in several for spelled in frequent[1:])


def _frequent(found: Counter[str]) -> list[str]:
    """The spellings that are no slips, the most frequent first."""
    least = max(_FREQUENT, _FREQUENT_SHARE * found.total())
    frequent = [spelled for spelled, count in found.items() if count >= least]
    return sorted(frequent, key=lambda spelled: (-found[spelled], spelled))


def _bare(spelled: str) -> str:
    """A spelling without its outermost layer; itself where it has none."""
    bare = spelled.rstrip(".!").rstrip()
    if not bare:
        return spelled
    return _unquoted(bare) or (bare if bare[-1].isalpha() else spelled)


def _unquoted(text: str) -> str:
    """What a pair of quotes holds; empty where there is none, or where it is not one pair."""
    opening, closing = text[0], _PAIRS.get(text[0])
    if closing is None:
        return ""
    before, after = len(text) - len(text.lstrip(opening)), len(text) - len(text.rstrip(closing))
    inner = text[before : len(text) - after].strip() if before == after else ""
    return "" if opening in inner or closing in inner else inner


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
    found = _read_json(text)
    return (found[0], found[1]) if found is not None and isinstance(found[0], dict) else None


def _read_json(text: str) -> tuple[dict[str, Any] | list[Any], str] | None:
    """(value, canonical form) of a text that is an object or an array."""
    bare = _unfenced(text)
    if bare[:1] + bare[-1:] not in ("{}", "[]"):
        return None
    try:
        found: dict[str, Any] | list[Any] = _DECODER.decode(bare)
        return found, canonical(found)
    except (ValueError, RecursionError):
        return None


def _unfenced(text: str) -> str:
    """A text without white space around it, and without a fence that names no language, or JSON."""
    bare = text.strip()
    if not (bare.startswith(_FENCE) and bare.endswith(_FENCE)):
        return bare
    language, newline, body = bare[len(_FENCE) : -len(_FENCE)].partition("\n")
    return body.strip() if newline and language.strip().lower() in ("", "json") else bare


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
