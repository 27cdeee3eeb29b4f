"""Where two sequences of tokens differ: a patience diff, whose work is bounded."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from policies.prompt_spans import MARK, is_word

_DEEPEST = 8

Gap = tuple[int, int, int, int]
"""Start and end in the one, start and end in the other."""


def gaps(a: Sequence[object], b: Sequence[str]) -> list[Gap]:
    """Where two sequences differ, in order; outside the gaps they are equal. What is no text in `a` equals nothing."""
    return _gaps(a, b, (0, len(a), 0, len(b)), 0)


def _gaps(a: Sequence[object], b: Sequence[str], within: Gap, depth: int) -> list[Gap]:
    a0, a1, b0, b1 = within
    while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
        a0, b0 = a0 + 1, b0 + 1
    while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
        a1, b1 = a1 - 1, b1 - 1
    if a0 == a1 and b0 == b1:
        return []
    anchors = _anchors(a, b, (a0, a1, b0, b1)) if depth < _DEEPEST and a0 < a1 and b0 < b1 else []
    if not anchors:
        return [(a0, a1, b0, b1)]
    found = []
    for i, j in [*anchors, (a1, b1)]:
        found += _gaps(a, b, (a0, i, b0, j), depth + 1)
        a0, b0 = i, j
    return found


def _anchors(a: Sequence[object], b: Sequence[str], within: Gap) -> list[tuple[int, int]]:
    """The longest rising run of words that stand once in each of both, as places in the two."""
    a0, a1, b0, b1 = within
    mine = Counter(item for item in a[a0:a1] if isinstance(item, str))
    theirs = Counter(b[b0:b1])
    places = {b[j]: j for j in range(b0, b1) if theirs[b[j]] == 1 and (is_word(b[j]) or b[j][:1] == MARK)}
    pairs = []
    for i in range(a0, a1):
        item = a[i]
        if isinstance(item, str) and mine[item] == 1 and item in places:
            pairs.append((i, places[item]))
    return _rising(pairs)


def _rising(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of pairs that rise in the first number, the longest run that rises in both."""
    tops: list[int] = []  # the least last number of a run of each length
    ends: list[int] = []
    before: list[int] = []
    for index, (_, j) in enumerate(pairs):
        k = bisect_left(tops, j)
        before.append(ends[k - 1] if k else -1)
        tops[k : k + 1], ends[k : k + 1] = [j], [index]
    found, at = [], ends[-1] if ends else -1
    while at >= 0:
        found.append(pairs[at])
        at = before[at]
    return found[::-1]
