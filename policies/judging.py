"""Judging: what the gate makes of a learned policy, as certificate, frontier and report."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Certificate
from policies.diagnostics import effective_sample, label_bounds, traces_still_needed
from policies.gate import (
    Choice,
    Late,
    Thresholds,
    all_equal,
    beats_majority,
    choose_thresholds,
    fewest_inputs,
    lower_bound,
)
from policies.learning import Learned
from policies.measuring import Decided, Measurement
from policies.notes import notes_of
from policies.settings import MEASUREMENTS, FitConfig

_STATEMENT = (
    "With probability at least {confidence:g} over the traces, the agreement of surrogate and teacher on handled calls "
    "drawn like the traces is at least {target:g}."
)
_OF_PROTECTED = " The same holds for each protected label that is answered, on its own, all at once."


@dataclass(frozen=True)
class Judged:
    """`thresholds` and `ruling` mean something where the certificate is not refused; `frontier` has a row a target."""

    certificate: Certificate
    thresholds: Thresholds
    ruling: Measurement | None
    frontier: list[dict[str, Any]]
    report: dict[str, Any]


@dataclass(frozen=True)
class _Evidence:
    """A measurement's rows that count: arrays (m,). `weights` is None where all are alike; `kept` says which of the
    measurement's rows they are."""

    measurement: Measurement
    kept: NDArray[np.bool_]
    decided: Decided
    truth: NDArray[np.int64]
    groups: NDArray[np.int64]
    weights: NDArray[np.float64] | None

    def agreement(self, threshold: float) -> NDArray[np.bool_]:
        """Whether the answer at a threshold is the teacher's, (m,)."""
        return np.asarray(self.decided.labels(threshold) == self.truth)

    @property
    def entry_agreement(self) -> NDArray[np.bool_]:
        """Whether the answer of the stage that handles the row first is the teacher's, (m,)."""
        return np.asarray(self.decided.entry_labels == self.truth)

    def clusters(self, same: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Rows that agree or disagree together, (m,), where the question is what calls unlike the traces bring.

        Rows drawn like the traces are independent, whatever they resemble.
        """
        return same[self.measurement.rows[self.kept]] if self.measurement.name == "grouped" else None

    @property
    def late(self) -> Late | None:
        """Rows whose answer changes when the threshold falls further, because an earlier stage then speaks first."""
        decided = self.decided
        changes = (decided.early < decided.scores) & (decided.early_label != decided.last_label)
        if not (changes & np.isfinite(decided.early)).any():
            return None
        return Late(np.where(changes, decided.early, -np.inf), decided.early_label == self.truth)


@dataclass(frozen=True)
class _Verdict:
    thresholds: Thresholds
    reason: str | None
    traces_needed: int | None = None

    @property
    def choice(self) -> Choice:
        return self.thresholds.total


_NOTHING = Thresholds(Choice(None, 0.0, None, None, 0), {})


def judge(learned: Learned, config: FitConfig, options: int = 1) -> Judged:
    """Put a learned policy before the gate, at its own target and at every target of the frontier.

    `options`: how many feature specs were learned to choose among; with the candidate surrogates, and the measurements
    where the strictest rules, they share the error probability, so that choosing among them does not void the promise.
    """
    shares = options * len(config.surrogates) * (len(MEASUREMENTS) if config.assume == "strictest" else 1)
    confidence = 1 - (1 - config.confidence) / shares
    target = config.target_teacher_agreement
    evidence = {m.name: _evidence(learned, m) for m in learned.measurements}
    verdicts = {name: _verdict(learned, config, found, target, confidence) for name, found in evidence.items()}
    name = _ruling(config, verdicts)
    missing = learned.problem or f"the traces are too much alike to be measured by {name!r}"
    verdict = verdicts.get(name) or _Verdict(_NOTHING, missing)
    ruling = evidence.get(name)
    judges = list(evidence.values()) if config.assume == "strictest" else [found for found in [ruling] if found]
    frontier = _frontier(learned, config, judges, confidence, missing)
    measurements = [_measured(found, verdicts[key], ruling, verdict, config) for key, found in evidence.items()]
    certificate = _certificate(learned, config, verdict, ruling, measurements)
    threshold = verdict.thresholds.pool.threshold
    handled_from = float("inf") if threshold is None else threshold
    report = _report(learned, config, ruling, verdict.thresholds, handled_from)
    return Judged(certificate, verdict.thresholds, None if ruling is None else ruling.measurement, frontier, report)


def _ruling(config: FitConfig, verdicts: dict[str, _Verdict]) -> str:
    if config.assume != "strictest" or not verdicts:
        return "iid" if config.assume == "strictest" else config.assume
    return min(verdicts, key=lambda name: _strictness(verdicts[name]))


def _strictness(verdict: _Verdict) -> tuple[bool, float]:
    """The lowest is the strictest: a refusal, then the least coverage."""
    return verdict.reason is None, verdict.choice.coverage


def _evidence(learned: Learned, measurement: Measurement) -> _Evidence:
    judged = learned.judged[measurement.rows]
    rows = measurement.rows[judged]
    weights = learned.weights[rows]
    decided = measurement.decided().at(judged)
    uneven = None if all_equal(weights) else weights
    return _Evidence(measurement, judged, decided, learned.truth[rows], learned.groups[rows], uneven)


def _verdict(learned: Learned, config: FitConfig, found: _Evidence, target: float, confidence: float) -> _Verdict:
    first = np.unique(found.groups, return_index=True)[1]
    fewest = fewest_inputs(target, confidence)
    decided, agreement = found.decided, found.entry_agreement
    needed = traces_still_needed(len(first), decided.scores[first], agreement[first], target, confidence)
    if len(first) < fewest:
        reason = f"{len(first)} different inputs in the traces cannot prove {target:g}: at least {fewest} are needed"
        return _Verdict(_NOTHING, reason, None if needed is None else max(needed, fewest - len(first)))
    protected = [learned.labels.index(label) for label in config.protect if label in learned.labels]
    thresholds = choose_thresholds(
        decided.scores,
        agreement,
        decided.entry_labels,
        protected,
        target,
        confidence,
        found.groups,
        found.weights,
        found.late,
        found.clusters(learned.same),
    )
    handled, labels = _handled(found, thresholds)
    choice = thresholds.total
    shown = handled if thresholds.certified else np.isfinite(decided.scores)
    if not beats_majority(found.truth, labels, shown, 1 - confidence, found.weights):
        return _Verdict(thresholds, "the surrogate does not beat always answering the most frequent label")
    if not thresholds.certified:
        more = "no number of traces like these would do" if needed is None else f"about {needed} more traces might do"
        overall = float(np.average(found.agreement(np.inf), weights=found.weights))
        reason = f"no threshold proves {target:g} (the surrogate agrees on {overall:.3f} of all traces): {more}"
        return _Verdict(thresholds, reason, needed)
    if choice.coverage < config.min_deploy_coverage:
        return _Verdict(thresholds, f"only {choice.coverage:.2%} of calls would be handled")
    return _Verdict(thresholds, None)


def _handled(found: _Evidence, thresholds: Thresholds) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows are handled, and the answers."""
    decided = found.decided
    pool = np.inf if thresholds.pool.threshold is None else thresholds.pool.threshold
    labels = decided.labels(pool)
    limits = np.full(len(labels), pool)
    for label, choice in thresholds.protected.items():
        limits[labels == label] = np.inf if choice.threshold is None else choice.threshold
    return decided.scores >= limits, labels


def _measured(
    found: _Evidence, verdict: _Verdict, ruling: _Evidence | None, ruled: _Verdict, config: FitConfig
) -> dict[str, Any]:
    """One measurement as the certificate holds it: its own verdict, and the served threshold seen its way."""
    own = verdict.choice
    row: dict[str, Any] = {
        "name": found.measurement.name,
        "n": len(found.truth),
        "agreement": float(np.average(found.agreement(np.inf), weights=found.weights)) if len(found.truth) else None,
        "certified": verdict.reason is None,
        "coverage": own.coverage if verdict.reason is None else 0.0,
        "teacher_agreement": own.agreement if verdict.reason is None else None,
        "teacher_agreement_lower": own.lower if verdict.reason is None else None,
        "at_served_threshold": None,
    }
    if ruling is not None and ruled.reason is None and len(found.truth):
        handled, right = _as_served(found, ruling, ruled.thresholds)
        n, wrong = int(handled.sum()), int((handled & ~right).sum())
        weighted = found.weights is not None
        weights = np.ones(len(handled)) if found.weights is None else found.weights
        row["at_served_threshold"] = {
            "coverage": float(np.average(handled, weights=weights)),
            "teacher_agreement": float(np.average(right[handled], weights=weights[handled])) if n else None,
            # Clopper and Pearson know no weights.
            "teacher_agreement_lower": lower_bound(n, wrong, config.confidence) if n and not weighted else None,
        }
    return row


def _as_served(
    found: _Evidence, ruling: _Evidence, thresholds: Thresholds
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(handled, right) of another measurement's rows, by the acceptor and the guard that are served."""
    if found is ruling:
        handled, labels = _handled(found, thresholds)
        return handled, labels == found.truth
    pairs = zip(ruling.measurement.stages, found.measurement.stages, strict=True)
    decided = found.measurement.decided([served.scores_of(own) for served, own in pairs])
    handled, labels = _handled(replace(found, decided=decided.at(found.kept)), thresholds)
    return handled, labels == found.truth


def _frontier(
    learned: Learned, config: FitConfig, judges: list[_Evidence], confidence: float, missing: str
) -> list[dict[str, Any]]:
    """What each target would give, by the measurement that rules or the strictest of several; `missing`: why none.

    All rows hold together: each gets its part of the error probability. A row's threshold is on the scale of the
    measurement that rules it, which is not always the one that is served.
    """
    targets = sorted(set(config.frontier_targets))
    jointly = 1 - (1 - confidence) / max(len(targets), 1)
    rows = []
    for target in targets:
        verdicts = {found.measurement.name: _verdict(learned, config, found, target, jointly) for found in judges}
        ruling = min(verdicts, key=lambda name: _strictness(verdicts[name]), default=None)
        verdict = _Verdict(_NOTHING, missing) if ruling is None else verdicts[ruling]
        choice, certified = verdict.choice, verdict.reason is None
        rows.append(
            {
                "target": target,
                "certified": certified,
                "coverage": choice.coverage if certified else 0.0,
                "teacher_agreement": choice.agreement if certified else None,
                "teacher_agreement_lower": choice.lower if certified else None,
                "threshold": choice.threshold if certified else None,
                "protected": verdict.thresholds.named(learned.labels) if certified else {},
                "ruling": ruling,
                "reason": verdict.reason,
            }
        )
    return rows


def _certificate(
    learned: Learned,
    config: FitConfig,
    verdict: _Verdict,
    evidence: _Evidence | None,
    measurements: list[dict[str, Any]],
) -> Certificate:
    refused = verdict.reason is not None
    choice = verdict.choice
    statement = _STATEMENT.format(confidence=config.confidence, target=config.target_teacher_agreement)
    measurement = None if evidence is None else evidence.measurement
    rows = np.flatnonzero(learned.judged) if measurement is None else measurement.rows[learned.judged[measurement.rows]]
    alike = (
        None if evidence is None or not len(rows) else effective_sample(learned.near[rows], evidence.agreement(np.inf))
    )
    return Certificate(
        refused=refused,
        reason=verdict.reason,
        target=config.target_teacher_agreement,
        confidence=config.confidence,
        method=None if refused or measurement is None else _method(measurement, verdict, len(rows)),
        coverage=0.0 if refused else choice.coverage,
        teacher_agreement=None if refused else choice.agreement,
        teacher_agreement_lower=None if refused else choice.lower,
        n_handled=0 if refused else choice.n_handled,
        n_judged=len(rows),
        n_effective=None if alike is None else round(alike, 1),
        assume=config.assume,
        ruling=None if measurement is None else measurement.name,
        mode=config.mode,
        statement=statement + (_OF_PROTECTED if config.protect else ""),
        traces_needed=verdict.traces_needed,
        measurements=measurements,
        notes=notes_of(learned, config, verdict.thresholds, None if refused else measurements),
    )


def _method(measurement: Measurement, verdict: _Verdict, n_judged: int) -> str:
    if len(measurement.stages) > 1:
        return "rsb"
    return "global" if verdict.choice.n_handled == n_judged else "l2d"


def _report(
    learned: Learned, config: FitConfig, ruling: _Evidence | None, thresholds: Thresholds, threshold: float
) -> dict[str, Any]:
    trials = [{"name": t.name, "agreement": t.agreement, "seconds": round(t.seconds, 2)} for t in learned.trials]
    if ruling is None or not len(ruling.truth):
        return {"out_of_fold_agreement": None, "outside_guard": None, "labels": [], "candidates": trials}
    handled, labels = _handled(ruling, thresholds)
    bounds = label_bounds(ruling.truth, labels, handled, len(learned.labels), config.confidence, ruling.weights)
    counts = np.bincount(ruling.truth[ruling.truth >= 0], minlength=len(learned.labels))
    rows = [
        {
            "label": label,
            "traces": int(counts[i]),
            "handled_share": _number(bounds.handled_share[i]),
            "answered": int(bounds.answered[i]),
            "agreement_when_answered": _number(bounds.agreement[i]),
            "agreement_lower": _number(bounds.lower[i]),
            "protected": label in config.protect,
        }
        for i, label in enumerate(learned.labels)
    ]
    return {
        "out_of_fold_agreement": float(np.average(ruling.agreement(np.inf), weights=ruling.weights)),
        "outside_guard": float((~np.isfinite(ruling.decided.scores)).mean()),
        "labels": rows,
        "candidates": trials,
        "handled_by_stage": _by_stage(ruling, handled, threshold),
    }


def _by_stage(ruling: _Evidence, handled: NDArray[np.bool_], threshold: float) -> list[float]:
    """Share of all judged rows that each stage answers."""
    if len(ruling.measurement.stages) == 1:
        return [float(handled.mean())]
    early = handled & (ruling.decided.early >= threshold)
    return [float(early.mean()), float((handled & ~early).mean())]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
