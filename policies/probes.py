"""Probes: what a policy said of a few of its own traces when it was exported, to be said again wherever it is loaded.

A certificate is about a whole: tokenizer, encoder, word vectors, graph and the programs that run them. Files are known
by their checksums; that a library reads them in another way, or that another model answers behind a URL, shows only in
what comes out.

Tolerances, measured on banking77 with MiniLM (int8): float32 sums in another order move an accept score by less than
1e-5, so what runs in the process may be off by `EXACT`. A vector of an encoder is less certain. Rounding to float16 or
bfloat16 moves scores by less than 0.0005, other fusions of the same int8 graph by up to 0.022, other activation scales
one in a hundred by 0.035; a policy that is wrongly stopped is lost until it is fitted again, and small changes are what
audits are for: those may be off by `ENCODED`. In 200 trials each, vectors at random at a cosine of 0.9988 to the right
ones were never noticed, at 0.995 in 0 % (behind cheap blocks) and 22 % (alone), at 0.98 in 4 % and 95 %, at 0.89 in
88 % and 100 %. The same model with a prefix before the text is noticed, and so is any other model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import orjson

from policies.conforming import misfit
from policies.types import LocalDecision

EXACT, ENCODED = 1e-3, 0.1
# Beside a move of the score by 1, in the same measurements: the gap between the two likeliest labels moves by 1, the
# guard's value by 4.
GAP_MOVES, GUARD_MOVES = 2, 5
MOST_PROBES = 16
_SHOWN = 60


@dataclass(frozen=True)
class Probe:
    """One input, and what was said of it.

    `tokens` are its token ids, None where none are read. `label` is the surrogate's answer whether `handled` or not,
    `score` the accept score, `limit` the one it had to reach (None: nothing would do). `tolerance`: how far the score
    may be off.
    """

    input: str | list[float]
    tokens: list[int] | None
    label: str | None
    score: float
    handled: bool
    limit: float | None
    tolerance: float


class Examined(NamedTuple):
    """A decision, and how it was come to.

    `slack` is how many tolerances the stages that looked at the input were from another way: another label, the other
    side of the guard, another stage. Of at least 1 it is no draw which way it goes.
    """

    decision: LocalDecision
    tokens: list[int] | None
    limit: float
    tolerance: float
    slack: float

    def probe(self, item: str | list[float]) -> Probe:
        """What is kept of it."""
        decision, limit = self.decision, None if self.limit == float("inf") else self.limit
        label, score, handled = decision.guess, decision.accept_score, decision.handled
        return Probe(item, self.tokens, label, score, handled, limit, self.tolerance)


def choose_probes(examined: Sequence[Examined | None], most: int = MOST_PROBES) -> list[int]:
    """Which inputs make good probes, up to `most`: decided clearly, some by each stage and some by none.

    Of each kind scores from the lowest to the highest, in even steps: high ones alone would hide a change, since they
    hardly move. None is an input of which nothing is said.
    """
    kinds: dict[int, list[int]] = {}
    for i, found in enumerate(examined):
        if found is not None and found.slack >= 1:
            kinds.setdefault(found.decision.stage, []).append(i)

    def score(i: int) -> float:
        found = examined[i]
        return 0.0 if found is None else found.decision.accept_score

    chosen: list[int] = []
    # The kind of which there is least goes first, and leaves its part to the others.
    for place, kind in enumerate(sorted(kinds.values(), key=len)):
        part = min(len(kind), (most - len(chosen)) // (len(kinds) - place))
        lowest, highest = min(map(score, kind)), max(map(score, kind))
        left = set(kind)
        for step in range(part):
            wanted = highest - (highest - lowest) * step / max(part - 1, 1)
            nearest = min(left, key=lambda i: (abs(score(i) - wanted), i))
            left.discard(nearest)
            chosen.append(nearest)
    return sorted(chosen)


def write_probes(probes: Sequence[Probe]) -> bytes:
    """The probes as probes.json holds them."""
    return b"[" + b",\n".join(orjson.dumps(asdict(probe)) for probe in probes) + b"]\n"


def read_probes(content: bytes, *, of_texts: bool) -> tuple[Probe, ...]:
    """The probes that `write_probes` wrote, all of texts or all of embeddings. Raises ValueError for something else."""
    entries = orjson.loads(content)
    if not isinstance(entries, list):
        raise ValueError("not a list of probes")
    try:
        probes = tuple(Probe(**entry) for entry in entries)
    except TypeError as error:
        raise ValueError(f"not probes ({error})") from error
    problem = misfit(list(probes), list[Probe], "probes")
    if problem is None and any(isinstance(probe.input, str) != of_texts or not probe.input for probe in probes):
        problem = "probes: inputs of another kind than the policy reads"
    if problem is not None:
        raise ValueError(problem)
    return probes


def difference(probe: Probe, tokens: list[int] | None, decision: LocalDecision) -> str | None:
    """What differs now, in words; None where nothing does.

    On which side of its limit a score lies is left open where it lies within the tolerance of it.
    """
    if tokens != probe.tokens:
        change = "the tokenizer reads it in another way"
    elif decision.guess != probe.label:
        change = f"it says {decision.guess!r}, and said {probe.label!r}"
    elif abs(decision.accept_score - probe.score) > probe.tolerance:
        change = f"its accept score is {decision.accept_score:.4f}, and was {probe.score:.4f}"
    elif decision.handled != probe.handled and not _open(probe):
        change = "it is answered, and was not" if decision.handled else f"it is {decision.reason}, and was answered"
    else:
        return None
    shown = repr(probe.input) if isinstance(probe.input, str) else f"an embedding ({probe.input[0]:g}, ...)"
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return f"of {shown} {change}"


def _open(probe: Probe) -> bool:
    return probe.limit is not None and abs(probe.score - probe.limit) <= probe.tolerance
