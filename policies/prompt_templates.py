"""Prompts that are one prompt but for the values of a call: fixed text, and spans between it that vary.

A template begins as one prompt, in which only dates, ids and their like may differ. Another prompt that differs from it
in a few short places widens it: the values seen there are remembered, and once there are enough of them that look like
values of a call, whatever looks like them may stand there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Self

from policies.prompt_gaps import Gap, gaps
from policies.prompt_spans import (
    KINDS,
    MARK,
    begins_sentence,
    end_of,
    is_listed,
    is_word,
    length,
    looks,
    split,
    tokens,
)

LONGEST_SPAN = 12  # tokens
_MOST_VARYING = 0.25  # of a template's tokens
_MOST_SPANS = 16
_MOST_VALUES = 12  # that are remembered of a span
# Different values after which a span varies: of names and numbers; of other words, and of what may be a label.
_NAMES, _WORDS = 3, 8
_SHORT, _FEW = 16, 4  # characters, tokens: "O'Neil" has three; no more than these is never too long for a name
_ALIKE = 0.6  # of the tokens; prompts with less in common are not aligned
_TRIES = 64  # places at which the end of a span is looked for, in all
_MARKS = frozenset("m")
_CONTEXT = 80


@dataclass(slots=True)
class Span:
    """A place where values vary: those of a `kind`, or else `values`, and where it is open, what looks like them.

    `strict`: it may be an item of a list of labels. `begins`: a sentence begins with it. What may stand here beside the
    `values` is made of `looks` (empty: nothing may), like values of up to `longest` characters and `words` tokens.
    """

    kind: str = ""
    values: list[str] = field(default_factory=list)
    strict: bool = False
    begins: bool = False
    longest: int = 0
    words: int = 0
    looks: frozenset[str] = frozenset()

    @classmethod
    def learned(cls, values: Sequence[str], *, strict: bool, begins: bool) -> Self | None:
        """The span that has had these values; None where they are no values of one span."""
        groups = _grouped(values, begins)
        names, words, others = groups
        if not any(groups) or not _similar(names, words + others):
            return None
        span = cls("", names + words + others, strict, begins)
        varied = names + words if len(names) + len(words) >= _WORDS else names
        if len(varied) >= (_WORDS if strict else _NAMES):
            span.longest, span.words = max(map(len, varied)), max(map(length, varied))
            span.looks = frozenset[str]().union(*(looks(value, begins) for value in varied))
        return span

    def takes(self, value: str) -> bool:
        """Whether a value may stand here."""
        if value in self.values:
            return True
        if not self.looks or not value or len(value) > max(2 * self.longest, _SHORT):
            return False
        allowed, found = self.looks | (_MARKS if "C" in self.looks else frozenset()), looks(value, self.begins)
        most = self.words if "w" in found else max(2 * self.words, _FEW)
        return found <= allowed and 0 < length(value) <= min(most, LONGEST_SPAN)

    def ends(self, text: str, start: int, after: str) -> Iterator[int]:
        """Where a value may end that begins at `start` and that `after` follows."""
        if self.kind:
            end = end_of(self.kind, text, start)
            if end >= 0:
                yield end
            return
        for value in self.values:
            if text.startswith(value, start) and text.startswith(after, start + len(value)):
                yield start + len(value)
        if not self.looks:
            return
        if not after:
            if self.takes(text[start:]):
                yield len(text)
            return
        last = start + max(2 * self.longest, _SHORT) + len(after)
        end = text.find(after, start + 1, last)
        while end >= 0:
            if self.takes(text[start:end]):
                yield end
            end = text.find(after, end + 1, last)

    def to_json(self) -> Any:
        """The kind's name, or the values and the place."""
        return self.kind or [self.values, "".join(c for c, said in (("s", self.strict), ("b", self.begins)) if said)]

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """What `to_json` gave. Raises ValueError for values that belong together in no prompt, TypeError."""
        if isinstance(found, str):
            if found not in KINDS:
                raise ValueError(f"there is no kind {found!r} of values in prompts")
            return cls(found)
        values, place = found
        span = cls.learned(values, strict="s" in place, begins="b" in place)
        if span is None:
            raise ValueError("a span of a prompt has values that no prompt has in one place")
        return span


Piece = str | Span


class Template:
    """Text and spans in turn; between two spans there is always text."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = list(pieces)
        self._items: list[Piece] | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """The template of one prompt."""
        return cls([Span(kind) if kind else piece for kind, piece in split(text)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.pieces == other.pieces

    __hash__ = None  # type: ignore[assignment]

    def matches(self, text: str) -> bool:
        """Whether a prompt's text is this template with values in its spans."""
        if self.pieces and type(last := self.pieces[-1]) is str and not text.endswith(last):
            return False
        return self._matches(text, 0, 0, [_TRIES])

    def _matches(self, text: str, index: int, at: int, tries: list[int]) -> bool:
        while index < len(self.pieces):
            piece = self.pieces[index]
            index += 1
            if not isinstance(piece, Span):
                if not text.startswith(piece, at):
                    return False
                at += len(piece)
                continue
            after = self.pieces[index] if index < len(self.pieces) else ""
            for end in piece.ends(text, at, after if isinstance(after, str) else ""):
                tries[0] -= 1
                if tries[0] < 0:
                    return False
                if self._matches(text, index, end, tries):
                    return True
            return False
        return at == len(text)

    def widened(self, new: "Tokens") -> "Template | None":
        """The template that is this one and takes these tokens too; None where they are different prompts."""
        items = self._tokens()
        mine = {item for item in items if isinstance(item, str)}
        if len(mine & {token for token, _ in new}) < _ALIKE * len(mine):
            return None
        found = _joined(gaps(items, [token for token, _ in new]), items)
        return None if len(found) > _MOST_SPANS else self._with(items, new, found)

    def _with(self, items: list[Piece], new: "Tokens", places: Sequence[Gap]) -> "Template | None":
        """This template with a span in the place of each gap."""
        pieces: list[Piece] = []
        at = 0
        for a0, a1, b0, b1 in places:
            _add(pieces, items[at:a0])
            before, at = pieces[-1] if pieces else "", a1
            if isinstance(before, Span) or (a1 < len(items) and _is_span(items[a1])):
                return None
            after = "".join(piece for _, piece in new[b1 : b1 + _CONTEXT])
            value = "".join(piece for _, piece in new[b0:b1])
            values = _values(items[a0:a1])
            strict, begins = is_listed(before[-_CONTEXT:], after), begins_sentence(before[-_CONTEXT:])
            span = Span.learned([*values, value], strict=strict, begins=begins) if values else None
            if span is None:
                return None
            pieces.append(span)
        _add(pieces, items[at:])
        found = Template(pieces)
        return found if found._varies_little() else None

    def _varies_little(self) -> bool:
        spans = [piece for piece in self.pieces if isinstance(piece, Span) and not piece.kind]
        varying = sum(span.words for span in spans)
        fixed = sum(length(piece) if isinstance(piece, str) else 1 for piece in self.pieces if piece not in spans)
        return len(spans) <= _MOST_SPANS and varying <= _MOST_VARYING * (varying + fixed)

    def _tokens(self) -> list[Piece]:
        """Tokens, marks of kinds, and spans that were learned."""
        if self._items is None:
            self._items = []
            for piece in self.pieces:
                if isinstance(piece, str):
                    self._items += tokens(piece)
                else:
                    self._items.append(MARK + piece.kind if piece.kind else piece)
        return self._items


Tokens = list[tuple[str, str]]


def tokens_of(text: str) -> Tokens:
    """Tokens, and marks in the place of values of a kind, each with what it stands for."""
    found: Tokens = []
    for kind, piece in split(text):
        found += [(MARK + kind, piece)] if kind else [(token, token) for token in tokens(piece)]
    return found


def _grouped(values: Sequence[str], begins: bool) -> tuple[list[str], list[str], list[str]]:
    """Different values: names and numbers, plain words, and what no value of a call has; the last few of each."""
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    for value in dict.fromkeys(values):
        found = looks(value, begins)
        groups[2 if "x" in found else 1 if "w" in found else 0].append(value)
    return groups[0][-_MOST_VALUES:], groups[1][-_MOST_VALUES:], groups[2][-_MOST_VALUES // 2 :]


def _similar(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether values are of like length: a sentence more is no longer name, and a word more may be `not`."""
    sizes, more = [length(value) for value in names], [length(value) for value in others]
    if not all(sizes + more) or max(sizes + more) > LONGEST_SPAN:
        return False
    if names and (max(sizes) > 3 * min(sizes) + 1 or max(map(len, names)) > 4 * min(map(len, names)) + _SHORT):
        return False
    return not more or max(more) <= min(more + sizes[:1]) + 1


def _is_span(item: Piece) -> bool:
    return isinstance(item, Span) or item[:1] == MARK


def _values(items: Sequence[Piece]) -> list[str]:
    """The texts that these items have been; none where there is no text, or one of a kind."""
    if not items or any(isinstance(item, str) and item[:1] == MARK for item in items):
        return []
    ways = [[item] if isinstance(item, str) else item.values for item in items]
    found = []
    for way in product(*ways):
        found.append("".join(way))
        if len(found) == _MOST_VALUES:
            break
    return found


def _add(pieces: list[Piece], items: Sequence[Piece]) -> None:
    """Put items behind pieces, text to text."""
    for item in items:
        if isinstance(item, Span):
            pieces.append(item)
        elif item[:1] == MARK:
            pieces.append(Span(item[1:]))
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += item
        else:
            pieces.append(item)


def _joined(places: Sequence[Gap], items: Sequence[Piece]) -> list[Gap]:
    """Gaps with no word between them are one: of "J. Smith" and "K. Jones" the dot is no part of the template."""
    found: list[Gap] = []
    for gap in places:
        between = items[found[-1][1] : gap[0]] if found else ()
        if found and not any(isinstance(item, Span) or is_word(item.lstrip(MARK)) for item in between):
            found[-1] = (found[-1][0], gap[1], found[-1][2], gap[3])
        else:
            found.append(gap)
    return found
