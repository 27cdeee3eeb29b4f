"""Calibration: from softmax and accept score to probabilities that mean what they say. numpy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def calibrated(shares: NDArray[np.float64], top: int, score: float) -> NDArray[np.float64]:
    """Probabilities of K labels, (K,), from the surrogate's `shares` (K,) and its answer `top`.

    `top` gets the accept score, for that is the probability that it is the teacher's; the others share the rest in
    proportion to their softmax. Where a rival's part of the rest would be larger than the score, `top` gets what makes
    the two equal: the score says how likely the surrogate is wrong, but not that another label is right, and what is
    likeliest must be what `decide` would say. For a rival with the part r of the others' softmax that is r / (1 + r).
    """
    others = np.delete(shares, top)
    total = float(others.sum())
    # Softmax in float32 may leave nothing at all to the others.
    parts = others / total if total > 0 else np.full(len(others), 1 / max(len(others), 1))
    largest = float(parts.max(initial=0.0))
    first = max(score, largest / (1 + largest))
    # Rounding must not put the rival in front after all.
    return np.insert(np.minimum((1 - first) * parts, first), top, first)


def jointly(fields: Sequence[NDArray[np.float64]], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of K labels, (K,), that add up to 1: the product of each field's probabilities at the label's classes.

    `classes` (K, H) has -1 for a label that cannot be said. What the product gives to combinations that are no label is
    spread over those that are, in proportion.
    """
    parts = [field[own] for field, own in zip(fields, classes.T, strict=True)]
    found = np.where((classes >= 0).all(axis=1), np.prod(parts, axis=0), 0.0)
    total = float(found.sum())
    return found / total if total > 0 else np.full(len(found), 1 / len(found))


def calibration_bins(
    probabilities: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10
) -> list[tuple[int, float, float]]:
    """(rows, mean probability, share of right) of bins of equal mass, from the lowest probability to the highest.

    `probabilities` (n,) are those of the answer, `right` (n,) whether it was the teacher's. Equal mass after Nixon et
    al., "Measuring Calibration in Deep Learning" (2019).
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(len(part), float(probabilities[part].mean()), float(right[part].mean())) for part in parts]


def calibration_error(probabilities: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error: |mean probability - share of right|, averaged over the rows of `calibration_bins`."""
    gaps = [rows * abs(mean - share) for rows, mean, share in calibration_bins(probabilities, right, bins)]
    return sum(gaps) / max(len(probabilities), 1)
