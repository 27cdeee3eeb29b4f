"""Measuring: scores of traces by models that have not seen them, in one of three ways.

`iid` holds out random folds, `grouped` folds that keep near-duplicates together, `newest` the newest traces. Each way
gives a whole policy of its own: models, acceptors, guards and the scores on which its threshold is chosen belong
together, and what is served is what was measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import joblib
import numpy as np
from numpy.typing import NDArray

from policies.acceptor import Acceptor, Table, describe, fit_acceptor
from policies.blocks import Features, chunks
from policies.candidates import Surrogate, fit_candidate, merge_models
from policies.fields import Fields, jointly
from policies.folds import FOLDS, balanced_folds, random_folds
from policies.guard import Guard, fit_guard
from policies.reading import StageInput
from policies.surrogates import Labels

Groups = NDArray[np.int64]
Folds = NDArray[np.int64]

# Early stages of a cascade answer only what they are this much surer of than the last stage must be: a call is answered
# early at 1 - STRICTNESS * (1 - threshold). Fixed before any label is seen, so the gate can walk one path.
STRICTNESS = 0.4
# With many rows few folds are enough evidence, and each costs a fit: (rows, folds that are held out in turn).
_HELD_OUT = ((50_000, FOLDS), (200_000, 3))
_NEWEST_SHARE = 0.2
# Below this many rows starting worker processes costs more than it saves.
_PARALLEL_FROM = 4_000


@dataclass(frozen=True)
class Head:
    """One field of the answer in one stage; `table` belongs to the measurement's rows."""

    models: list[Surrogate]
    acceptor: Acceptor
    guard: Guard
    table: Table

    def scores_of(self, table: Table) -> NDArray[np.float64]:
        """Accept scores of other rows, -inf outside the guard."""
        inside = self.guard.values(table) >= self.guard.threshold
        return np.where(inside, self.acceptor.accept_scores(table), -np.inf)


@dataclass(frozen=True)
class Stage:
    """One fitted stage of a measurement, a head for each field. Row-wise arrays belong to the measurement's rows.

    `predicted` is the label that all heads make together, `fields.UNSAID` where they make none; `accept_scores` are
    cross-fitted, -inf outside the guard of any head.
    """

    heads: tuple[Head, ...]
    predicted: Labels
    accept_scores: NDArray[np.float64]

    def scores_of(self, other: "Stage") -> NDArray[np.float64]:
        """Accept scores of another measurement's rows by this stage's acceptors and guards."""
        pairs = zip(self.heads, other.heads, strict=True)
        return jointly([own.scores_of(head.table) for own, head in pairs], other.predicted)


@dataclass(frozen=True)
class Measurement:
    """`rows` (m,): the traces that were scored, by models that have seen neither them nor their like; `readable` (m,):
    whether they hold anything to decide on; `known` (K,): the labels that what was learned may say."""

    name: str
    rows: NDArray[np.int64]
    readable: NDArray[np.bool_]
    stages: tuple[Stage, ...]
    known: NDArray[np.bool_]

    def decided(self, others: Sequence[NDArray[np.float64]] | None = None) -> "Decided":
        """What the stages say together, with their own accept scores or with others of the same rows."""
        given = [stage.accept_scores for stage in self.stages] if others is None else others
        scores = [np.where(self.readable, found, -np.inf) for found in given]
        last = self.stages[-1].predicted
        if len(self.stages) == 1:
            return Decided(scores[0], np.full(len(self.rows), -np.inf), last, last)
        early = lifted(scores[0])
        return Decided(np.maximum(early, scores[1]), early, self.stages[0].predicted, last)


@dataclass(frozen=True)
class Decided:
    """What a cascade does at any threshold t: handle the rows with `scores` >= t, and answer `early_label` where
    `early` >= t, else `last_label`. All (m,); `early` is -inf where there is one stage only."""

    scores: NDArray[np.float64]
    early: NDArray[np.float64]
    early_label: NDArray[np.int64]
    last_label: NDArray[np.int64]

    def labels(self, threshold: float) -> NDArray[np.int64]:
        """The answers where the last stage must reach `threshold`, (m,)."""
        return np.where(self.early >= threshold, self.early_label, self.last_label)

    @property
    def entry_labels(self) -> NDArray[np.int64]:
        """The answer of the stage that handles a row first as the threshold falls, (m,)."""
        return np.where(self.early >= self.scores, self.early_label, self.last_label)

    def at(self, rows: NDArray[np.bool_]) -> "Decided":
        """Some of the rows."""
        return Decided(self.scores[rows], self.early[rows], self.early_label[rows], self.last_label[rows])


def lifted(accept_scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of an early stage on the scale of the last one's threshold."""
    return 1 - (1 - accept_scores) / STRICTNESS


def early_threshold(threshold: float) -> float:
    """The accept score an early stage must reach where the last stage must reach `threshold`."""
    return 1 - STRICTNESS * (1 - threshold)


@dataclass(frozen=True)
class Task:
    """What is to be learned: `truth` (n,) label indices, -1 for rows that are scored but not learned from; `groups`
    (n,) numbers equal inputs; `order` (n,) rows by age, oldest first; `neighbours`: whether the acceptor asks them;
    `parts`: the fields of the answer where it has several."""

    stages: tuple[StageInput, ...]
    truth: Labels
    n_labels: int
    groups: Groups
    order: NDArray[np.int64]
    readable: NDArray[np.bool_]
    candidate: str
    guard_budget: float
    seed: int
    jobs: int
    neighbours: bool = False
    parts: Fields | None = None

    @property
    def fields(self) -> Fields:
        """What is to be predicted: the parts of the label, or the label itself."""
        return self.parts or Fields.whole(self.truth, self.n_labels)


def measure(
    task: Task, name: str, near: Groups, on_fit: Callable[[int], None], held: int | None = None
) -> Measurement | None:
    """One measurement by name; `near` (n,) numbers groups of near-duplicates. `on_fit` is called after each model.

    Of the folds the first `held` are held out in turn (None: as many as so many rows need). None where the traces do
    not come in enough groups to hold some out.
    """
    if name == "newest":
        return _measure_newest(task, on_fit)
    groups = near if name == "grouped" else task.groups
    if len(np.unique(groups[task.readable])) < FOLDS:
        return None
    make_folds = balanced_folds if name == "grouped" else random_folds
    folds = make_folds(groups, task.seed)
    held = held or held_out(len(folds))
    scored = np.flatnonzero(folds < held)
    stages = [_cross_fit(task, stage, folds, held, groups, on_fit) for stage in task.stages]
    return Measurement(name, scored, task.readable[scored], tuple(stages), task.fields.known(task.truth))


def _measure_newest(task: Task, on_fit: Callable[[int], None]) -> Measurement:
    """Learn from the older traces alone, acceptor and guard included; score the newest by that policy.

    Copies of an input stay on the older side: what was seen before is no evidence about what is new.
    """
    n_newer = max(1, int(len(task.order) * _NEWEST_SHARE))
    older, newer = task.order[:-n_newer], task.order[-n_newer:]
    newer = np.sort(newer[~np.isin(task.groups[newer], task.groups[older])])
    folds = np.full(len(task.truth), -1, np.int64)
    folds[older] = random_folds(task.groups[older], task.seed)
    held = held_out(len(older))
    known = task.fields.known(task.truth[older])
    stages = []
    for stage in task.stages:
        learned = _cross_fit(task, stage, folds, held, task.groups, on_fit)
        tables = (score(merge_models(head.models), stage.features, newer) for head in learned.heads)
        heads = tuple(replace(head, table=table) for head, table in zip(learned.heads, tables, strict=True))
        said = task.fields.labels_of(_classes(heads), known)
        scored = replace(learned, heads=heads, predicted=said)
        stages.append(replace(scored, accept_scores=learned.scores_of(scored)))
    return Measurement("newest", newer, task.readable[newer], tuple(stages), known)


def _cross_fit(
    task: Task, stage: StageInput, folds: Folds, held: int, groups: Groups, on_fit: Callable[[int], None]
) -> Stage:
    """One stage on the first `held` folds; rows of fold -1 take no part."""
    scored = np.flatnonzero((folds >= 0) & (folds < held))
    found = [_cross_fit_head(task, stage, field, folds, held, groups, on_fit) for field in range(len(task.fields))]
    heads = tuple(head for head, _ in found)
    classes, said = _classes(heads), np.zeros(len(scored), np.int64)
    for fold in range(held):
        # A combination that only the held-out rows have must not be known when they are asked.
        rows, learned = folds[scored] == fold, task.truth[(folds >= 0) & (folds != fold)]
        said[rows] = task.fields.labels_of(classes[rows], task.fields.known(learned))
    return Stage(heads, said, jointly([scores for _, scores in found], said))


def _classes(heads: Sequence[Head]) -> NDArray[np.int64]:
    """What each head says of each row, (m, H)."""
    return np.column_stack([head.table.predicted for head in heads])


def _cross_fit_head(
    task: Task,
    stage: StageInput,
    field: int,
    folds: Folds,
    held: int,
    groups: Groups,
    on_fit: Callable[[int], None],
) -> tuple[Head, NDArray[np.float64]]:
    """One field's head, and its cross-fitted accept scores, -inf outside its guard."""
    fields = task.fields
    truth, n_classes = fields.truth[:, field], fields.sizes[field]
    scored = np.flatnonzero((folds >= 0) & (folds < held))
    how = task.candidate, n_classes, task.seed, task.neighbours
    models, tables = _fit_folds((stage.features, truth, folds), held, how, task.jobs, on_fit)
    table = _in_order(tables, folds, held)
    # What cannot be read is never handled, and tells nothing about what can.
    kept = np.flatnonzero(task.readable[scored])
    rows, seen = scored[kept], table.take(kept)
    acceptor, crossed = fit_acceptor(seen, seen.predicted == truth[rows], groups[rows], n_classes, task.seed)
    # All heads together may turn away no more than one would.
    guard = fit_guard(seen, task.guard_budget / len(fields))
    scores = np.full(len(scored), -np.inf)
    scores[kept] = np.where(guard.values(seen) >= guard.threshold, crossed, -np.inf)
    return Head(models, acceptor, guard, table), scores


def held_out(n: int) -> int:
    """How many of the folds are held out in turn."""
    return next((held for rows, held in _HELD_OUT if n <= rows), 1)


def n_models(task: Task) -> int:
    """Models that one measurement fits."""
    return held_out(len(task.truth)) * len(task.stages) * len(task.fields)


def score(model: Surrogate, features: Features, rows: NDArray[np.int64]) -> Table:
    """The acceptor's table of some rows, a few thousand at a time: (rows, labels) arrays never stand whole."""
    parts = [describe(model.scores(features.take(rows[part]))) for part in chunks(len(rows))]
    return _stack(parts)


def _fit_folds(
    what: tuple[Features, Labels, Folds],
    held: int,
    how: tuple[str, int, int, bool],
    jobs: int,
    on_fit: Callable[[int], None],
) -> tuple[list[Surrogate], list[Table]]:
    calls = [joblib.delayed(_fit_fold)(*what, fold, how) for fold in range(held)]
    models, tables = [], []
    if int((what[2] >= 0).sum()) < _PARALLEL_FROM or jobs == 1:
        found = (call[0](*call[1]) for call in calls)
    else:
        # Not as a generator: ray's backend knows lists only.
        found = joblib.Parallel()(calls)
    for model, table in found:
        models.append(model)
        tables.append(table)
        on_fit(1)
    return models, tables


def _fit_fold(
    features: Features, truth: Labels, folds: Folds, fold: int, how: tuple[str, int, int, bool]
) -> tuple[Surrogate, Table]:
    candidate, n_labels, seed, neighbours = how
    learn = np.flatnonzero((folds != fold) & (folds >= 0) & (truth >= 0))
    model = fit_candidate(candidate, features.take(learn), truth[learn], n_labels, seed + fold, neighbours)
    return model, score(model, features, np.flatnonzero(folds == fold))


def _in_order(tables: Sequence[Table], folds: Folds, held: int) -> Table:
    """The folds' tables as one, in the order of the traces."""
    rows = np.concatenate([np.flatnonzero(folds == fold) for fold in range(held)])
    return _stack(tables).take(np.argsort(rows, kind="stable"))


def _stack(tables: Sequence[Table]) -> Table:
    if len(tables) == 1:
        return tables[0]
    columns = np.concatenate([table.columns for table in tables])
    return replace(tables[0], columns=columns, predicted=np.concatenate([table.predicted for table in tables]))
