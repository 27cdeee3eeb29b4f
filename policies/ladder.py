"""The accept scores to reach: those of the certificate, and those of what a call may ask for beyond it. A leaf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The accept score to reach: a stage, and a label (by index) that has a limit of its own."""

    stages: tuple[float, ...]
    protected: Mapping[int, float]

    @classmethod
    def of(
        cls, labels: Sequence[str], stages: Sequence[float | None], protected: Mapping[str, float | None]
    ) -> "Limits":
        """From thresholds as a manifest has them; `labels` are all labels."""
        index = {label: i for i, label in enumerate(labels)}
        return cls(tuple(map(limit, stages)), {index[label]: limit(found) for label, found in protected.items()})

    def at(self, stage: int, label: int | None) -> float:
        """What a stage must reach to answer with a label."""
        return self.stages[stage] if label is None else self.protected.get(label, self.stages[stage])

    def reach(self, other: "Limits") -> bool:
        """Whether none is lower than the other's."""
        labels = [None, *(self.protected.keys() | other.protected.keys())]
        places = [(stage, label) for stage in range(len(self.stages)) for label in labels]
        return all(self.at(*place) >= other.at(*place) for place in places)


class Ladder:
    """The agreements that a policy can be held to, each with its limits, loosest first."""

    def __init__(self, target: float, limits: Limits, stricter: Sequence[tuple[float, Limits]]) -> None:
        """`limits` are the certificate's, which is about `target`; of `stricter`, which rises, what is above it counts.

        Each target was tested on its own, so that one could have been certified at a lower threshold than a looser one:
        such a row is left out, and who asks for more is answered less.
        """
        self._target, self._limits = target, limits
        self._stricter: list[tuple[float, Limits]] = []
        rungs, last = [target], limits
        for agreement, found in stricter:
            if agreement > target and found.reach(last):
                self._stricter.append((agreement, found))
                if found != last:
                    rungs.append(agreement)
                last = found
        self.rungs = tuple(rungs)
        """The target, and each one above it whose limits are others than those before it."""

    def at(self, agreement: float) -> Limits | None:
        """Those of the lowest target that is at least so high; None where there is none, or where it is no number."""
        if agreement <= self._target:
            return self._limits
        return next((limits for target, limits in self._stricter if target >= agreement), None)


def limit(threshold: float | None) -> float:
    """A threshold as a number. Nothing scores above infinity: without a certificate nothing is handled."""
    return float("inf") if threshold is None else threshold
