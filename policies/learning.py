"""Learning: everything of a fit that looks at labels before the gate does.

Turns traces into features, scores every trace by a surrogate that did not see it, and fits acceptor and guard on those
out-of-fold scores.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.acceptor import fit_acceptor
from policies.blocks import Features, Scaling, fit_scaling, fit_vocabulary, given_features, text_features
from policies.errors import FitError
from policies.export import Fitted, TextReader
from policies.features import MAX_CHARS, TextEncoder, text_inputs
from policies.guard import fit_guard
from policies.settings import FeatureSpec, FitConfig
from policies.static_table import load_static_table
from policies.surrogates import FOLDS, Scores, average, cross_validate, fit_softmax, random_folds
from policies.types import FAIR_REASONS, Trace

# A label must be seen this often to be learned: seen once, no fold can both learn it and be asked for it.
_FEWEST_OF_A_LABEL = 2
_FEWEST_TRACES = 20
_MOST_LABELS = 5_000


@dataclass(frozen=True)
class Learned:
    """A fit before the gate.

    `fitted` is None, with `problem` saying why, where there was nothing to learn. Row-wise arrays have shape (n,):
    `truth` (index of the teacher's label, -1 where the surrogate cannot say it), `predicted`, `accept_scores` (-inf
    where the policy would defer whatever the threshold), `judged` (rows that may enter the certificate), `groups`
    (number of the input: equal inputs, but for case and white space, have the same), `readable` (rows with features).
    """

    fitted: Fitted | None
    problem: str | None
    labels: list[str]
    identity: dict[str, object]
    tokenizer_json: bytes | None
    features: Features | None
    ids: list[list[int]] | None
    embeddings: NDArray[np.float32] | None
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    accept_scores: NDArray[np.float64]
    judged: NDArray[np.bool_]
    groups: NDArray[np.int64]
    readable: NDArray[np.bool_]
    teacher_counts: Counter[str]

    def graph_inputs(self) -> Sequence[Mapping[str, NDArray[Any]]]:
        """What the served graph is fed for every readable trace."""
        rows = np.flatnonzero(self.readable)
        if self.ids is None:
            assert self.embeddings is not None  # noqa: S101 - one of the two is always there
            return [{"embedding": self.embeddings[i]} for i in rows]
        n_lexical_tokens = int(str(self.identity["n_tokens"])) if self.identity["n_lexical"] else None
        return [text_inputs(self.ids[i], n_lexical_tokens) for i in rows]

    def served_scores(self) -> Scores:
        """The served surrogate's own scores of every readable trace."""
        assert self.fitted is not None  # noqa: S101 - only asked for where something was fitted
        assert self.features is not None  # noqa: S101
        return self.fitted.surrogate.scores(self.features.take(np.flatnonzero(self.readable)))


def learn(
    traces: list[Trace],
    config: FitConfig,
    embeddings: NDArray[np.float32] | None,
    progress: Callable[[str, float], None],
) -> Learned:
    """Learn surrogate, acceptor and guard from traces; `embeddings` (n, d) replaces the features of the texts."""
    counts = Counter(trace.teacher for trace in traces)
    labels = sorted(label for label, count in counts.items() if count >= _FEWEST_OF_A_LABEL)
    index = {label: i for i, label in enumerate(labels)}
    truth = np.array([index.get(trace.teacher, -1) for trace in traces], np.int64)
    spec = "given" if embeddings is not None else config.features
    problem = _problem(len(traces), labels, counts)
    if problem is not None:
        return _nothing(traces, problem, labels, spec)
    progress("features", 0.0)
    read = (
        _read_given(embeddings) if embeddings is not None else _read_texts(traces, FeatureSpec.parse(config.features))
    )
    learnable = np.where(read.readable, truth, -1)
    if int((learnable >= 0).sum()) < _FEWEST_TRACES:
        return _nothing(traces, "too few traces hold text that can be read", labels, spec)
    groups = _groups(traces, embeddings)
    folds = random_folds(groups, config.seed)
    scores, models = cross_validate(
        read.features, learnable, len(labels), folds, lambda fold: progress("surrogate", 0.1 + 0.6 * (fold + 1) / FOLDS)
    )
    predicted = scores.logits.argmax(axis=1)
    rows = np.flatnonzero(read.readable)
    progress("acceptor", 0.75)
    acceptor, crossed = fit_acceptor(_at(scores, rows), (predicted == truth)[rows], groups[rows], config.seed)
    guard = fit_guard(_at(scores, rows), config.guard_budget)
    accept_scores = np.full(len(traces), -np.inf)
    accept_scores[rows] = np.where(guard.values(_at(scores, rows)) >= guard.threshold, crossed, -np.inf)
    if config.mode == "strict":
        surrogate = average(models)
    else:
        known = np.flatnonzero(learnable >= 0)
        surrogate = fit_softmax(read.features.take(known), learnable[known], len(labels), seed=config.seed)
    return Learned(
        fitted=Fitted(read.reader, surrogate, acceptor, guard),
        problem=None,
        labels=labels,
        identity={"spec": spec, **read.identity},
        tokenizer_json=read.reader.table.tokenizer_json if isinstance(read.reader, TextReader) else None,
        features=read.features,
        ids=read.ids,
        embeddings=embeddings,
        truth=truth,
        predicted=predicted,
        accept_scores=accept_scores,
        judged=_judged(traces),
        groups=groups,
        readable=read.readable,
        teacher_counts=counts,
    )


def _problem(n: int, labels: list[str], counts: Counter[str]) -> str | None:
    if n < _FEWEST_TRACES:
        return f"{n} traces are too few to learn from: at least {_FEWEST_TRACES}"
    if len(counts) == 1:
        return "every trace has the same label: there is nothing to decide"
    if len(labels) < 2:
        return f"fewer than two labels were seen {_FEWEST_OF_A_LABEL} times or more"
    if len(labels) > _MOST_LABELS or len(counts) >= n / 2:
        return f"{len(counts)} different labels in {n} traces: this does not look like a decision among fixed labels"
    return None


def _nothing(traces: list[Trace], problem: str, labels: list[str], spec: str) -> Learned:
    n = len(traces)
    return Learned(
        fitted=None,
        problem=problem,
        labels=labels,
        identity={"spec": spec},
        tokenizer_json=None,
        features=None,
        ids=None,
        embeddings=None,
        truth=np.full(n, -1),
        predicted=np.full(n, -1),
        accept_scores=np.full(n, -np.inf),
        judged=_judged(traces),
        groups=_groups(traces, None),
        readable=np.zeros(n, np.bool_),
        teacher_counts=Counter(trace.teacher for trace in traces),
    )


def _groups(traces: list[Trace], embeddings: NDArray[np.float32] | None) -> NDArray[np.int64]:
    numbers: dict[object, int] = {}
    if embeddings is not None:
        keys: list[object] = [row.tobytes() for row in embeddings]
    else:
        keys = [" ".join(trace.input.casefold().split()) for trace in traces]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _judged(traces: list[Trace]) -> NDArray[np.bool_]:
    """Rows that count for the certificate: those drawn as live calls are drawn.

    Not a weighted row, and not one that was recorded because a policy in service deferred it: such rows are hard ones.
    """
    fair = [trace.weight == 1.0 and (trace.reason is None or trace.reason in FAIR_REASONS) for trace in traces]
    return np.array(fair, np.bool_)


@dataclass(frozen=True)
class _Read:
    reader: TextReader | Scaling
    features: Features
    ids: list[list[int]] | None
    readable: NDArray[np.bool_]
    identity: dict[str, object]


def _read_texts(traces: list[Trace], spec: FeatureSpec) -> _Read:
    table = load_static_table(spec.static_folder)
    try:
        encoder = TextEncoder(table.tokenizer_json)
    except ValueError as error:
        raise FitError(f"static table {table.name}: {error}") from error
    short = [trace.input if len(trace.input) <= MAX_CHARS else "" for trace in traces]
    ids = encoder.encode_many(short)
    if max((max(row) for row in ids if row), default=0) >= len(table.vectors):
        raise FitError(f"static table {table.name}: its tokenizer gives ids beyond its {len(table.vectors)} rows")
    vocabulary = fit_vocabulary(ids, len(table.vectors)) if spec.lexical else None
    features = text_features(ids, table, vocabulary)
    identity: dict[str, object] = {
        "n_tokens": len(table.vectors),
        "n_lexical": 0 if vocabulary is None else vocabulary.size,
        "static_table": table.name,
        "static_table_sha256": table.sha256,
        "tokenizer_sha256": hashlib.sha256(table.tokenizer_json).hexdigest(),
    }
    readable = np.array([len(row) > 0 for row in ids], np.bool_)
    return _Read(TextReader(table, vocabulary), features, ids, readable, identity)


def _read_given(embeddings: NDArray[np.float32]) -> _Read:
    scaling = fit_scaling(embeddings)
    readable = np.ones(len(embeddings), np.bool_)
    return _Read(scaling, given_features(embeddings, scaling), None, readable, {"dimensions": embeddings.shape[1]})


def _at(scores: Scores, rows: NDArray[np.int64]) -> Scores:
    return Scores(tuple(part[rows] for part in scores.parts), scores.similarity[rows], scores.lengths[rows])
