"""The demo's traffic: messages to a bank's support desk, written by a seeded grammar, with the teacher's answers.

Synthetic throughout. The templates lie in `bank/*.yaml`; a message is one template filled in and typed by somebody with
habits (`manner.py`). The scripted teacher is a fixed function of the message: the intent the message was written for,
except where the message is ambiguous (it falls between two intents, or asks for two things), and a rare plain mistake.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any

import yaml

from gateway.demo import grammar, manner
from gateway.demo.grammar import Parts
from gateway.demo.manner import Manner

COMMON_FIRST = 0.8  # how quickly the wordings of a topic get rarer, as an exponent of their place
TWO_WISHES = 0.015  # share of messages that ask for two things at once
SECOND_WISH_NAMED = 0.2  # how often the teacher then names the second
TEACHER_SLIPS = 0.006  # share of messages on which the teacher is plainly wrong
SAME_SKELETON = 4  # how often one wording may come back with other fillings
ATTEMPTS = 60

_INTENT_FILES = ("cards", "payments", "transfers", "account")
_NOT_LETTERS = re.compile(r"[^a-z]+")


@dataclass(frozen=True, slots=True)
class Message:
    """One incoming message, and the label the scripted teacher gives it."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Topic:
    """What a message can be about: one intent, or two that it falls between. Shares sum to one."""

    weight: float
    shares: Mapping[str, float]
    templates: tuple[Parts, ...]

    @property
    def template_weights(self) -> list[float]:
        """The first wordings in a file are the common ones."""
        return [(place + 1) ** -COMMON_FIRST for place in range(len(self.templates))]


@dataclass(frozen=True, slots=True)
class Bank:
    """The whole grammar."""

    topics: tuple[Topic, ...]
    slots: Mapping[str, Sequence[str]]
    manner: Manner

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label the teacher may answer, sorted."""
        return tuple(sorted({label for topic in self.topics for label in topic.shares}))


@functools.cache
def bank() -> Bank:
    """The grammar, read from the package once."""
    slots = {name: grammar.lines(block) for name, block in _read("slots").items()}
    topics = [
        Topic(float(intent["weight"]), {label: 1.0}, _templates(intent["says"]))
        for name in _INTENT_FILES
        for label, intent in _read(name).items()
    ]
    unclear = _read("unclear")
    topics.append(Topic(float(unclear["other"]["weight"]), {"other": 1.0}, _templates(unclear["other"]["says"])))
    topics.extend(
        Topic(float(pair["weight"]), dict(pair["labels"]), _templates(pair["says"])) for pair in unclear["between"]
    )
    wrapping = _read("manner")
    return Bank(
        topics=tuple(topics),
        slots=slots,
        manner=Manner(
            openers=_templates(wrapping["openers"]),
            asides=_templates(wrapping["asides"]),
            endings=_templates(wrapping["endings"]),
            short_forms=wrapping["short_forms"],
            slots=slots,
        ),
    )


def system_prompt() -> str:
    """The application's instructions to the teacher."""
    listed = "\n".join(f"- {label}" for label in bank().labels)
    return (
        "You sort messages that customers send to the support desk of a bank. Read the message and answer with exactly "
        "one of the labels below, spelt as it stands here, and nothing else: no punctuation, no explanation. If the "
        "customer asks for two things, take the more urgent one. If the message has nothing to do with the bank, or "
        f"makes no sense, answer other.\n\n{listed}"
    )


def messages(count: int, seed: int) -> list[Message]:
    """`count` messages, no two alike in what they say; the same list for the same seed.

    Distinct means distinct in their letters before greeting, endings and typing errors, so neither a number nor a
    "thanks" makes two of one. Raises ValueError when the grammar cannot give that many.
    """
    rng = Random(seed)
    writer = _Writer(bank(), rng)
    written = [writer.next() for _ in range(count)]
    # Common wordings run out first; in the order of writing, the last day would be harder than the first.
    rng.shuffle(written)
    return written


class _Writer:
    """Writes one message after another and remembers what was said."""

    def __init__(self, grammar_of_bank: Bank, rng: Random) -> None:
        self._bank = grammar_of_bank
        self._rng = rng
        self._weights = [topic.weight for topic in grammar_of_bank.topics]
        self._said: set[str] = set()
        self._texts: set[str] = set()
        self._skeletons: dict[str, int] = {}

    def next(self) -> Message:
        for _ in range(ATTEMPTS):
            topic = self._pick()
            core = self._core(topic)
            if core is None:
                continue
            label = self._choose(topic)
            if self._rng.random() < TWO_WISHES:
                core, label = self._add_second_wish(core, label)
            text = manner.typed(core, self._bank.manner, self._rng)
            if text in self._texts:
                continue
            self._texts.add(text)
            if self._rng.random() < TEACHER_SLIPS:
                label = self._rng.choice(self._bank.labels)
            return Message(text, label)
        raise ValueError(f"the grammar has no more than about {len(self._texts)} distinct messages for this seed")

    def _pick(self) -> Topic:
        return self._rng.choices(self._bank.topics, weights=self._weights)[0]

    def _core(self, topic: Topic) -> str | None:
        """A new thing to say about the topic, or None when this try said something old."""
        template = self._rng.choices(topic.templates, weights=topic.template_weights)[0]
        expansion = grammar.expand(template, self._bank.slots, self._rng)
        key = _NOT_LETTERS.sub(" ", expansion.text.lower()).strip() or expansion.text
        if key in self._said or self._skeletons.get(expansion.skeleton, 0) >= SAME_SKELETON:
            return None
        self._said.add(key)
        self._skeletons[expansion.skeleton] = self._skeletons.get(expansion.skeleton, 0) + 1
        return expansion.text

    def _choose(self, topic: Topic) -> str:
        return self._rng.choices(list(topic.shares), weights=list(topic.shares.values()))[0]

    def _add_second_wish(self, core: str, label: str) -> tuple[str, str]:
        second = self._pick()
        text = grammar.expand(self._rng.choice(second.templates), self._bank.slots, self._rng).text
        joint = self._rng.choice((" and also ", ". Also ", ", and another thing: ", " and "))
        if not core[-1].isalnum():
            joint = joint.replace(",", "").replace(". ", " ")
        if self._rng.random() < SECOND_WISH_NAMED:
            label = self._choose(second)
        return core + joint + text, label


def _read(name: str) -> dict[str, Any]:
    text = (resources.files("gateway.demo") / "bank" / f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def _templates(block: str) -> tuple[Parts, ...]:
    return tuple(grammar.parse(line) for line in grammar.lines(block))
