"""Fields: an answer of several independent parts, each decided by a model of its own and all judged as one label.

A label then stands for one combination of classes, one a field. What a policy may say is the combinations it has seen:
fields decided apart could be put together to an answer that the teacher never gave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.errors import FitError

Classes = NDArray[np.int64]
Heads = Mapping[str, tuple[int, ...]]

# What is said where the classes make no label that may be said: apart from the truth's -1, so that it agrees with none.
UNSAID = -2
# A label, and a class of a field, must be seen this often to be learned: seen once, no fold can both learn it and be
# asked for it.
FEWEST = 2


@dataclass(frozen=True)
class Fields:
    """The parts of an answer: `truth` (n, H) is the class of each row in each field, -1 where it is not known; `sizes`
    has the number of classes of each field, `classes` (K, H) each label's, -1 where it cannot be said."""

    truth: Classes
    sizes: tuple[int, ...]
    classes: Classes

    @classmethod
    def whole(cls, truth: Classes, n_labels: int) -> "Fields":
        """One field, the label itself; `truth` has shape (n,)."""
        return cls(truth[:, None], (n_labels,), np.arange(n_labels)[:, None])

    @classmethod
    def parted(cls, heads: Heads, labels: Sequence[str], answers: Sequence[str | None]) -> "Fields | None":
        """The fields of `heads` (label -> its class in each); None where fewer than two of them tell labels apart.

        `answers` are the rows' labels, None where there is none to learn from; a label seen too seldom to be said tells
        its classes all the same. Raises FitError where two labels share a combination, or classes are missing.
        """
        lengths = {len(row) for row in heads.values()}
        if len(lengths) > 1:
            raise FitError("heads: every label must have one class in each field")
        unknown = (-1,) * max(lengths, default=0)
        said = np.array([unknown if a is None else heads.get(a, unknown) for a in answers], np.int64)
        own = np.array([heads.get(label, unknown) for label in labels], np.int64)
        truths, classes, sizes = [], [], []
        for column, mine in zip(said.T, own.T, strict=True):  # none at all where no label has a field
            seen, counts = np.unique(column[column >= 0], return_counts=True)
            seen = seen[counts >= FEWEST]
            if len(seen) > 1:
                truths.append(_numbered(column, seen))
                classes.append(_numbered(mine, seen))
                sizes.append(len(seen))
        if len(sizes) < 2:
            return None
        found = cls(np.column_stack(truths), tuple(sizes), np.column_stack(classes))
        found._check(labels)
        return found

    def __len__(self) -> int:
        return len(self.sizes)

    def known(self, truth: Classes) -> NDArray[np.bool_]:
        """Which labels may be said, (K,), by who has learned from rows of these labels, (m,)."""
        if len(self) == 1:
            # A model of whole labels knows by itself which it has seen.
            return np.ones(len(self.classes), np.bool_)
        counts = np.bincount(truth[truth >= 0], minlength=len(self.classes))
        return np.asarray((counts >= FEWEST) & (self.classes >= 0).all(axis=1))

    def labels_of(self, classes: Classes, known: NDArray[np.bool_]) -> Classes:
        """The label of each combination, (m, H) -> (m,); `UNSAID` where it is none of the `known` (K,) ones."""
        labels = np.flatnonzero(known)
        codes = np.ravel_multi_index(tuple(self.classes[labels].T), self.sizes)
        order = np.argsort(codes)
        asked = np.ravel_multi_index(tuple(classes.T), self.sizes)
        if not len(labels):
            return np.full(len(asked), UNSAID)
        place = np.minimum(np.searchsorted(codes[order], asked), len(labels) - 1)
        found = order[place]
        return np.where(codes[found] == asked, labels[found], UNSAID)

    def _check(self, labels: Sequence[str]) -> None:
        first: dict[tuple[int, ...], str] = {}
        for label, row in zip(labels, self.classes.tolist(), strict=True):
            other = first.setdefault(tuple(row), label)
            if other != label and min(row) >= 0:
                raise FitError(f"heads: {other!r} and {label!r} have the same class in every field")


def most_classes(heads: Heads | None) -> int | None:
    """Classes of the field that has most of them; None where there are fewer than two fields."""
    columns = [] if not heads else list(zip(*heads.values(), strict=False))
    return max(len(set(column)) for column in columns) if len(columns) > 1 else None


def jointly(scores: Sequence[NDArray[np.float64]], labels: Classes) -> NDArray[np.float64]:
    """The accept score of the whole answer, (m,): the product over the fields; -inf where one of them is, or where the
    combination is no label."""
    inside = np.isfinite(scores).all(axis=0) & (labels >= 0)
    return np.where(inside, np.prod(np.maximum(scores, 0.0), axis=0), -np.inf)


def _numbered(classes: Classes, seen: Classes) -> Classes:
    """Positions in `seen`, sorted; -1 for what is not there."""
    place = np.minimum(np.searchsorted(seen, classes), len(seen) - 1)
    return np.where(seen[place] == classes, place, -1)
