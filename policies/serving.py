"""From a judged policy to what is served: one graph a stage and field, checked against the fitted models."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from policies.acceptor import Table, describe
from policies.artifact import FrontierEntry, HeadEntry, StageEntry
from policies.blocks import Features
from policies.candidates import Surrogate, fit_candidate, merge_models
from policies.export import Fitted, build_graph, check_graphs
from policies.forest import ForestModel
from policies.judging import Judged
from policies.learning import Learned
from policies.measuring import Stage, Task, early_threshold
from policies.policy import Policy
from policies.probes import MOST_PROBES, choose_probes, write_probes
from policies.reading import Reading, StageInput
from policies.settings import FitConfig
from policies.surrogates import Scores
from policies.traces import storable
from policies.types import Trace
from policies.word_table import to_file

# Rows on which a graph is compared with its models, evenly taken where there are more.
_MOST_CHECKED = 20_000
_ROUNDING = 1e-6
# Inputs among which probes are chosen, and how long they may be: they are read at every load.
_CANDIDATES = 512
_MOST_CHARS = 300
_MOST_NUMBERS = 8_192
# Of scores nearer to 1 than this float32 tells too few apart to serve a threshold among them.
_FINEST = 2e-5


def export_stages(learned: Learned, judged: Judged, config: FitConfig) -> list[tuple[StageEntry, dict[str, bytes]]]:
    """Each stage's entry for the manifest and its graphs by their roles.

    Raises ExportError where a stage's graphs decide differently from its models.
    """
    reading, task, ruling = learned.reading, learned.task, judged.ruling
    assert reading is not None  # noqa: S101 - only asked for where something was learned
    assert task is not None  # noqa: S101
    assert ruling is not None  # noqa: S101
    n_stages = len(reading.stages)
    # The pool may have nothing to answer where only protected labels were certified.
    thresholds = _by_stage(judged.thresholds.pool.threshold, n_stages)
    stricter = frontier_entries(judged, n_stages)
    rows = _some(np.flatnonzero(learned.readable), _MOST_CHECKED)
    found = []
    for number, (stage, fitted) in enumerate(zip(reading.stages, ruling.stages, strict=True)):
        limits = [thresholds[number], *(choice.threshold for choice in judged.thresholds.protected.values())]
        limits += [limit for row in stricter for limit in (row.thresholds[number], *row.protected.values())]
        heads = [_served(task, stage, fitted, config, field) for field in range(len(task.fields))]
        graphs = [build_graph(head) for head in heads]
        check_graphs(
            graphs,
            (reading.graph_input(row, stage) for row in rows),
            heads,
            [_expected(head.surrogate, stage.features.take(rows)) for head in heads],
            [limit for limit in limits if limit is not None],
        )
        roles = [_role(number, field) for field in range(len(heads))]
        table, vocabulary = stage.reader.table, stage.reader.vocabulary
        entry = StageEntry(
            heads=[HeadEntry(role, head.guard.threshold) for role, head in zip(roles, heads, strict=True)],
            threshold=thresholds[number],
            tokens=table is not None,
            words=stage.reader.static,
            n_lexical_tokens=len(table.vectors) if table is not None and vocabulary is not None else None,
            encoded=stage.encoded,
        )
        found.append((entry, dict(zip(roles, graphs, strict=True))))
    return found


def shared_files(reading: Reading) -> dict[str, bytes]:
    """What a policy folder keeps beside its versions, by role: the table of word vectors and the encoder's files."""
    words, encoder = reading.words, reading.encoder
    found = {} if words is None else to_file(words)
    if encoder is not None:
        found |= {f"encoder/{name}": content for name, content in encoder.files().items()}
    return found


def probes_file(policy: Policy, traces: list[Trace], learned: Learned) -> bytes:
    """probes.json: what `policy`, as exported, says of a few of the `traces` that it was `learned` from, as they came.

    Empty where the user's embeddings have more than 8,192 dimensions, so that one alone would be a large file.
    """
    reading = learned.reading
    assert reading is not None  # noqa: S101 - only asked for where something was learned
    rows = np.flatnonzero(learned.readable)
    if reading.embeddings is not None:
        vectors = reading.embeddings
        tried = _some(rows, _CANDIDATES).tolist()
        examined = [policy.examine(vectors[row]) for row in tried]
        chosen = choose_probes(examined, min(MOST_PROBES, _MOST_NUMBERS // vectors.shape[1]))
        inputs: list[str | list[float]] = [[float(x) for x in vectors[row]] for row in tried]
    else:
        tried = _some(np.array(_short(traces, rows.tolist()), np.int64), _CANDIDATES).tolist()
        known = reading.vectors
        examined = [policy.examine(traces[row].input, None if known is None else known[row]) for row in tried]
        chosen = choose_probes(examined)
        inputs = [traces[row].input for row in tried]
    pairs = [(examined[i], inputs[i]) for i in chosen]
    return write_probes([found.probe(item) for found, item in pairs if found is not None])


def _short(traces: list[Trace], rows: list[int]) -> list[int]:
    """Of rows whose text can be stored as it is the short ones, each text once; the shortest few where all are long."""
    once = {traces[row].input: row for row in reversed(rows) if storable(traces[row].input) == traces[row].input}
    short = [row for text, row in once.items() if len(text) <= _MOST_CHARS]
    if len(short) >= MOST_PROBES:
        return sorted(short)
    return sorted(sorted(once.values(), key=lambda row: len(traces[row].input))[:_CANDIDATES])


def combinations(learned: Learned, judged: Judged) -> list[list[int]]:
    """Each label's class in each head, nothing for a label that cannot be said; empty where one head says the label."""
    if learned.task is None or learned.task.parts is None or judged.ruling is None:
        return []
    rows = zip(learned.task.parts.classes.tolist(), judged.ruling.known.tolist(), strict=True)
    return [row if known else [] for row, known in rows]


def _role(stage: int, field: int) -> str:
    role = "model" if stage == 0 else f"model_{stage + 1}"
    return role if field == 0 else f"{role}_field_{field + 1}"


def _served(task: Task, stage: StageInput, fitted: Stage, config: FitConfig, field: int) -> Fitted:
    head = fitted.heads[field]
    surrogate = merge_models(head.models) if config.mode == "strict" else _refit(task, stage, field)
    return Fitted(stage.reader, surrogate, head.acceptor, head.guard)


def _expected(surrogate: Surrogate, features: Features) -> tuple[Table, NDArray[np.float32]]:
    """The model's table of some rows, and its logit gaps."""
    scores = surrogate.scores(features)
    return describe(scores), _gaps(scores, surrogate, features)


def frontier_entries(judged: Judged, n_stages: int) -> list[FrontierEntry]:
    """What of the frontier is true of the graphs that are served: rows of the measurement that they come from, with
    thresholds that the graphs can tell from 1."""
    entries = []
    for row in judged.frontier:
        if not row["certified"] or row["ruling"] != judged.certificate.ruling:
            continue
        stages = _by_stage(row["threshold"], n_stages)
        if any(threshold is not None and threshold > 1 - _FINEST for threshold in stages):
            stages = [None] * n_stages
        protected = {
            label: None if limit is None or limit > 1 - _FINEST else limit for label, limit in row["protected"].items()
        }
        if any(limit is not None for limit in (*stages, *protected.values())):
            entries.append(FrontierEntry(row["target"], stages, protected))
    return entries


def _by_stage(threshold: float | None, n_stages: int) -> list[float | None]:
    """The accept score each stage must reach where the last one must reach `threshold`."""
    early = None if threshold is None else early_threshold(threshold)
    return [early] * (n_stages - 1) + [threshold]


def _refit(task: Task, stage: StageInput, field: int) -> Surrogate:
    truth, n_classes = task.fields.truth[:, field], task.fields.sizes[field]
    rows = np.flatnonzero(truth >= 0)
    return fit_candidate(task.candidate, stage.features.take(rows), truth[rows], n_classes, task.seed, task.neighbours)


def _gaps(scores: Scores, surrogate: Surrogate, features: Features) -> NDArray[np.float32]:
    """Distance from the highest logit to the next, (n,); 0 where a rounding error alone would change the logits.

    Only trees can do that: a row may lie on the border between two leaves.
    """
    two = np.partition(scores.logits, -2, axis=1)
    gaps = two[:, -1] - two[:, -2]
    if isinstance(surrogate, ForestModel):
        for factor in (1 - _ROUNDING, 1 + _ROUNDING):
            moved = surrogate.scores(replace(features, dense=features.dense * np.float32(factor))).logits
            gaps = np.where(np.abs(moved - scores.logits).max(axis=1) > 0, np.float32(0), gaps)
    return np.asarray(gaps, np.float32)


def _some(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
