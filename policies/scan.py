"""Scan: what a trace file promises before anything is fitted, in seconds.

A seeded sample is measured once, on random folds, by the same learner and the same gate that `fit` uses. What comes out
is an estimate: it chooses nothing, writes nothing, and only a fit certifies.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from policies.artifact import Certificate
from policies.diagnostics import Ceiling, contradicted_inputs, teacher_ceiling
from policies.errors import FitError
from policies.features import MAX_CHARS
from policies.folds import FOLDS
from policies.forms import Forms
from policies.judging import judge
from policies.learning import Learned, Progress, obstacle, prepare, silent
from policies.measuring import Measurement, measure
from policies.settings import FitConfig
from policies.traces import TraceFile
from policies.types import AnswerKind, Trace

Groups = NDArray[np.int64]

SCAN_TARGETS = (0.80, 0.90, 0.95, 0.97, 0.99)
FEWEST_TO_ESTIMATE = 200
RARE = 10

# One fold costs about rows x characters x (labels + a constant), and this much of it takes some three seconds. It goes
# into more rows first and more folds then: what a copy can learn depends on the rows it learns from, while few held-out
# rows merely widen the bound.
_WORK = 400_000_000
_LABELS_AT_LEAST = 20
_ROWS = (500, 15_000)
_ROWS_A_LABEL = 2
_CHARACTERS = 5_000_000
# A file that is hardly larger than its sample is taken whole.
_WHOLE = 1.1
_FEWEST_JUDGED = 500
_MEASURED = 1_000
_FOCUS = 0.95
_SHOWN = 5
_DAYS_A_MONTH = 30


@dataclass(frozen=True)
class Price:
    """`per_1000_calls` US dollars, `calls_per_day`; None where not known. FitError where negative or no number."""

    per_1000_calls: float | None = None
    calls_per_day: float | None = None

    def __post_init__(self) -> None:
        """Validate both."""
        for name, value in (("price", self.per_1000_calls), ("calls per day", self.calls_per_day)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise FitError(f"{name} must be a number that is not negative, got {value}")


@dataclass(frozen=True)
class TargetEstimate:
    """What a fit for `target` would probably give.

    `possible` is False where the sample proves no threshold: then coverage is 0, `reason` says why and `traces_needed`
    is about how many different inputs more than the file holds might do (0: the file may hold enough; None: more of
    the same would not). `saved_*` are US dollars, None where price or volume is not known.
    """

    target: float
    possible: bool
    coverage: float
    agreement: float | None
    reason: str | None
    traces_needed: int | None
    handled_per_day: float | None
    saved_per_1000_calls: float | None
    saved_per_day: float | None
    saved_per_month: float | None


@dataclass(frozen=True)
class Confusion:
    """Two labels taken for each other `count` times in the sample; `example` is an input the teacher called `said`."""

    labels: tuple[str, str]
    count: int
    example: str
    said: str


@dataclass(frozen=True)
class HardLabel:
    """A label in the sample: its traces, how often surrogate and teacher agree on them, and the share of them that
    would be handled at the focus target (None where there is none)."""

    label: str
    traces: int
    agreement: float
    handled_share: float | None


@dataclass(frozen=True)
class Contents:
    """What the file holds, counted over all of it.

    `different_inputs` but for case and white space; `contradicted` of them have more than one label; `ceiling` is what
    repeats say about the teacher's agreement with itself. `first`, `last`: seconds since the epoch, where every trace
    has a time. `labels` are the teacher's, by the names a fit gives them, most frequent first.
    """

    traces: int
    skipped: int
    duplicate_ids: int
    different_inputs: int
    contradicted: int
    ceiling: Ceiling | None
    too_long: int
    first: float | None
    last: float | None
    labels: tuple[tuple[str, int], ...]

    @property
    def seen_once(self) -> int:
        """Labels with one trace: they cannot be learned."""
        return sum(count == 1 for _, count in self.labels)

    @property
    def rare(self) -> tuple[int, float]:
        """(labels with fewer than ten traces, the share of traces that have them)."""
        counts = [count for _, count in self.labels if count < RARE]
        return len(counts), sum(counts) / self.traces


@dataclass(frozen=True)
class Estimate:
    """What the sample says: `sample` traces were learned from, `judged` of them scored by a model that had not.

    All else is about the latter. `agreement`: share of them on which surrogate and teacher agree, nothing deferred.

    `effective`: how many traces unlike each other would say as much. `near_share` of the sample has a near-duplicate;
    `agreement_near` and `agreement_alone` are the agreement with and without one (None where there are none). `focus`:
    the target that `hard_labels` look at. `disagreements` counts traces of learned labels, `unreadable` those without
    text, `outside_guard` the share deferred for being unlike the rest.
    """

    sample: int
    judged: int
    agreement: float
    effective: float | None
    targets: tuple[TargetEstimate, ...]
    focus: float | None
    disagreements: int
    confusions: tuple[Confusion, ...]
    hard_labels: tuple[HardLabel, ...]
    outside_guard: float
    unreadable: int
    near_share: float
    agreement_near: float | None
    agreement_alone: float | None


@dataclass(frozen=True)
class Scan:
    """`estimate` is None where the scan refuses to give one; `reason` then says why. `notes` say what a fit takes for
    one label, and which part of the inputs it reads."""

    contents: Contents
    estimate: Estimate | None
    reason: str | None
    price: Price
    seed: int
    seconds: float
    notes: tuple[str, ...] = ()


def scan(
    found: TraceFile, price: Price | None = None, seed: int = 0, progress: Progress = silent, merge_labels: bool = True
) -> Scan:
    """Look at traces and estimate what a fit with default features would cover at each of `SCAN_TARGETS`.

    Without `merge_labels`, every spelling of an answer is a label of its own, as in a fit. A file that nothing can be
    learned from, or of fewer than 200 traces, gives no estimate and a reason. Raises FitError where seed or static
    table are unusable.
    """
    started = time.perf_counter()
    if seed < 0:
        raise FitError(f"seed must not be negative, got {seed}")
    price = price or Price()
    progress("counting", 0.0)
    forms = Forms.learn(found.traces, merge_labels)
    found = replace(found, traces=forms.traces)
    # As in a fit: what is empty was not read, and is not known to be the same.
    groups = _numbered(" ".join(trace.input.casefold().split()) or f"\n{row}" for row, trace in enumerate(found.traces))
    contents = _contents(found, groups)
    reason, estimate = _obstacle(contents), None
    if reason is None:
        rows, held = _sample(found.traces, len(contents.labels), seed)
        # One core: the matrices are small, and starting processes takes longer than the work.
        with threadpool_limits(1):
            learned = _learn([found.traces[row] for row in rows], held, seed, progress)
        reason = learned.problem
        if reason is None:
            progress("gate", 0.95)
            estimate = _estimate(learned, [found.traces[row].input for row in rows], contents, price, seed)
    notes = tuple(forms.notes(FitConfig()))
    return Scan(contents, estimate, reason, price, seed, time.perf_counter() - started, notes)


def _numbered(keys: Iterable[str]) -> Groups:
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64)


def _contents(found: TraceFile, groups: Groups) -> Contents:
    traces = found.traces
    repeated = np.bincount(groups)[groups] > 1
    labelled = [trace.kind is not AnswerKind.OTHER for trace in traces]
    # Negative: unlike any other.
    labels = np.where(labelled, _numbered(trace.teacher for trace in traces), -1)[repeated]
    inputs = groups[repeated]
    times = [trace.ts for trace in traces if trace.ts is not None]
    timed = len(times) == len(traces)
    return Contents(
        traces=len(traces),
        skipped=found.skipped,
        duplicate_ids=found.duplicates,
        different_inputs=int(groups.max()) + 1,
        contradicted=contradicted_inputs(inputs, labels),
        ceiling=teacher_ceiling(inputs, labels),
        too_long=sum(len(trace.input) > MAX_CHARS for trace in traces),
        first=min(times) if timed else None,
        last=max(times) if timed else None,
        labels=tuple(Counter(t.teacher for t, named in zip(traces, labelled, strict=True) if named).most_common()),
    )


def _obstacle(contents: Contents) -> str | None:
    """Why there is no estimate, as far as counting tells."""
    if contents.traces < FEWEST_TO_ESTIMATE:
        seen = f"{contents.traces} traces are too few to promise anything"
        return f"{seen}: at least {FEWEST_TO_ESTIMATE} are needed for an estimate"
    if contents.different_inputs == 1:
        return "all inputs are the same: there is nothing to learn from"
    learnable = sorted(label for label, count in contents.labels if count > 1)
    return obstacle(contents.traces, learnable, Counter(dict(contents.labels)))


def _sample(traces: list[Trace], n_labels: int, seed: int) -> tuple[Groups, int]:
    """Rows to learn from, in the order of the file, and how many of the folds to hold out in turn."""
    order = np.random.default_rng(seed).permutation(len(traces))
    length = float(np.mean([min(len(traces[row].input), MAX_CHARS) for row in order[:_MEASURED]]))
    cost = length * (n_labels + _LABELS_AT_LEAST)
    fewest = min(max(_ROWS[0], _ROWS_A_LABEL * n_labels), _ROWS[1])
    most = int(max(min(_WORK / cost, _CHARACTERS / length, _ROWS[1]), fewest))
    rows = order if len(order) <= most * _WHOLE else order[:most]
    held = max(int(_WORK / (len(rows) * cost)), -(-FOLDS * _FEWEST_JUDGED // len(rows)))
    return np.sort(rows), min(max(held, 1), FOLDS)


def _learn(traces: list[Trace], held: int, seed: int, progress: Progress) -> Learned:
    """One measurement of the sample, on `held` of its random folds."""
    config = FitConfig(seed=seed, jobs=1)
    learned = prepare(traces, config, config.features, None, progress)
    if learned.task is None:
        return learned
    fair = len(np.unique(learned.groups[learned.readable & learned.judged]))
    if fair < FEWEST_TO_ESTIMATE:
        return replace(
            learned,
            problem=f"{fair} different inputs that can be read and are a fair sample are too few to promise anything: "
            f"at least {FEWEST_TO_ESTIMATE} are needed for an estimate",
        )
    fitted = 0

    def on_fit(models: int) -> None:
        nonlocal fitted
        fitted += models
        progress("surrogate", 0.3 + 0.6 * fitted / held)

    measurement = measure(learned.task, "iid", learned.near, on_fit, held)
    assert measurement is not None  # noqa: S101 - there are 200 different inputs and more
    return replace(learned, measurements=(measurement,))


def _estimate(learned: Learned, texts: list[str], contents: Contents, price: Price, seed: int) -> Estimate:
    judgements = {
        target: judge(learned, FitConfig(target_teacher_agreement=target, frontier_targets=(), seed=seed))
        for target in SCAN_TARGETS
    }
    measurement = learned.measurements[0]
    judged = _Judged.of(learned, measurement, contents)
    targets = tuple(_target(found.certificate, judged, price) for found in judgements.values())
    proved = [row.target for row in targets if row.possible]
    focus = _FOCUS if _FOCUS in proved else max(proved, default=None)
    agreement = measurement.decided().last_label == learned.truth[measurement.rows]
    alike = _has_near(learned)[measurement.rows]
    handled = (
        {} if focus is None else {row["label"]: row["handled_share"] for row in judgements[focus].report["labels"]}
    )
    return Estimate(
        sample=len(texts),
        judged=judged.rows,
        agreement=judgements[_FOCUS].report["out_of_fold_agreement"],
        effective=judgements[_FOCUS].certificate.n_effective,
        targets=targets,
        focus=focus,
        disagreements=int((~agreement & (learned.truth[measurement.rows] >= 0)).sum()),
        confusions=_confusions(learned, measurement, texts),
        hard_labels=_hard_labels(learned, measurement, agreement, handled),
        outside_guard=judgements[_FOCUS].report["outside_guard"],
        unreadable=int((~learned.readable).sum()),
        near_share=float(alike.mean()),
        agreement_near=float(agreement[alike].mean()) if alike.any() else None,
        agreement_alone=float(agreement[~alike].mean()) if not alike.all() else None,
    )


@dataclass(frozen=True)
class _Judged:
    """The rows that count: `n` different inputs and `rows` with repeats, out of `inputs` different ones in the file."""

    n: int
    rows: int
    inputs: int

    @classmethod
    def of(cls, learned: Learned, measurement: Measurement, contents: Contents) -> "_Judged":
        counted = learned.judged[measurement.rows]
        rows = measurement.rows[counted]
        return cls(len(np.unique(learned.groups[rows])), len(rows), contents.different_inputs)


def _target(certificate: Certificate, judged: _Judged, price: Price) -> TargetEstimate:
    reason, needed = _refusal(certificate, judged)
    share = certificate.coverage
    each, calls = price.per_1000_calls, price.calls_per_day
    daily = None if each is None or calls is None else each * calls * share / 1_000
    return TargetEstimate(
        target=certificate.target,
        possible=not certificate.refused,
        coverage=share,
        agreement=certificate.teacher_agreement,
        reason=reason,
        traces_needed=needed,
        handled_per_day=None if calls is None else calls * share,
        saved_per_1000_calls=None if each is None else each * share,
        saved_per_day=daily,
        saved_per_month=None if daily is None else daily * _DAYS_A_MONTH,
    )


def _refusal(certificate: Certificate, judged: _Judged) -> tuple[str | None, int | None]:
    """(reason, different inputs needed beyond the file's)."""
    reason, needed = certificate.reason, certificate.traces_needed
    if reason is None:
        return None, None
    if needed is None:
        return reason, None
    beyond = max(0, judged.n + needed - judged.inputs)
    more = f"about {beyond:,} more different inputs might" if beyond else "the whole file might, this sample does not"
    return f"no threshold proves it: {more}", beyond


def _has_near(learned: Learned) -> NDArray[np.bool_]:
    """Whether another, different input is a near-duplicate, (n,)."""
    pairs = np.unique(np.stack([learned.near, learned.groups]), axis=1)
    return np.asarray(np.bincount(pairs[0])[learned.near] > 1)


def _confusions(learned: Learned, measurement: Measurement, texts: list[str]) -> tuple[Confusion, ...]:
    """The pairs of labels taken for each other most often, in either direction."""
    truth, said = learned.truth[measurement.rows], measurement.decided().last_label
    wrong = np.flatnonzero((truth != said) & (truth >= 0))
    pairs = [tuple(sorted((int(truth[i]), int(said[i])))) for i in wrong]
    # The shortest of a pair's inputs is the quickest to understand.
    examples: dict[tuple[int, ...], int] = {}
    for pair, i in zip(pairs, wrong.tolist(), strict=True):
        known = examples.setdefault(pair, i)
        if len(texts[measurement.rows[i]]) < len(texts[measurement.rows[known]]):
            examples[pair] = i
    return tuple(
        Confusion(
            labels=(learned.labels[pair[0]], learned.labels[pair[1]]),
            count=count,
            example=texts[measurement.rows[examples[pair]]],
            said=learned.labels[int(truth[examples[pair]])],
        )
        for pair, count in Counter(pairs).most_common(_SHOWN)
    )


def _hard_labels(
    learned: Learned, measurement: Measurement, agreement: NDArray[np.bool_], handled: dict[str, float | None]
) -> tuple[HardLabel, ...]:
    """Labels that are not rare and agree least."""
    truth = learned.truth[measurement.rows]
    counts = np.bincount(truth[truth >= 0], minlength=len(learned.labels))
    right = np.bincount(truth[agreement], minlength=len(learned.labels))
    rows = [
        HardLabel(label, int(counts[i]), float(right[i] / counts[i]), handled.get(label))
        for i, label in enumerate(learned.labels)
        if counts[i] >= RARE
    ]
    return tuple(sorted(rows, key=lambda row: row.agreement)[:_SHOWN])
