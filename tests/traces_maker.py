"""Traces with a known truth, made from seeded word pools: quick to fit, and as hard as the test wants."""

import random
from pathlib import Path

from policies.traces import write_traces
from policies.types import Trace

_TOPICS = {
    "refund": "refund money back return reimburse charge reversed credit",
    "card_lost": "lost stolen card missing wallet block freeze replacement",
    "balance": "balance account how much funds available total statement",
    "transfer": "transfer send wire payee friend abroad bank pending",
    "password": "password login reset locked sign forgot username access",
    "delivery": "delivery parcel arrive tracking courier late shipped package",
    "loan": "loan interest rate borrow mortgage repay credit term",
    "complaint": "complaint manager unhappy terrible service rude waiting angry",
}
_FILLER = "please can you i my the a with for on to want need help hello today about it is was there some"

LABELS = sorted(_TOPICS)


def topic_words() -> dict[str, list[str]]:
    """The words that speak of each label."""
    return {label: words.split() for label, words in _TOPICS.items()}


def make_traces(n: int, *, seed: int = 0, noise: float = 0.0, blur: float = 0.25) -> list[Trace]:
    """`n` distinct traces. `noise`: share of labels drawn at random; `blur`: of words from another topic."""
    generator = random.Random(seed)
    made: dict[str, Trace] = {}
    while len(made) < n:
        label = generator.choice(LABELS)
        other = generator.choice(LABELS)
        words = [
            generator.choice(_TOPICS[other if generator.random() < blur else label].split()) for _ in range(3)
        ] + generator.choices(_FILLER.split(), k=generator.randint(2, 6))
        generator.shuffle(words)
        text = " ".join(words)
        said = generator.choice(LABELS) if generator.random() < noise else label
        made.setdefault(text, Trace(text, said, id=f"t{seed}-{len(made)}"))
    return list(made.values())


def make_open_traces(n: int, *, seed: int = 0) -> list[Trace]:
    """As `make_traces`, with names and numbers in every text that no other text has."""
    generator = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ix")]
    made = []
    for trace in make_traces(n, seed=seed, noise=0.02, blur=0.2):
        words = trace.input.split()
        for _ in range(generator.randint(1, 3)):
            name = "".join(generator.choices(syllables, k=3))
            words.insert(
                generator.randint(0, len(words)), name if generator.random() < 0.7 else str(generator.random())
            )
        made.append(Trace(" ".join(words), trace.teacher))
    return made


def write(path: Path, traces: list[Trace]) -> Path:
    """Write traces as JSONL and return the path."""
    write_traces(path, traces)
    return path
