"""Message templates with choices and slots, expanded by a seeded generator. A leaf.

A template is a line of text in which `(a|b|)` is a choice, possibly empty and possibly nested, and `<name>` is a slot
filled from the list of that name. Example: `my card was declined (at|by) <shop>(| yesterday)`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

_TOKEN = re.compile(r"[()|]|<[a-z_]+>|[^()|<]+|<")
_SPACES = re.compile(r"\s+")
_SPACE_BEFORE_JOINED = re.compile(r"\s+([,.?!]|'(?:d|m|s|ve|re|ll)\b)")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place filled from the list called `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences of parts."""

    options: tuple["Parts", ...]


Parts = tuple["str | Slot | Choice", ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """One text from a template, and its `skeleton`: the same text with slot names in place of their fillings."""

    text: str
    skeleton: str


def parse(template: str) -> Parts:
    """The template as parts. Raises ValueError where brackets do not match."""
    tokens = _TOKEN.findall(template)
    parts, end = _parse_sequence(tokens, 0)
    if end != len(tokens):
        raise ValueError(f"unmatched bracket in template: {template}")
    return parts


def lines(block: str) -> tuple[str, ...]:
    """The non-empty lines of a YAML block."""
    return tuple(line.strip() for line in block.splitlines() if line.strip())


def expand(parts: Parts, slots: Mapping[str, Sequence[str]], rng: Random) -> Expansion:
    """One random text. Raises KeyError for a slot without a list."""
    text: list[str] = []
    skeleton: list[str] = []
    _expand_into(parts, slots, rng, text, skeleton)
    return Expansion(_tidy("".join(text)), _tidy("".join(skeleton)))


def count(parts: Parts) -> int:
    """How many different skeletons the template has."""
    total = 1
    for part in parts:
        if isinstance(part, Choice):
            total *= sum(count(option) for option in part.options)
    return total


def _parse_sequence(tokens: Sequence[str], at: int) -> tuple[Parts, int]:
    parts: list[str | Slot | Choice] = []
    while at < len(tokens) and tokens[at] not in ("|", ")"):
        part = tokens[at]
        if part == "(":
            choice, at = _parse_choice(tokens, at + 1)
            parts.append(choice)
            continue
        parts.append(Slot(part[1:-1]) if part.startswith("<") and part.endswith(">") else part)
        at += 1
    return tuple(parts), at


def _parse_choice(tokens: Sequence[str], at: int) -> tuple[Choice, int]:
    options: list[Parts] = []
    while True:
        option, at = _parse_sequence(tokens, at)
        options.append(option)
        if at >= len(tokens):
            raise ValueError(f"bracket never closed in template: {''.join(tokens)}")
        closing = tokens[at] == ")"
        at += 1
        if closing:
            return Choice(tuple(options)), at


def _expand_into(
    parts: Parts, slots: Mapping[str, Sequence[str]], rng: Random, text: list[str], skeleton: list[str]
) -> None:
    for part in parts:
        if isinstance(part, str):
            text.append(part)
            skeleton.append(part)
        elif isinstance(part, Slot):
            text.append(rng.choice(slots[part.name]))
            skeleton.append(f"<{part.name}>")
        else:
            _expand_into(rng.choice(part.options), slots, rng, text, skeleton)


def _tidy(text: str) -> str:
    return _SPACE_BEFORE_JOINED.sub(r"\1", _SPACES.sub(" ", text)).strip()
