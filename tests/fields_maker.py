"""Traces whose answers are objects of several independent fields, each told by words of its own, with a known truth."""

import random
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import orjson
from threadpoolctl import threadpool_limits

from policies.answers import AnswerForms
from policies.artifact import Manifest, write_version
from policies.features import MAX_CHARS, TextEncoder
from policies.judging import judge
from policies.learning import Learned, learn, silent
from policies.policy import Policy
from policies.serving import combinations, export_stages, frontier_entries, probes_file, shared_files
from policies.settings import FitConfig
from policies.types import Trace

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ix")]
_WORDS_A_CLASS = 12
_FILLER = "please can you i my the a with for on to want need help hello today about it is was there some"

Sizes = Mapping[str, int]


def heads_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Each label's class in each field, for every combination there is."""
    return {_label(sizes, row): row for row in product(*(range(size) for size in sizes.values()))}


def make_objects(n: int, sizes: Sizes, *, seed: int = 0, blur: float = 0.1, noise: float = 0.02) -> list[Trace]:
    """`n` distinct traces. `blur`: share of words from another class of the field; `noise`: share of each field's
    values that the teacher gives at random."""
    generator = random.Random(seed)
    words = _words(sizes)
    made: dict[str, Trace] = {}
    while len(made) < n:
        row = [generator.randrange(size) for size in sizes.values()]
        said = [
            generator.randrange(size) if generator.random() < noise else own
            for own, size in zip(row, sizes.values(), strict=True)
        ]
        spoken = [_spoken(generator, pool, own, blur) for own, pool in zip(row, words, strict=True)]
        text = [word for part in spoken for word in part] + generator.choices(
            _FILLER.split(), k=generator.randint(2, 5)
        )
        generator.shuffle(text)
        found = " ".join(text)
        made.setdefault(found, Trace(found, _label(sizes, said), id=f"o{seed}-{len(made)}"))
    return list(made.values())


def _words(sizes: Sizes) -> list[list[list[str]]]:
    """Words of each class of each field: the same for every seed, and no word twice."""
    generator = random.Random(17)
    made: dict[str, None] = {}
    while len(made) < sum(sizes.values()) * _WORDS_A_CLASS:
        made["".join(generator.choices(_SYLLABLES, k=3))] = None
    pool = iter(made)
    return [[[next(pool) for _ in range(_WORDS_A_CLASS)] for _ in range(size)] for size in sizes.values()]


def _spoken(generator: random.Random, pool: list[list[str]], own: int, blur: float) -> list[str]:
    return [
        generator.choice(pool[generator.randrange(len(pool)) if generator.random() < blur else own]) for _ in range(3)
    ]


def _label(sizes: Sizes, row: Sequence[int]) -> str:
    return orjson.dumps({name: f"{name}_{value}" for name, value in zip(sizes, row, strict=True)}).decode()


def fit_fields(traces: list[Trace], heads: Mapping[str, tuple[int, ...]], config: FitConfig, folder: Path) -> Learned:
    """Fit with these heads and write the policy; returns what was learned."""
    with threadpool_limits(1):
        learned = learn(traces, config, config.features, None, silent, heads=heads)
        judged = judge(learned, config)
        refused = judged.certificate.refused
        stages = [] if refused else export_stages(learned, judged, config)
    manifest = Manifest(
        version="test",
        created="",
        features={},
        input_kind="text",
        embedding_dim=None,
        labels=learned.labels,
        threshold=stages[-1][0].threshold if stages else None,
        stages=[entry for entry, _ in stages],
        protected={} if refused else judged.thresholds.named(learned.labels),
        frontier=[] if refused else frontier_entries(judged, len(stages)),
        combinations=[] if refused else combinations(learned, judged),
        max_chars=MAX_CHARS,
        n_traces=len(traces),
        n_labels=len(learned.labels),
        settings={},
        certificate=judged.certificate,
        files={},
        answers=AnswerForms.learn([trace.answer for trace in traces]).only(learned.labels),
    )
    graphs = {role: graph for _, found in stages for role, graph in found.items()}
    contents = {role: (f"{role}.onnx", graph) for role, graph in graphs.items()}
    reading = learned.reading
    assert reading is not None
    assert reading.tokenizer_json is not None
    contents["tokenizer"] = ("tokenizer.json", reading.tokenizer_json)
    if stages:
        policy = Policy(manifest, graphs, TextEncoder(reading.tokenizer_json), reading.encoder, reading.words)
        contents["probes"] = ("probes.json", probes_file(policy, traces, learned))
    write_version(folder, manifest, contents, shared_files(reading))
    return learned
