"""How many of the handled calls are audited now, and which part of the day's budget a process may spend."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, log

from policies.monitor import log_evidence_against
from policies.rules import AuditRules, Rules
from policies.states import Day, PolicyState, ProjectState

_MOST_DAYS = 7
# Rates are taken from a few steps, each 2^(1/4) of the last: comparisons then have a few different weights only.
_STEPS = 4
_WINDOW = 60.0  # seconds over which the number of handled calls is averaged
# Of the evidence that would demote; from there the rate rises, to ten times as much. A detector has nearly half of it
# while all is well (at an agreement of 0.97 where 0.95 is the target): lower, and every healthy policy pays for it.
_CALM = 0.5
_SUSPICION = 9.0
_LEASE_SECONDS, _LARGEST_LEASE, _LEASES = 5.0, 500, 40


@dataclass(frozen=True, slots=True)
class Spent:
    """What one process reports: calls it has answered from its policy, dollars its audits cost, leases it lacks."""

    handled: int = 0
    usd: float = 0.0
    wanted: int = 0
    unused: int = 0


def settle(project: ProjectState, spent: Spent, audits: AuditRules, rules: Rules, now: float) -> int:
    """Book what a process has spent, set the project's rate, and say how many audits it may make of the day's."""
    seconds = min(_WINDOW, max(0.0, now - project.at))
    if seconds > 0:
        kept = 0.5 ** (seconds / _WINDOW)
        project.per_second = project.per_second * kept + (1 - kept) * spent.handled / seconds
        project.at = now
    else:
        # No time, or the clock went back: the calls are counted with the next report's time.
        project.at = min(project.at, now)
    day = _today(project, now)
    day.usd += spent.usd
    day.calls = max(0, day.calls - spent.unused)
    left = max(0, audits.daily_calls - day.calls)
    if audits.daily_usd is not None and day.usd >= audits.daily_usd:
        left = 0
    project.rate = _stepped(min(_wanted(project, audits, rules, now), _affordable(project, audits, left, day, now)))
    granted = min(left, spent.wanted) if project.rate > 0 else 0
    day.calls += granted
    return granted


def lease(project: ProjectState, audits: AuditRules) -> int:
    """How many audits a process asks for at a time: for some seconds, and a part of the day's that others can miss."""
    least = min(_LARGEST_LEASE, ceil(audits.daily_calls / _LEASES))
    return least + ceil(_LEASE_SECONDS * project.rate * project.per_second)


def suspicion(policy: PolicyState, rules: Rules) -> float:
    """How near the evidence is to demoting a live policy, from 0 to 1."""
    if policy.watch is None:
        return 0.0
    against = log_evidence_against(policy.watch.counts, policy.target) / log(1 / rules.alpha)
    drift = policy.watch.detector.log_value / log(rules.run_length)
    return min(1.0, max(0.0, against, drift))


def _wanted(project: ProjectState, audits: AuditRules, rules: Rules, now: float) -> float:
    policy = project.serving
    if policy is None or not audits.rate:
        return 0.0
    hours = max(0.0, now - (policy.live_since or now)) / 3600
    # A candidate beside a live policy learns from audits alone how it would do.
    first = hours < audits.first_hours or project.shadow is not None
    rate = audits.first_rate if first else audits.rate
    near = max(0.0, suspicion(policy, rules) - _CALM) / (1 - _CALM)
    return min(max(audits.most_rate, audits.rate), rate * (1 + _SUSPICION * near))


def _affordable(project: ProjectState, audits: AuditRules, left: int, day: Day, now: float) -> float:
    """The rate that the budget allows: any for the day's first half of it, so that evidence comes soon; then what the
    rest would last for, if calls come as they do."""
    if not left:
        return 0.0
    if 2 * day.calls < audits.daily_calls and (audits.daily_usd is None or 2 * day.usd < audits.daily_usd):
        return 1.0
    moment = datetime.fromtimestamp(now, UTC)
    midnight = datetime.combine(moment.date() + timedelta(days=1), datetime.min.time(), UTC)
    expected = project.per_second * max(60.0, (midnight - moment).total_seconds())
    calls = float(left)
    if audits.daily_usd is not None and day.calls and day.usd:
        calls = min(calls, (audits.daily_usd - day.usd) / (day.usd / day.calls))
    return 1.0 if expected <= calls else calls / expected


def _stepped(rate: float) -> float:
    if rate <= 0:
        return 0.0
    return float(min(1.0, 2 ** (round(_STEPS * log(rate, 2) - 0.49) / _STEPS)))


def _today(project: ProjectState, now: float) -> Day:
    name = datetime.fromtimestamp(now, UTC).date().isoformat()
    if name not in project.days:
        project.days[name] = Day()
        for old in sorted(project.days)[: -_MOST_DAYS or None]:
            if old != name:
                del project.days[old]
    return project.days[name]
