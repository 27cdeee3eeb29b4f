"""The way a message is typed: greeting, asides, endings, short forms, casing, typing errors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from gateway.demo import grammar
from gateway.demo.grammar import Parts

_WORD = re.compile(r"[A-Za-z'/]+|[^A-Za-z'/]+")
_SENTENCE_START = re.compile(r"(^|[.?!]\s+)([a-z])")
_NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Register:
    """How one kind of writer types: the share of messages (or of words) in which each habit shows."""

    share: float
    opener: float
    aside: float
    ending: float
    short_forms: float  # of words that have one
    typos: float  # of messages, one or two errors each
    lower: float
    bare: float  # without end punctuation


REGISTERS = (
    Register(share=0.42, opener=0.18, aside=0.12, ending=0.16, short_forms=0.0, typos=0.05, lower=0.15, bare=0.2),
    Register(share=0.14, opener=0.55, aside=0.25, ending=0.60, short_forms=0.0, typos=0.03, lower=0.0, bare=0.0),
    Register(share=0.30, opener=0.16, aside=0.08, ending=0.10, short_forms=0.2, typos=0.18, lower=0.9, bare=0.8),
    Register(share=0.14, opener=0.10, aside=0.05, ending=0.08, short_forms=0.35, typos=0.40, lower=0.9, bare=0.9),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manner:
    """Everything a message may be wrapped in."""

    openers: tuple[Parts, ...]
    asides: tuple[Parts, ...]
    endings: tuple[Parts, ...]
    short_forms: Mapping[str, Sequence[str]]
    slots: Mapping[str, Sequence[str]]


def typed(core: str, manner: Manner, rng: Random) -> str:
    """The message as somebody would type it around `core`, one or two plain sentences without a final full stop."""
    register = rng.choices(REGISTERS, weights=[kind.share for kind in REGISTERS])[0]
    text = _wrap(core, register, manner, rng)
    if register.short_forms:
        text = _shorten(text, register.short_forms, manner.short_forms, rng)
    if rng.random() < register.typos:
        for _ in range(rng.choice((1, 1, 2))):
            text = _mistype(text, rng)
    return _cased(text, register, rng)


def _wrap(core: str, register: Register, manner: Manner, rng: Random) -> str:
    parts: list[str] = []
    if rng.random() < register.opener:
        opener = rng.choice(manner.openers)
        parts.append(_with_stop(_say(opener, manner, rng), ",", rng.random() < 0.6))
    if rng.random() < register.aside:
        aside = _say(rng.choice(manner.asides), manner, rng)
        parts.extend((aside, core) if rng.random() < 0.6 else (_with_stop(core, "."), aside))
    else:
        parts.append(core)
    if rng.random() < register.ending:
        parts[-1] = _with_stop(parts[-1], rng.choice(".,,"))
        parts.append(_say(rng.choice(manner.endings), manner, rng))
    return " ".join(parts)


def _say(parts: Parts, manner: Manner, rng: Random) -> str:
    return grammar.expand(parts, manner.slots, rng).text


def _with_stop(text: str, stop: str, wanted: bool = True) -> str:
    return text + stop if wanted and text[-1].isalnum() else text


def _shorten(text: str, rate: float, short_forms: Mapping[str, Sequence[str]], rng: Random) -> str:
    words = _WORD.findall(text)
    for position, word in enumerate(words):
        forms = short_forms.get(word.lower())
        if forms and rng.random() < rate:
            words[position] = rng.choice(forms)
    return "".join(words)


def _mistype(text: str, rng: Random) -> str:
    words = _WORD.findall(text)
    candidates = [position for position, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not candidates:
        return text
    position = rng.choice(candidates)
    word = words[position]
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif kind == 1:
        word = word[:at] + word[at + 1 :]
    elif kind == 2:
        word = word[:at] + word[at] + word[at:]
    else:
        word = word[:at] + rng.choice(_NEIGHBOURS.get(word[at].lower(), "e")) + word[at + 1 :]
    words[position] = word
    return "".join(words)


def _cased(text: str, register: Register, rng: Random) -> str:
    if rng.random() < register.bare:
        text = text.rstrip("?.!,") or text
        if rng.random() < 0.5:
            text = text.replace(",", "").replace("'", "")
    elif text[-1].isalnum():
        text += rng.choice((".", ".", ".", "", "!"))
    roll = rng.random()
    if roll < 0.025:
        return text.upper()
    if roll < 0.025 + register.lower:
        return text.lower()
    return _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)
