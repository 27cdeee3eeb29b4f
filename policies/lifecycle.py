"""What moves a policy from one state to the next, and what each move leaves behind.

    observing -> candidate -> shadow -> live -> demoted | retired

Functions change a `ProjectState` and return the moves, each with its cause and its evidence; `policies.record` makes
one transaction of both. Demotion is immediate, promotion waits for proof or for a person.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from policies.errors import LifecycleError, UnknownPolicy
from policies.monitor import Counts, Detector, ShareDetector
from policies.states import PolicyState, ProjectState, State, Watch
from policies.types import Move

Evidence = Mapping[str, Any]

GATEWAY = "gateway"
"""Who makes a move that no person asked for."""

# Calls after an immediate or a human promotion whose prompts and teachers are taken on trust.
TRUSTED_CALLS = 200
# The share outside the guard that is a change: three times what is usual, and never less than this.
_LEAST_NOVELTY, _MOST_NOVELTY = 0.05, 0.9
_USUAL_CALLS = 200  # in shadow, from which the usual share is read; with fewer the guard's budget stands for it


@dataclass(frozen=True, slots=True)
class Offer:
    """A version that a policy folder serves: what its certificate says that matters here."""

    version: str
    certified: bool
    target: float
    confidence: float
    rungs: tuple[float, ...]
    n_labels: int
    guard_budget: float
    reason: str | None = None


def offer(project: ProjectState, made: Offer, now: float) -> list[Move]:
    """A folder serves this version now. What is known already only moves where the folder has gone back to it."""
    if project.offered == made.version:
        return []
    project.offered = made.version
    known = project.policies.get(made.version)
    if known is not None:
        if known.state is not State.RETIRED:
            return []
        return _begin(project, known, now, "offered again")
    policy = PolicyState(
        made.version,
        State.CANDIDATE if made.certified else State.REFUSED,
        now,
        "certified" if made.certified else "refused by the gate",
        made.certified,
        made.target,
        made.confidence,
        list(made.rungs),
        made.n_labels,
        made.guard_budget,
        made.reason,
    )
    project.remember(policy)
    said = {"target": made.target, "confidence": made.confidence, "reason": made.reason}
    moves = [Move("", policy.version, State.OBSERVING, policy.state, policy.cause, GATEWAY, now, said)]
    return moves + (_begin(project, policy, now, policy.cause) if made.certified else [])


def _begin(project: ProjectState, policy: PolicyState, now: float, cause: str) -> list[Move]:
    """A candidate takes the place of those before it, and its first step."""
    moves = _supersede([other for other in project.policies.values() if other is not policy], policy, GATEWAY, now)
    if not project.rules.watched:
        return moves + go_live(project, policy, None, "no upstream to compare with", GATEWAY, now, {})
    if project.rules.promotion == "immediate":
        return moves + go_live(project, policy, None, "promotion: immediate", GATEWAY, now, {})
    return [*moves, go_to_shadow(project, policy, cause, GATEWAY, now, {})]


def go_to_shadow(
    project: ProjectState, policy: PolicyState, cause: str, by: str, now: float, evidence: Evidence
) -> Move:
    """The policy is to prove itself on live calls, from nothing; it answers none meanwhile."""
    if project.live == policy.version:
        project.live = None
    policy.trials = [Counts() for _ in policy.rungs]
    policy.watch = None
    policy.withheld, policy.unseen = {}, {}
    policy.calls = policy.novel = 0
    policy.openness = 0
    forget_strangers(policy)
    newer = project.shadow
    if newer is not None and newer is not policy and policy.state is State.LIVE:
        # One at a time: the newer one is on its way already.
        project.was_live(policy.version)
        return _move(policy, State.RETIRED, f"{cause}; {newer.version} is in shadow", by, now, evidence)
    return _move(policy, State.SHADOW, cause, by, now, evidence)


def go_live(
    project: ProjectState,
    policy: PolicyState,
    agreement: float | None,
    cause: str,
    by: str,
    now: float,
    evidence: Evidence,
) -> list[Move]:
    """The policy answers from now on, held to `agreement` (None: its target); the one before it retires."""
    moves = []
    before = project.serving
    if before is not None and before is not policy:
        project.was_live(before.version)
        moves.append(_move(before, State.RETIRED, f"superseded by {policy.version}", by, now))
    # What came after it may still prove itself.
    moves += _supersede(takewhile(lambda other: other is not policy, project.policies.values()), policy, by, now)
    project.live = policy.version
    policy.agreement, policy.live_since = agreement, now
    policy.withheld, policy.unseen = {}, {}
    # What was there when it proved itself is known; a policy that has seen nothing takes its first calls on trust.
    policy.openness = TRUSTED_CALLS if project.rules.watched and not len(policy.family) else 0
    forget_strangers(policy)
    begin_watch(policy)
    return [*moves, _move(policy, State.LIVE, cause, by, now, evidence)]


def _supersede(others: Iterable[PolicyState], policy: PolicyState, by: str, now: float) -> list[Move]:
    """Those that wait to be promoted wait no longer."""
    waiting = [other for other in others if other.state in (State.CANDIDATE, State.SHADOW)]
    return [_move(other, State.RETIRED, f"superseded by {policy.version}", by, now) for other in waiting]


def begin_watch(policy: PolicyState) -> None:
    """Measure from here on: what is answered has changed, so what was measured is about something else."""
    usual = policy.novel / policy.calls if policy.calls >= _USUAL_CALLS else policy.guard_budget
    limit = min(_MOST_NOVELTY, max(_LEAST_NOVELTY, 3 * usual))
    policy.stretch += 1
    policy.watch = Watch(Counts(), Detector(policy.target), {}, ShareDetector(limit))


def forget_strangers(policy: PolicyState) -> None:
    """Start anew with prompts and teachers that are not known."""
    policy.strangers, policy.trial, policy.strange = type(policy.strangers)(), Counts(), 0.0
    policy.teachers.strange = 0.0


def demote(project: ProjectState, policy: PolicyState, cause: str, now: float, evidence: Evidence) -> Move:
    """Evidence has stopped the policy: every call is the teacher's until a person or another policy takes over."""
    if project.live == policy.version:
        project.live = None
    return _move(policy, State.DEMOTED, cause, GATEWAY, now, evidence)


def promote(project: ProjectState, version: str | None, by: str, now: float) -> list[Move]:
    """A person puts a policy live, held to its target alone. None: the newest that waits.

    Raises:
        LifecycleError: there is no such policy, the gate refused it, or it is live already; nothing has changed.
    """
    policy = _chosen(project, version)
    if not policy.certified:
        why = policy.reason or "it says no reason"
        raise LifecycleError(f"the policy {policy.version} was refused by the gate and cannot be promoted: {why}")
    if policy.version == project.live:
        held = "" if policy.agreement is None else f", held to {policy.agreement:g} until its own target is proved"
        raise LifecycleError(f"the policy {policy.version} is live already{held}")
    moves = go_live(project, policy, None, "promoted", by, now, {})
    if policy.calls < TRUSTED_CALLS and project.rules.watched:
        policy.openness = TRUSTED_CALLS  # whoever promotes it early vouches for what it has not seen yet
    return moves


def _chosen(project: ProjectState, version: str | None) -> PolicyState:
    if version is not None:
        found = project.policies.get(version)
        if found is None:
            known = ", ".join(reversed(project.policies)) or "none"
            raise UnknownPolicy(f"there is no policy {version[:64]!r}; known: {known}")
        return found
    waiting = [p for p in project.policies.values() if p.state in (State.SHADOW, State.CANDIDATE)]
    if waiting:
        return waiting[-1]
    stopped = [p for p in project.policies.values() if p.state in (State.DEMOTED, State.RETIRED, State.REFUSED)]
    if not project.policies:
        raise LifecycleError("there is no policy yet")
    if project.live is not None and (not stopped or stopped[-1].state is not State.REFUSED):
        raise LifecycleError(f"no policy waits to be promoted; {project.live} is live")
    if stopped and stopped[-1].state is State.REFUSED:
        return stopped[-1]
    raise LifecycleError("no policy waits to be promoted; name one that was stopped to have it answer again")


def rollback(project: ProjectState, version: str | None, by: str, now: float) -> list[Move]:
    """The policy that was live before answers again, as it did; or the one named, if it ever was live.

    Raises:
        LifecycleError: there is none; nothing has changed.
    """
    past = [v for v in project.past if v != project.live and v in project.policies]
    if version is not None and version not in past:
        known = ", ".join(reversed(past)) or "none"
        kind = LifecycleError if version in project.policies else UnknownPolicy
        raise kind(f"{version[:64]!r} is no policy that was live before; those that were: {known}")
    if not past:
        stopped = [p for p in project.policies.values() if p.state is State.DEMOTED]
        why = f"; {stopped[-1].version} was demoted: promote it by name to have it answer again" if stopped else ""
        raise LifecycleError(f"no other policy was live before: there is nothing to roll back to{why}")
    policy = project.policies[version or past[-1]]
    moves, before = [], project.serving
    if before is not None:
        moves.append(_move(before, State.RETIRED, f"rolled back to {policy.version}", by, now))
        project.live = None
    # What was rolled back from is no place to roll back to.
    project.past = past[: past.index(policy.version)]
    return moves + go_live(project, policy, policy.agreement, "rolled back to", by, now, {})


def pause(project: ProjectState, by: str, now: float) -> list[Move]:
    """Every call is the teacher's until `resume`. Raises LifecycleError where it is paused already."""
    if project.paused:
        raise LifecycleError("the project is paused already")
    project.paused = True
    return [Move("", project.live, project.state, "paused", "paused", by, now, {})]


def resume(project: ProjectState, by: str, now: float) -> list[Move]:
    """What is live answers again. Raises LifecycleError where it is not paused."""
    if not project.paused:
        raise LifecycleError("the project is not paused")
    project.paused = False
    return [Move("", project.live, "paused", project.state, "resumed", by, now, {})]


def _move(policy: PolicyState, state: State, cause: str, by: str, now: float, evidence: Evidence | None = None) -> Move:
    old, policy.state, policy.cause, policy.since = policy.state, state, cause, now
    return Move("", policy.version, old, state, cause, by, now, dict(evidence or {}))
