"""Learning: everything of a fit that looks at labels before the gate does.

Turns traces into features and measures them: every trace gets scores of a policy that did not see it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import joblib
import numpy as np
from numpy.typing import NDArray

from policies.encoders import Encoder
from policies.engines import engine
from policies.errors import FitError
from policies.fields import FEWEST, Fields, most_classes
from policies.folds import near_duplicates
from policies.measuring import Measurement, Task, measure, n_models
from policies.reading import Reading, read_given, read_texts
from policies.settings import MEASUREMENTS, FeatureSpec, FitConfig
from policies.types import FAIR_REASONS, AnswerKind, Trace

Progress = Callable[[str, float], None]

_FEWEST_TRACES = 20
_MOST_LABELS = 5_000


@dataclass(frozen=True)
class Trial:
    """How a candidate surrogate did: `agreement` out of fold on random folds, `seconds` for all its folds."""

    name: str
    agreement: float
    seconds: float


@dataclass(frozen=True)
class Learned:
    """A fit before the gate.

    Where there was nothing to learn, `problem` says why and there are no measurements. Row-wise arrays have shape (n,):
    `truth` (index of the teacher's label, -1 where the surrogate cannot say it), `judged` (rows that may enter the
    certificate), `weights`, `groups` (number of the input: equal inputs, but for case and white space, have the same),
    `near` and `same` (the same for near-duplicates, and for inputs in nearly the same words), `readable` (rows with
    features). `heads` has each label's class in each field, where answers have several fields to predict.
    `off_template` of the rows that are not readable were not built like the others.
    """

    problem: str | None
    labels: list[str]
    teacher_counts: Counter[str]
    truth: NDArray[np.int64]
    judged: NDArray[np.bool_]
    weights: NDArray[np.float64]
    groups: NDArray[np.int64]
    near: NDArray[np.int64]
    same: NDArray[np.int64]
    readable: NDArray[np.bool_]
    reading: Reading | None = None
    task: Task | None = None
    measurements: tuple[Measurement, ...] = ()
    trials: tuple[Trial, ...] = ()
    heads: Mapping[str, tuple[int, ...]] | None = None
    off_template: int = 0


def silent(step: str, done: float) -> None:
    """A progress callback that shows nothing."""


def learn(
    traces: list[Trace],
    config: FitConfig,
    features: str,
    embeddings: NDArray[np.float32] | None,
    progress: Progress,
    encoder: Encoder | None = None,
    heads: Mapping[str, tuple[int, ...]] | None = None,
) -> Learned:
    """Learn and measure from traces.

    `features` is the spec to read the texts by; `embeddings` (n, d) replaces it, `encoder` the one it names. `heads`:
    each label's class in each field. Raises FitError.
    """
    learned = prepare(traces, config, features, embeddings, progress, encoder, heads)
    if learned.task is None:
        return learned
    with engine(config.engine, learned.task.jobs):
        task, measurements, trials = _measure_all(learned.task, config, learned.near, progress)
    return replace(learned, task=task, measurements=measurements, trials=trials)


def prepare(
    traces: list[Trace],
    config: FitConfig,
    features: str,
    embeddings: NDArray[np.float32] | None,
    progress: Progress,
    encoder: Encoder | None = None,
    heads: Mapping[str, tuple[int, ...]] | None = None,
) -> Learned:
    """All of `learn` that comes before the first model: nothing is measured yet. Raises FitError."""
    nothing = replace(_nothing(traces), heads=heads)
    unknown = [label for label in config.protect if label not in nothing.teacher_counts]
    if unknown:
        raise FitError(f"protect: no trace has the label {unknown[0]!r}")
    problem = obstacle(len(traces), nothing.labels, nothing.teacher_counts, most_classes(heads))
    if problem is not None:
        return replace(nothing, problem=problem)
    progress("features", 0.0)
    if embeddings is not None:
        reading = read_given(embeddings)
    else:
        spec, cascade = FeatureSpec.parse(features), not config.protect
        reading = read_texts(traces, spec, cascade, lambda done: progress("encoder", 0.1 * done), encoder)
    truth = np.where(reading.readable, nothing.truth, -1)
    if int((truth >= 0).sum()) < _FEWEST_TRACES:
        return replace(nothing, problem="too few traces hold text that can be read")
    groups = _groups(traces, embeddings)
    different = len(np.unique(groups[reading.readable]))
    if different == 1:
        return replace(nothing, problem="all inputs are the same: there is nothing to learn from", groups=groups)
    if different < _FEWEST_TRACES:
        return replace(nothing, problem=f"{different} different inputs are too few to learn from", groups=groups)
    progress("near-duplicates", 0.1)
    near, same = near_duplicates(reading.near, groups)
    task = Task(
        stages=reading.stages,
        truth=truth,
        n_labels=len(nothing.labels),
        groups=groups,
        order=_by_age(traces),
        readable=reading.readable,
        candidate=config.surrogates[0],
        guard_budget=config.guard_budget,
        seed=config.seed,
        jobs=config.jobs or joblib.cpu_count(),
        neighbours=config.neighbours,
        parts=_parts(traces, nothing, reading),
    )
    return replace(
        nothing, truth=truth, groups=groups, near=near, same=same, readable=reading.readable, reading=reading, task=task
    )


def _measure_all(
    task: Task, config: FitConfig, near: NDArray[np.int64], progress: Progress
) -> tuple[Task, tuple[Measurement, ...], tuple[Trial, ...]]:
    """Random folds for every candidate; the other measurements for the one that agrees most."""
    total = n_models(task) * (len(config.surrogates) + len(MEASUREMENTS) - 1)
    fitted = 0

    def on_fit(models: int) -> None:
        nonlocal fitted
        fitted += models
        progress("surrogate", 0.12 + 0.68 * min(fitted / total, 1.0))

    trials, best = [], None
    for name in config.surrogates:
        started = perf_counter()
        tried = replace(task, candidate=name)
        found = measure(tried, "iid", near, on_fit)
        assert found is not None  # noqa: S101 - `prepare` has seen to it that there are enough inputs
        agreement = float((found.stages[-1].predicted == task.truth[found.rows]).mean())
        trials.append(Trial(name, agreement, perf_counter() - started))
        if best is None or agreement > best[0]:
            best = agreement, tried, found
    assert best is not None  # noqa: S101 - settings name at least one candidate
    _, task, iid = best
    others = [measure(task, name, near, on_fit) for name in MEASUREMENTS if name != "iid"]
    return task, (iid, *(found for found in others if found is not None)), tuple(trials)


def obstacle(n: int, labels: list[str], counts: Counter[str], n_classes: int | None = None) -> str | None:
    """Why nothing can be learned from n traces, as far as counting tells; None where it can.

    `labels` were seen often enough to be learned, `counts` has all of them. `n_classes`: of the field that has most,
    where answers have several; their combinations may be many.
    """
    different = len(counts) if n_classes is None else n_classes
    if n < _FEWEST_TRACES:
        return f"{n} traces are too few to learn from: at least {_FEWEST_TRACES}"
    if not counts:
        return "no answer has a form that can be learned"
    if len(counts) == 1:
        return "every trace has the same label: there is nothing to decide"
    if len(labels) < 2:
        return f"fewer than two labels were seen {FEWEST} times or more"
    if different > _MOST_LABELS or different >= n / 2:
        return f"{different} different labels in {n} traces: this does not look like a decision among fixed labels"
    return None


def _nothing(traces: list[Trace]) -> Learned:
    n = len(traces)
    counts = Counter(trace.teacher for trace in traces if trace.kind is not AnswerKind.OTHER)
    labels = sorted(label for label, count in counts.items() if count >= FEWEST)
    index = {label: i for i, label in enumerate(labels)}
    weights = np.array([trace.weight for trace in traces])
    return Learned(
        problem=None,
        labels=labels,
        teacher_counts=counts,
        truth=np.array(
            [-1 if trace.kind is AnswerKind.OTHER else index.get(trace.teacher, -1) for trace in traces], np.int64
        ),
        judged=_judged(traces, weights),
        weights=weights,
        groups=np.arange(n),
        near=np.arange(n),
        same=np.arange(n),
        readable=np.zeros(n, np.bool_),
    )


def _parts(traces: list[Trace], nothing: Learned, reading: Reading) -> Fields | None:
    """The fields of the answer where it has several. What cannot be read has no class in any."""
    if nothing.heads is None:
        return None
    rows = zip(traces, reading.readable.tolist(), strict=True)
    answers = [trace.teacher if read and trace.kind is not AnswerKind.OTHER else None for trace, read in rows]
    return Fields.parted(nothing.heads, nothing.labels, answers)


def _groups(traces: list[Trace], embeddings: NDArray[np.float32] | None) -> NDArray[np.int64]:
    numbers: dict[object, int] = {}
    if embeddings is not None:
        keys: list[object] = [row.tobytes() for row in embeddings]
    else:
        # What is empty was not read, and is not known to be the same.
        keys = [" ".join(trace.input.casefold().split()) or row for row, trace in enumerate(traces)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _by_age(traces: list[Trace]) -> NDArray[np.int64]:
    """Rows oldest first: by time where every trace has one, else as they stand."""
    times = [trace.ts for trace in traces]
    if any(ts is None for ts in times):
        return np.arange(len(traces))
    return np.argsort(np.array(times, np.float64), kind="stable")


def _judged(traces: list[Trace], weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows that count for the certificate: those drawn as live calls are drawn, or weighted to stand for them.

    A row recorded because a policy in service deferred it is a hard one by selection. It counts only beside weighted
    rows, which stand for the calls that the policy answered: from the time of the first of them, where times are known.
    """
    fair = np.array([trace.reason is None or trace.reason in FAIR_REASONS for trace in traces], np.bool_)
    if (weights == 1.0).all():
        return fair
    times = np.array([np.nan if trace.ts is None else trace.ts for trace in traces])
    audited_from = np.fmin.reduce(times[weights != 1.0])
    return np.asarray(fair | ~(times < audited_from))
