"""Which prompts a policy's certificate is about: instructions, tools, schema, parameters and the model asked for.

A prompt that differs from a known one only in a date, a name or an id is no new prompt. Dates, ids and addresses are
known by their looks, other values are learned from the prompts that evidence is gathered on. What is in doubt is new:
such a call goes to the teacher. Light: the gateway loads this.
"""

import hashlib
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Self

from policies.prompt_spans import normalised
from policies.prompt_templates import Span, Template, tokens_of

_VERSION = 1
_MOST_TEMPLATES = 16
_MOST_MODELS = 8
_LONGEST_LEARNED = 24_000  # bytes of instructions in which values are learned
_MOST_TEXT = 16_000  # characters of a document for the texts of all templates, compressed
_MOST_ANSWERS = 1_024
_MOST_TURNS = 3  # different earlier turns, after which any may stand before the input


class Known(Enum):
    """Whether a certificate is about a call's prompt."""

    YES = "yes"
    MODEL = "model"  # but for the model that is asked
    NO = "no"


@dataclass(frozen=True)
class Prompt:
    """A call without its input.

    `fingerprint` tells any two apart, `frame` stands for tools, schema and parameters (16 hex digits each). `text` is
    the instructions, message borders included; `turns` stands for what was said before the input, "" for nothing.
    """

    fingerprint: str
    frame: str
    model: str
    text: str
    turns: str = ""

    @cached_property
    def long(self) -> bool:
        """Whether the instructions are too long to learn values in."""
        return len(self.text) > _LONGEST_LEARNED or len(self.text.encode("utf-8", "replace")) > _LONGEST_LEARNED

    @cached_property
    def digest(self) -> str:
        """Identity of the instructions but for dates, ids and their like: 16 hex digits."""
        return hashlib.sha256(normalised(self.text).encode("utf-8", "replace")).hexdigest()[:16]

    def to_json(self) -> dict[str, str]:
        """Plain JSON values, at most some 25 kB: of long instructions only what tells them apart."""
        found = {"fingerprint": self.fingerprint, "frame": self.frame, "model": self.model, "turns": self.turns}
        return found | ({"digest": self.digest} if self.long else {"text": self.text})

    @classmethod
    def from_json(cls, found: dict[str, str]) -> Self:
        """What `to_json` gave. Raises KeyError or TypeError for anything else."""
        prompt = cls(found["fingerprint"], found["frame"], found["model"], found.get("text", ""), found["turns"])
        if "text" not in found:
            prompt.__dict__.update(long=True, digest=found["digest"])
        return prompt


@dataclass(slots=True)
class _Member:
    """A template of a family, or, of long instructions, their `digest`.

    `models` it is certified with, `turns` that stood before the input (None: any), `calls` it was learned from.
    """

    frame: str
    template: Template | None
    digest: str
    models: list[str]
    turns: list[str] | None
    calls: int

    def has(self, prompt: Prompt) -> bool:
        """Whether the prompt is one of these, whatever its model and its turns."""
        if prompt.frame != self.frame:
            return False
        if self.template is None or prompt.long:
            return self.template is None and prompt.long and prompt.digest == self.digest
        return self.template.matches(prompt.text)

    def takes(self, turns: str) -> bool:
        """Whether these turns may stand before the input."""
        return self.turns is None or turns in self.turns

    def add(self, models: Sequence[str], turns: Sequence[str] | None, calls: int) -> None:
        """Take down calls with other models and other turns."""
        self.calls += calls
        self.models = list(dict.fromkeys([*self.models, *models]))[-_MOST_MODELS:]
        if turns is not None and self.turns is not None:
            both = list(dict.fromkeys([*self.turns, *turns]))
            self.turns = None if sum(map(bool, both)) >= _MOST_TURNS else both
        else:
            self.turns = None

    def copied(self) -> "_Member":
        """One that can be changed without this."""
        turns = None if self.turns is None else list(self.turns)
        return _Member(self.frame, self.template, self.digest, list(self.models), turns, self.calls)


class Family:
    """The prompts that a certificate is about. Of one thread: others are given one of their own, by way of JSON."""

    def __init__(self) -> None:
        self._members: list[_Member] = []
        self._answers: dict[str, Known] = {}
        self._written: dict[str, Any] | None = None

    def knows(self, prompt: Prompt) -> Known:
        """Whether the certificate is about this prompt; a look-up for one that was asked about before."""
        found = self._answers.get(prompt.fingerprint)
        if found is None:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            found = self._answers[prompt.fingerprint] = self._look(prompt)
        return found

    def learn(self, prompt: Prompt, n: int = 1) -> None:
        """Take `n` calls with this prompt as what the certificate is about; it is known afterwards."""
        self._changed()
        member = next((member for member in self._members if member.has(prompt)), None) or self._widened(prompt)
        if member is not None:
            member.add([prompt.model], [prompt.turns], n)
            return
        template = None if prompt.long else Template.of(prompt.text)
        digest = prompt.digest if prompt.long else ""
        self._admit(_Member(prompt.frame, template, digest, [prompt.model], [prompt.turns], n))

    def merge(self, other: "Family") -> None:
        """Add what another family knows."""
        self._changed()
        for theirs in other._members:
            same = (theirs.frame, theirs.digest, theirs.template)
            mine = next((m for m in self._members if (m.frame, m.digest, m.template) == same), None)
            if mine is None:
                self._admit(theirs.copied())
            else:
                mine.add(theirs.models, theirs.turns, theirs.calls)

    def __len__(self) -> int:
        """How many templates there are."""
        return len(self._members)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, below 20 kB or so: of more text than that the least used templates are left out."""
        if self._written is None:
            members, packed = list(self._members), _packed(self._members)
            while len(packed) > _MOST_TEXT and len(members) > 1:
                members.remove(min(members, key=lambda member: member.calls))
                packed = _packed(members)
            self._written = {"version": _VERSION, "templates": [_described(m) for m in members], "texts": packed}
        return self._written

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        if found["version"] != _VERSION:
            raise ValueError(f"prompts of version {found['version']!r} cannot be read, only {_VERSION}")
        family = cls()
        texts = iter(_unpacked(found["texts"]))
        for one in found["templates"]:
            pieces = one["pieces"]
            template = None if pieces is None else Template([_piece(piece, texts) for piece in pieces])
            family._members.append(
                _Member(one["frame"], template, one["digest"], one["models"], one["turns"], one["calls"])
            )
        family._written = found
        return family

    def _changed(self) -> None:
        self._answers, self._written = {}, None

    def _look(self, prompt: Prompt) -> Known:
        found = [member for member in self._members if member.has(prompt) and member.takes(prompt.turns)]
        if any(prompt.model in member.models for member in found):
            return Known.YES
        return Known.MODEL if found else Known.NO

    def _widened(self, prompt: Prompt) -> _Member | None:
        """The member, the most used first, that could be widened to have this prompt, and has been."""
        like = [] if prompt.long else [m for m in self._members if m.template is not None and m.frame == prompt.frame]
        tokens = tokens_of(prompt.text) if like else []
        for member in sorted(like, key=lambda member: -member.calls):
            wider = None if member.template is None else member.template.widened(tokens)
            if wider is not None and wider.matches(prompt.text):
                member.template = wider
                return member
        return None

    def _admit(self, member: _Member) -> None:
        if len(self._members) >= _MOST_TEMPLATES:
            self._members.remove(min(self._members, key=lambda member: member.calls))
        self._members.append(member)


def _described(member: _Member) -> dict[str, Any]:
    pieces = None
    if member.template is not None:
        pieces = [piece.to_json() if isinstance(piece, Span) else None for piece in member.template.pieces]
    return {
        "frame": member.frame,
        "digest": member.digest,
        "models": member.models,
        "turns": member.turns,
        "calls": member.calls,
        "pieces": pieces,
    }


def _piece(found: Any, texts: Iterator[str]) -> str | Span:
    if found is not None:
        return Span.from_json(found)
    text = next(texts, None)
    if text is None:
        raise ValueError("a template of a prompt lacks text")
    return text


def _packed(members: Sequence[_Member]) -> str:
    """The fixed texts of all templates, in order. Like ones cost little more than one."""
    texts = [p for m in members if m.template is not None for p in m.template.pieces if isinstance(p, str)]
    return b64encode(zlib.compress(json.dumps(texts, ensure_ascii=False).encode(), 6)).decode()


def _unpacked(packed: str) -> list[str]:
    try:
        texts: list[str] = json.loads(zlib.decompress(b64decode(packed)))
    except zlib.error:
        raise ValueError("the texts of a prompt's templates are damaged") from None
    return texts
