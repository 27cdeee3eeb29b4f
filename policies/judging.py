"""Judging: what the gate makes of a learned policy, as certificate, frontier and report."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Certificate
from policies.gate import Choice, beats_majority, choose_threshold, fewest_inputs, traces_still_needed
from policies.learning import Learned
from policies.settings import FitConfig

_STATEMENT = (
    "With probability at least {confidence:g} over the traces, the agreement of surrogate and teacher on handled calls "
    "drawn like the traces is at least {target:g}."
)


@dataclass(frozen=True)
class Judged:
    """`threshold` is meaningful where the certificate is not refused; `frontier` has one row a target."""

    certificate: Certificate
    threshold: float
    frontier: list[dict[str, Any]]
    report: dict[str, Any]


@dataclass(frozen=True)
class _Verdict:
    choice: Choice
    reason: str | None
    traces_needed: int | None = None


def judge(learned: Learned, config: FitConfig) -> Judged:
    """Put a learned policy before the gate, at its own target and at every target of the frontier."""
    verdict = _verdict(learned, config, config.target_teacher_agreement)
    choice = verdict.choice
    refused = verdict.reason is not None
    certificate = Certificate(
        refused=refused,
        reason=verdict.reason,
        target=config.target_teacher_agreement,
        confidence=config.confidence,
        method=None if refused else _method(learned, choice),
        coverage=0.0 if refused else choice.coverage,
        teacher_agreement=None if refused else choice.agreement,
        teacher_agreement_lower=None if refused else choice.lower,
        n_handled=0 if refused else choice.n_handled,
        n_judged=int(learned.judged.sum()),
        assume=config.assume,
        mode=config.mode,
        statement=_STATEMENT.format(confidence=config.confidence, target=config.target_teacher_agreement),
        traces_needed=verdict.traces_needed,
        notes=_notes(learned),
    )
    frontier = [_frontier_row(learned, config, target) for target in sorted(config.frontier_targets)]
    threshold = float("inf") if choice.threshold is None else choice.threshold
    return Judged(certificate, threshold, frontier, _report(learned, threshold))


def _verdict(learned: Learned, config: FitConfig, target: float) -> _Verdict:
    nothing = Choice(None, 0.0, None, None, 0)
    if learned.problem is not None:
        return _Verdict(nothing, learned.problem)
    rows = learned.judged
    truth, predicted, groups = learned.truth[rows], learned.predicted[rows], learned.groups[rows]
    scores, agreement = learned.accept_scores[rows], truth == predicted
    delta = 1 - config.confidence
    first = np.unique(groups, return_index=True)[1]
    fewest = fewest_inputs(target, config.confidence)
    if len(first) < fewest:
        reason = f"{len(first)} different inputs in the traces cannot prove {target:g}: at least {fewest} are needed"
        return _Verdict(nothing, reason, fewest - len(first))
    choice = choose_threshold(scores, agreement, target, config.confidence, groups)
    handled = scores >= choice.threshold if choice.threshold is not None else np.isfinite(scores)
    if not beats_majority(truth, predicted, handled, delta):
        return _Verdict(choice, "the surrogate does not beat always answering the most frequent label")
    if choice.threshold is None:
        needed = traces_still_needed(len(first), scores[first], agreement[first], target, config.confidence)
        more = "no number of traces like these would do" if needed is None else f"about {needed} more traces might do"
        overall = float(agreement.mean())
        reason = f"no threshold proves {target:g} (the surrogate agrees on {overall:.3f} of all traces): {more}"
        return _Verdict(choice, reason, needed)
    if choice.coverage < config.min_deploy_coverage:
        return _Verdict(choice, f"only {choice.coverage:.2%} of calls would be handled")
    return _Verdict(choice, None)


def _method(learned: Learned, choice: Choice) -> str:
    everything = int(np.isfinite(learned.accept_scores[learned.judged]).sum())
    return "global" if choice.n_handled == everything else "l2d"


def _frontier_row(learned: Learned, config: FitConfig, target: float) -> dict[str, Any]:
    verdict = _verdict(learned, config, target)
    certified = verdict.reason is None
    choice = verdict.choice
    return {
        "target": target,
        "certified": certified,
        "coverage": choice.coverage if certified else 0.0,
        "teacher_agreement": choice.agreement if certified else None,
        "teacher_agreement_lower": choice.lower if certified else None,
        "threshold": choice.threshold if certified else None,
        "reason": verdict.reason,
    }


def _notes(learned: Learned) -> list[str]:
    notes = []
    rare = sum(1 for count in learned.teacher_counts.values() if count == 1)
    if rare:
        notes.append(f"{rare} labels were seen once: they are not learned, and their traces count as disagreement")
    unreadable = int((~learned.readable).sum()) if learned.problem is None else 0
    if unreadable:
        notes.append(f"{unreadable} traces are too long to be read whole: such calls are deferred")
    apart = int((~learned.judged).sum())
    if apart:
        notes.append(
            f"{apart} traces are learned from but do not count for the certificate: a policy in service deferred them, "
            "or they carry a weight, so they are not drawn as live calls are"
        )
    notes += _repeats(learned)
    notes.append("agreement was measured on random folds: it holds for live calls that are drawn like the traces")
    return notes


def _repeats(learned: Learned) -> list[str]:
    first = np.unique(learned.groups, return_index=True)[1]
    repeats = len(learned.groups) - len(first)
    if learned.problem is not None or not repeats:
        return []
    pairs = np.unique(np.stack([learned.groups, learned.truth]), axis=1).shape[1]
    notes = [f"{repeats} traces repeat an earlier input: the certificate holds for the different inputs alone, too"]
    if pairs > len(first):
        notes.append(f"the teacher contradicts itself: {pairs - len(first)} inputs were given more than one label")
    return notes


def _report(learned: Learned, threshold: float) -> dict[str, Any]:
    handled = learned.accept_scores >= threshold
    agreement = learned.truth == learned.predicted
    rows = []
    for i, label in enumerate(learned.labels):
        mine = learned.truth == i
        answered = handled & (learned.predicted == i)
        rows.append(
            {
                "label": label,
                "traces": int(mine.sum()),
                "handled_share": _share(handled[mine]),
                "answered": int(answered.sum()),
                "agreement_when_answered": _share(agreement[answered]),
            }
        )
    return {
        "out_of_fold_agreement": _share(agreement),
        "outside_guard": _share(~np.isfinite(learned.accept_scores)),
        "labels": rows,
    }


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
