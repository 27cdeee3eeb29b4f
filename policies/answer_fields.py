"""Fields of structured answers: which of them must be predicted, and which follow from those.

A field is constant, determined by another field, free text, or a head: something to predict.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.answer_keys import canonical

Path = tuple[str, ...]
Row = Mapping[Path, str]
"""A structured answer, flat: the canonical JSON of each leaf by its path. A leaf that is not there is `MISSING`."""
Counted = Sequence[tuple[Row, int]]

MISSING = ""

# Of the answers with a given value of the determining field, so many must have the usual value of the determined one.
_DETERMINED = 0.98
# And the determining field must explain all but this share of what varies: a rare value is more than an exception.
_UNEXPLAINED = 0.1
# Values that only one answer has cannot be learned. Where so many answers have one, the field holds text.
_FREE = 0.2
# Deeper objects are leaves, whole.
_DEEPEST = 8
# The most frequent fields are looked at; who has more of them sends data, not decisions.
_MOST_FIELDS = 64
# What determines what is seen on so many different answers, evenly taken where there are more: each field is compared
# with each, which takes a second or two for 64 of them.
_MOST_ROWS = 20_000
# Two fields are compared in a table of all pairs of their values where it is no larger; else by sorting.
_LARGEST_TABLE = 100_000


@dataclass(frozen=True)
class Fields:
    """`heads` are the fields to predict; `follows` gives for each other one the field that determines it (None: it is
    constant); `free` has the number of different values of each field without form. `regular` says row by row whether
    the answer follows from its heads."""

    heads: tuple[Path, ...] = ()
    follows: dict[Path, Path | None] = field(default_factory=dict)
    free: dict[Path, int] = field(default_factory=dict)
    regular: list[bool] = field(default_factory=list)


def flatten(value: Mapping[str, Any], path: Path = ()) -> dict[Path, str]:
    """The leaves of a JSON object by path. Lists are leaves, and so are empty objects."""
    flat: dict[Path, str] = {}
    for key, item in value.items():
        here = (*path, key)
        if isinstance(item, dict) and item and len(here) < _DEEPEST:
            flat |= flatten(item, here)
        else:
            flat[here] = canonical(item)
    return flat


def shown(path: Path) -> str:
    """A path for people."""
    return ".".join(path)


def learn_fields(rows: Counted) -> Fields:
    """The smallest set of fields that determine the answers. `rows`: different answers, each with how often it came.

    Their order changes nothing.
    """
    ordered = _in_order(rows)
    paths = _paths(ordered)
    if not paths:
        return Fields(regular=[True] * len(rows))
    values = {path: _values(rows, path) for path in paths}
    constant = [path for path in paths if _is_constant(values[path])]
    open_ended = {path for path in paths if path not in constant and _is_free(values[path])}
    sample = _Sample.of(_evenly(ordered), paths)
    heads = _heads(sample, [path for path in paths if path not in constant and path not in open_ended])
    if not heads and not open_ended:
        heads = (constant.pop(0),)
    follows: dict[Path, Path | None] = dict.fromkeys(constant)
    free = {}
    for path in paths:
        if path in heads or path in follows:
            continue
        by = sample.determining(heads, path)
        if by is not None:
            follows[path] = by
        elif path in open_ended:
            free[path] = len(values[path])
        else:
            # Through others only, and each takes its exceptions along: together too many.
            heads = (*heads, path)
    heads = tuple(path for path in paths if path in heads)
    return Fields(heads, follows, free, _regular(rows, follows, free, frozenset(paths)))


def _in_order(rows: Counted) -> Counted:
    """The most frequent answers first; of equally frequent ones the first by what they say."""
    return sorted(rows, key=lambda pair: (-pair[1], list(pair[0].items())))


def _paths(ordered: Counted) -> list[Path]:
    """The most frequent paths, as the most frequent answers order them."""
    counts: Counter[Path] = Counter()
    for row, count in ordered:
        counts.update(dict.fromkeys(row, count))
    known = set(sorted(counts, key=lambda path: (-counts[path], path))[:_MOST_FIELDS])
    return [path for path in counts if path in known]


def _evenly(ordered: Counted) -> Counted:
    """Rows evenly taken, from the most frequent to the rarest, where there are too many to compare all fields on."""
    n = len(ordered)
    return ordered if n <= _MOST_ROWS else [ordered[i * n // _MOST_ROWS] for i in range(_MOST_ROWS)]


def _values(rows: Counted, path: Path) -> Counter[str]:
    values: Counter[str] = Counter()
    for row, count in rows:
        values[row.get(path, MISSING)] += count
    return values


def _is_constant(values: Counter[str]) -> bool:
    """One value, but for a few that came once: those cannot be learned."""
    (_, most), *others = values.most_common(2)
    return not others or (others[0][1] == 1 and most >= _DETERMINED * values.total())


def _is_free(values: Counter[str]) -> bool:
    return sum(1 for count in values.values() if count == 1) > _FREE * values.total()


def _heads(sample: "_Sample", paths: list[Path]) -> tuple[Path, ...]:
    """What is left of `paths` when those that another determines are gone; texts stay before numbers, first ones before
    later ones."""
    kept = list(paths)
    for path in sorted(paths, key=lambda path: (sample.columns[path].is_text, -paths.index(path))):
        if sample.determining([other for other in kept if other != path], path) is not None:
            kept.remove(path)
    return tuple(kept)


@dataclass(frozen=True)
class _Column:
    """One field of n answers: the number of the value of each, and how often each value came, most frequent first."""

    numbers: NDArray[np.int64]
    counts: NDArray[np.float64]
    is_text: bool

    @classmethod
    def of(cls, values: Sequence[str], counts: NDArray[np.float64]) -> "_Column":
        found: Counter[str] = Counter()
        for value, count in zip(values, counts.tolist(), strict=True):
            found[value] += count
        ordered = sorted(found, key=lambda value: (-found[value], value))
        index = {value: number for number, value in enumerate(ordered)}
        numbers = np.fromiter((index[value] for value in values), np.int64, len(values))
        return cls(numbers, np.array([found[value] for value in ordered]), ordered[0].startswith('"'))


@dataclass(frozen=True)
class _Sample:
    """The fields of n answers as columns, and how often each answer came, shape (n,)."""

    columns: Mapping[Path, _Column]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Counted, paths: Sequence[Path]) -> "_Sample":
        counts = np.array([count for _, count in rows], np.float64)
        return cls({path: _Column.of([row.get(path, MISSING) for row, _ in rows], counts) for path in paths}, counts)

    def determining(self, others: Sequence[Path], path: Path) -> Path | None:
        """The one of `others` that determines `path` best; None where none does."""
        best: tuple[float, Path] | None = None
        for other in others:
            wrong = self._exceptions(self.columns[other], self.columns[path])
            if wrong is not None and (best is None or wrong < best[0]):
                best = wrong, other
        return None if best is None else best[1]

    def _exceptions(self, by: _Column, field: _Column) -> float | None:
        """Answers in which a field has not the value usual for that of `by`; None where it is not determined."""
        # A value that came once determines everything, and shows nothing.
        seen = by.counts > 1
        total = float(by.counts[seen].sum())
        most = (1 - _DETERMINED) * total
        # Each value of `by` has one usual value beside it: even the most frequent ones may be too few.
        if 2 * total < self.counts.sum() or total - field.counts[: int(seen.sum())].sum() > most:
            return None
        usual, values = self._usual(by, field, seen)
        wrong = total - float(usual[seen].sum())
        varies = total - float(values.max(initial=0.0))
        return None if wrong > most or wrong > _UNEXPLAINED * varies else wrong

    def _usual(
        self, by: _Column, field: _Column, seen: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How often each value of `by` has its usual value of the field beside it; and the field's values where `by`
        has a value that was seen."""
        n, width = len(by.counts), len(field.counts)
        pairs = by.numbers * width + field.numbers
        if n * width <= _LARGEST_TABLE:
            table = np.bincount(pairs, self.counts, n * width).reshape(n, width).astype(np.float64)
            return table.max(axis=1), table[seen].sum(axis=0)
        known, which = np.unique(pairs, return_inverse=True)
        counts = np.bincount(which, self.counts)
        usual = np.zeros(n)
        np.maximum.at(usual, known // width, counts)
        values = np.bincount(known % width, counts * seen[known // width], width)
        return usual, values.astype(np.float64)


def _pairs(rows: Counted, by: Path, path: Path) -> dict[str, Counter[str]]:
    pairs: dict[str, Counter[str]] = {}
    for row, count in rows:
        pairs.setdefault(row.get(by, MISSING), Counter())[row.get(path, MISSING)] += count
    return pairs


def _regular(
    rows: Counted, follows: Mapping[Path, Path | None], free: Mapping[Path, int], known: frozenset[Path]
) -> list[bool]:
    regular = [row.keys() <= known and not free.keys() & row.keys() for row, _ in rows]
    for path, by in follows.items():
        if by is None:
            usual = _usual(_values(rows, path))
            fits = [row.get(path, MISSING) == usual for row, _ in rows]
        else:
            beside = {value: _usual(found) for value, found in _pairs(rows, by, path).items()}
            fits = [row.get(path, MISSING) == beside[row.get(by, MISSING)] for row, _ in rows]
        regular = [ok and fit for ok, fit in zip(regular, fits, strict=True)]
    return regular


def _usual(values: Counter[str]) -> str:
    """The most frequent value; of equally frequent ones the first in order."""
    return min(values, key=lambda value: (-values[value], value))
