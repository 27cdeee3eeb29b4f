"""Input forms: the variable part of messages that are built from a template.

A template is what stands before and after the variable part in nearly all traces. Its numbers stand for any others: a
date, a release or a number of examples may be another one tomorrow. Light: the gateway loads this.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

# Share of the traces that must have the prefix and the suffix; what does not is not built like them, and deferred.
_SHARED = 0.98
# Share of the traces whose variable part may be empty.
_EMPTY = 0.02
# Prefix and suffix together; less may be how people happen to begin and end.
_FEWEST_CHARS = 12
# The longest candidate is read off so many texts. More than half of them have it, so that it goes on where the template
# ends: what 98 % of all texts share is a part of it.
_SAMPLE = 1_000
_MOST = 0.6
# Steps of the golden ratio spread evenly and keep no pace with whatever repeats in the traces.
_STEP = 0.6180339887498949

# What holds a date, a version or an identifier together.
_JOINTS = frozenset("-:./,_+#")
_NUMBER = re.compile(r"\d+")
# Scripts that put no space between words: Thai, Lao, Myanmar, Khmer, Japanese, Chinese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)

# Of a template, next to the variable part, for people.
_SHOWN = 40

_Begins = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class InputForm:
    """Messages that begin with `prefix` and end with `suffix`, whatever the numbers in them."""

    prefix: str
    suffix: str

    def variable(self, text: str) -> str | None:
        """What stands between prefix and suffix; None where the text is not built so."""
        before: int | None = len(self.prefix)
        after: int | None = len(self.suffix)
        if not text.startswith(self.prefix):
            before = _length(_any_numbers(self.prefix), text)
        if not text.endswith(self.suffix):
            after = _length(_any_numbers(self.suffix, backwards=True), text[::-1])
        if before is None or after is None or before + after > len(text):
            return None
        return text[before : len(text) - after]

    @property
    def words(self) -> str:
        """What is read, for people."""
        after = f"after {_short(self.prefix, -_SHOWN)}" if self.prefix else ""
        before = f"before {_short(self.suffix, _SHOWN)}" if self.suffix else ""
        return f"the part {' and '.join(filter(None, (after, before)))}"

    @property
    def caveat(self) -> str:
        """What is not looked at, where there is something, as the end of a sentence about `words`."""
        numbers = _NUMBER.search(self.prefix) or _NUMBER.search(self.suffix)
        return ", and the numbers in the rest may be any" if numbers else ""


@lru_cache(maxsize=256)
def _any_numbers(affix: str, backwards: bool = False) -> re.Pattern[str] | None:
    """What matches a beginning whatever the numbers in it, or an end, read backwards; None where it has no number."""
    pieces = _NUMBER.split(affix[::-1] if backwards else affix)
    # Possessive: a number is taken whole or not at all, so that no text takes long.
    return re.compile(r"\d++".join(map(re.escape, pieces))) if len(pieces) > 1 else None


def _length(pattern: re.Pattern[str] | None, text: str) -> int | None:
    found = None if pattern is None else pattern.match(text)
    return None if found is None else found.end()


def learn_input_form(texts: Sequence[str]) -> InputForm | None:
    """The template that at least 98 % of `texts` share; None where there is none worth the name."""
    if len(texts) < 2:
        return None
    fewest = _SHARED * len(texts)
    prefix = _to_boundary(_shared(texts, str.startswith, _head, fewest), _head)
    left = [text[len(prefix) :] for text in texts if text.startswith(prefix)]
    suffix = _to_boundary(_shared(left, str.endswith, _tail, fewest), _tail)
    if len(prefix) + len(suffix) < _FEWEST_CHARS:
        return None
    form = InputForm(prefix, suffix)
    found = [form.variable(text) for text in texts]
    empty = sum(1 for part in found if part is not None and not part.strip())
    return None if empty > _EMPTY * len(texts) or len(set(found)) == 1 else form


def _short(text: str, length: int) -> str:
    """The first characters of a text in quotes, or the last where `length` is negative."""
    if len(text) <= abs(length):
        return repr(text)
    return f"...{text[length:]!r}" if length < 0 else f"{text[:length]!r}..."


def _head(text: str, length: int) -> str:
    return text[:length]


def _tail(text: str, length: int) -> str:
    return text[len(text) - length :] if length else ""


def _shared(texts: Sequence[str], begins: _Begins, cut: Callable[[str, int], str], fewest: float) -> str:
    """The longest beginning (or end, by `begins` and `cut`) that `fewest` of the texts have, empty where there is none.

    Of a long one the last few characters are given up where more texts have the rest: messages may begin alike, too.
    """
    candidate = _candidate(texts, cut)
    counts: dict[int, int] = {0: len(texts)}

    def having(length: int) -> int:
        if length not in counts:
            part = cut(candidate, length)
            counts[length] = sum(1 for text in texts if begins(text, part))
        return counts[length]

    longest = _last(0, len(candidate), lambda length: having(length) >= fewest)
    shorter = longest - _FEWEST_CHARS
    if shorter <= 0:
        return cut(candidate, longest)
    return cut(candidate, _last(shorter, longest, lambda length: having(length) == having(shorter)))


def _candidate(texts: Sequence[str], cut: Callable[[str, int], str]) -> str:
    """The longest beginning that most of a sample of the texts have."""
    n = len(texts)
    sample = [texts[int(i * _STEP % 1 * n)] for i in range(_SAMPLE)] if n > _SAMPLE else texts

    def usual(length: int) -> tuple[str, int]:
        return Counter(cut(text, length) for text in sample if len(text) >= length).most_common(1)[0]

    most = _MOST * len(sample)
    longest = max(map(len, sample), default=0)
    length = _last(0, longest, lambda length: usual(length)[1] >= most)
    return usual(length)[0] if sample else ""


def _last(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest number of `low` to `high` for which `holds`, which is so for `low` and then up to some number."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _to_boundary(part: str, cut: Callable[[str, int], str]) -> str:
    """`part` without the piece of a word at its inner end, or of a number and what is joined to it.

    The next message may go on with another word, or another day of the month.
    """
    inwards = part[::-1] if cut is _head else part
    joined = list(takewhile(lambda char: char in _JOINTS or _in_word(char), inwards))
    word = joined if any(char.isdecimal() for char in joined) else list(takewhile(_in_word, inwards))
    return cut(part, len(part) - len(word))


def _in_word(char: str) -> bool:
    return char.isalnum() and not _UNSPACED.match(char)
