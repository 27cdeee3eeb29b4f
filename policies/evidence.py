"""What has been seen of live calls, added to what a project knows of its policies. What follows is in `verdicts`.

A comparison says what surrogate and teacher said of one call; a report is all else that one process has seen: calls
decided, prompts, teachers, answers that are no label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

from policies.monitor import Detector
from policies.prompts import Prompt
from policies.states import PolicyState, ProjectState, State
from policies.types import Comparison

_CALLS_WINDOW, _ANSWERS_WINDOW = 100.0, 15.0  # shares are over so many, falling off exponentially
_LABEL_ERRORS = 0.2  # a label is looked at on its own where more than this, and three times the policy's, is wrong


@dataclass(slots=True)
class Report:
    """What one process has seen since its last report, but for the comparisons.

    `decided`: calls decided by each version, and how many were outside its guard. `prompts`: for a version, a prompt
    not reported before by this process. `trusted`: calls that a version has answered on trust. `known` and `strange`:
    calls of the live policy with prompts that it is certified for, and with others; `model`: of those, with only the
    model another one. `teachers`: (model asked for, model and build that answered) and answers. `unseen`: a version, an
    answer that is no label of it, a hash of the text, and what the surrogate would have said.
    """

    decided: dict[str, tuple[int, int]] = field(default_factory=dict)
    prompts: list[tuple[str, Prompt]] = field(default_factory=list)
    strangers: list[tuple[str, Prompt]] = field(default_factory=list)
    trusted: dict[str, int] = field(default_factory=dict)
    known: int = 0
    strange: int = 0
    model: int = 0
    teachers: dict[tuple[str, str, str], int] = field(default_factory=dict)
    unseen: list[tuple[str, str, str, str | None]] = field(default_factory=list)


def count(project: ProjectState, report: Report) -> None:
    """Calls, prompts and teachers."""
    for version, (calls, novel) in report.decided.items():
        policy = project.policies.get(version)
        if policy is not None and calls:
            _count_calls(policy, calls, novel)
    for version, prompt in report.prompts:
        policy = project.policies.get(version)
        if policy is not None and (policy.state is State.SHADOW or policy.openness > 0):
            policy.family.learn(prompt)
    for policy in project.policies.values():
        if policy.state in (State.LIVE, State.SHADOW):
            _count_teachers(policy, report)
    if project.serving is not None:
        _count_strange(project.serving, report)


def _count_strange(live: PolicyState, report: Report) -> None:
    """Calls with prompts that the live policy is not certified for."""
    for version, prompt in report.strangers:
        if version == live.version:
            live.strangers.learn(prompt)
    if report.known + report.strange:
        live.strange = _faded(live.strange, report.strange, report.known + report.strange, _CALLS_WINDOW)
    live.openness = max(0, live.openness - report.trusted.get(live.version, 0))


def _count_calls(policy: PolicyState, calls: int, novel: int) -> None:
    if policy.state is State.SHADOW:
        policy.calls, policy.novel = policy.calls + calls, policy.novel + novel
    elif policy.watch is not None:
        watch = policy.watch
        watch.calls, watch.novel = watch.calls + calls, watch.novel + novel
        watch.novelty.update(calls, novel)


def _count_teachers(policy: PolicyState, report: Report) -> None:
    teachers = policy.teachers
    trusted = policy.state is State.SHADOW or policy.openness > 0 or not teachers.known
    for (asked, model, build), answers in report.teachers.items():
        name = f"{asked} > {model} {build}".rstrip()
        if trusted:
            teachers.known[name] = teachers.known.get(name, 0) + answers
            continue
        if not any(known.startswith(f"{asked} > ") for known in teachers.known):
            continue  # another model was asked: that call is not one that the policy answers
        strange = answers if name not in teachers.known else 0
        if strange:
            teachers.name = name
        teachers.strange = _faded(teachers.strange, strange, answers, _ANSWERS_WINDOW)


def _faded(share: float, found: int, of: int, window: float) -> float:
    kept = exp(-of / window)
    return share * kept + (1 - kept) * found / of


def compare(project: ProjectState, comparisons: Sequence[Comparison]) -> None:
    """Add what surrogate and teacher said, in its order."""
    for comparison in comparisons:
        policy = project.policies.get(comparison.version)
        if policy is None:
            continue
        weight = comparison.base / comparison.probability
        if policy.state is State.SHADOW:
            _try_rungs(policy, comparison.detail, weight)
        elif policy.state is State.LIVE and comparison.kind == "audit":
            _audited(policy, comparison, weight)
        elif policy.state is State.LIVE:
            _put_off(policy, comparison, weight)


def _audited(policy: PolicyState, comparison: Comparison, weight: float) -> None:
    watch = policy.watch
    # Drawn before what it answers was changed, it says nothing of what it answers now.
    if watch is None or comparison.detail != str(policy.stretch) or comparison.label in policy.withheld:
        return
    watch.counts.add(weight, comparison.wrong)
    watch.detector.update(weight, comparison.wrong)
    detector = watch.labels.get(comparison.label)
    if detector is not None:
        detector.update(weight, comparison.wrong)
    elif comparison.wrong:
        # Without this one: what made somebody look is no evidence of what will be found.
        watch.labels[comparison.label] = Detector(1 - max(_LABEL_ERRORS, 3 * (1 - policy.target)))


def _put_off(policy: PolicyState, comparison: Comparison, weight: float) -> None:
    """A call that the live policy would have answered, but for a label, a prompt, or what it is held to."""
    if comparison.detail == "prompt":
        policy.trial.add(weight, comparison.wrong)
    elif comparison.detail != "label":
        _try_rungs(policy, comparison.detail[: rung_of(policy)], weight)
    elif comparison.label in policy.withheld:
        policy.withheld[comparison.label].trial.add(weight, comparison.wrong)


def _try_rungs(policy: PolicyState, detail: str, weight: float) -> None:
    """`detail` has a character a rung: - where the call would not be answered, 1 right, 0 wrong."""
    for trial, found in zip(policy.trials, detail, strict=False):
        if found != "-":
            trial.add(weight, found == "0")


def rung_of(policy: PolicyState) -> int:
    """Which of its rungs a policy is held to."""
    return 0 if policy.agreement is None else policy.rungs.index(policy.agreement)
