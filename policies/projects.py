"""Projects and their policies for whoever looks at them or moves them: the commands and the admin API.

What is changed here is in force in every process that serves the same store within a second.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import log
from typing import Any, Self

from policies import lifecycle
from policies.audit_rate import suspicion
from policies.errors import DocumentDamaged, UnknownPolicy
from policies.monitor import log_evidence_against, log_evidence_for, lower_bound
from policies.record import Earlier, Record
from policies.rules import Rules
from policies.states import PolicyState, ProjectState
from policies.types import Comparison, Move
from policies.verdicts import levels

LIVE_CONFIDENCE = 0.95
"""Of the bound that is shown of a live policy: it is below the truth at all times with this probability."""


class Projects:
    """The projects of one store."""

    def __init__(self, record: Record) -> None:
        self._record = record

    @classmethod
    def open(cls, url: str) -> Self:
        """The projects of an existing store. Raises StoreError."""
        return cls(Record.open(url, create=False))

    def close(self) -> None:
        """Give the connections back."""
        self._record.close()

    def names(self) -> list[str]:
        """Every project that a gateway has served, sorted."""
        return sorted(self._record.revisions())

    def summaries(self) -> dict[str, dict[str, Any]]:
        """`summary` of every project, by name, as they stood at one moment."""
        return {name: summary(name, read(document)) for name, (_, document) in self._record.documents().items()}

    def summary(self, project: str) -> dict[str, Any]:
        """Where a project stands, its policies the newest first. Raises UnknownPolicy where there is none."""
        found = self._record.document(project)
        if found is None:
            known = ", ".join(self.names()) or "none"
            raise UnknownPolicy(f"the store knows no project {project[:64]!r}; known: {known}")
        return summary(project, read(found[1]))

    def moves(self, project: str, limit: int = 50) -> list[dict[str, Any]]:
        """The latest moves, oldest first, each with its cause, time and evidence. Raises UnknownPolicy."""
        self.summary(project)
        found = self._record.moves(project, limit)
        return [{"seq": seq} | asdict(move) | {"ts": moment(move.ts)} for seq, move in found]

    def promote(self, project: str, version: str | None, by: str) -> dict[str, Any]:
        """See `lifecycle.promote`; the project's summary afterwards."""
        return self._change(project, lambda state: lifecycle.promote(state, version, by, time.time()))

    def rollback(self, project: str, version: str | None, by: str) -> dict[str, Any]:
        """See `lifecycle.rollback`."""
        return self._change(project, lambda state: lifecycle.rollback(state, version, by, time.time()))

    def pause(self, project: str, by: str) -> dict[str, Any]:
        """See `lifecycle.pause`."""
        return self._change(project, lambda state: lifecycle.pause(state, by, time.time()))

    def resume(self, project: str, by: str) -> dict[str, Any]:
        """See `lifecycle.resume`."""
        return self._change(project, lambda state: lifecycle.resume(state, by, time.time()))

    def _change(self, project: str, move: Callable[[ProjectState], list[Move]]) -> dict[str, Any]:
        self.summary(project)  # or a slip of the pen would make a project

        _, state = change(self._record, project, lambda state, *_: move(state))
        return summary(project, state)


def change(
    record: Record,
    project: str,
    move: Callable[[ProjectState, Sequence[Comparison], Earlier], list[Move]],
    comparisons: Sequence[Comparison] = (),
) -> tuple[int, ProjectState]:
    """One transaction (`Record.change`): `move` changes the project's state and says what moved.

    Returns the revision, and the state as every process now reads it. Raises DocumentDamaged as well.
    """

    def step(
        document: dict[str, Any], fresh: Sequence[Comparison], earlier: Earlier
    ) -> tuple[dict[str, Any], Sequence[Move]]:
        state = read(document)
        moves = move(state, fresh, earlier)
        return state.to_json(), [replace(made, project=project) for made in moves]

    revision, document = record.change(project, comparisons, step)
    return revision, read(document)


def read(document: dict[str, Any]) -> ProjectState:
    """The state in a document of the store. Raises DocumentDamaged where it is none."""
    try:
        return ProjectState.from_json(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DocumentDamaged(f"a project's document cannot be read: {what}") from error


def summary(name: str, project: ProjectState) -> dict[str, Any]:
    """What people and programs are shown of a project, as JSON values; times are ISO 8601.

    `watched`: there is a teacher to compare with. `audits_today` are those of the last day with audits, with the day's
    budget.
    """
    rules, audits = project.rules, project.audits
    days = sorted(project.days.items())[-1:]
    return {
        "project": name,
        "state": "paused" if project.paused else project.state.value,
        "paused": project.paused,
        "live": project.live,
        "shadow": None if project.shadow is None else project.shadow.version,
        "rollback_to": next((v for v in reversed(project.past) if v != project.live), None),
        "promotion": rules.promotion,
        "watched": rules.watched,
        "audits_wanted": audits.rate > 0,
        "audit_rate": round(project.rate, 5),
        "handled_per_second": round(project.per_second, 3),
        "audits_today": {
            "day": days[0][0] if days else None,
            "calls": days[0][1].calls if days else 0,
            "usd": round(days[0][1].usd, 6) if days else 0.0,
            "daily_calls": audits.daily_calls,
            "daily_usd": audits.daily_usd,
        },
        "policies": [policy_summary(policy, rules) for policy in reversed(project.policies.values())],
    }


def policy_summary(policy: PolicyState, rules: Rules) -> dict[str, Any]:
    """What is shown of one policy. Evidence is in natural logarithms, beside what it has to reach under `rules`."""
    shown: dict[str, Any] = {
        "version": policy.version,
        "state": policy.state.value,
        "since": moment(policy.since),
        "cause": policy.cause,
        "certified": policy.certified,
        "reason": policy.reason,
        "target": policy.target,
        "held_to": policy.agreement or policy.target,
        "prompts": len(policy.family),
        "teachers": list(policy.teachers.known)[:8],
    }
    if policy.trials:
        shown["shadow"] = _shadow_figures(policy, rules)
    if policy.watch is not None:
        shown["live"] = live_figures(policy, rules)
    if policy.withheld:
        shown["withheld"] = {
            label: {
                "cause": held.cause,
                "since": moment(held.since),
                "comparisons": held.trial.n,
                "agreement": held.trial.agreement,
                "evidence_for": round(log_evidence_for(held.trial, policy.target), 3),
                "returned_at": round(log(1 / rules.delta), 3),
            }
            for label, held in policy.withheld.items()
        }
    return shown


def _shadow_figures(policy: PolicyState, rules: Rules) -> list[dict[str, Any]]:
    """What shadow has shown of each agreement that the policy can be held to, loosest first."""
    needed = levels(len(policy.rungs), rules.delta)
    return [
        {
            "held_to": rung,
            "comparisons": trial.n,
            "disagreements": trial.wrong,
            "agreement": trial.agreement,
            "evidence_for": round(log_evidence_for(trial, policy.target), 3),
            "promoted_at": round(level, 3),
            "evidence_against": round(log_evidence_against(trial, policy.target), 3),
            "demoted_at": round(log(1 / rules.alpha), 3),
        }
        for rung, trial, level in zip(policy.rungs, policy.trials, needed, strict=True)
    ]


def live_figures(policy: PolicyState, rules: Rules) -> dict[str, Any]:
    """What audits have shown of a live policy, with what would demote it under `rules`."""
    watch = policy.watch
    if watch is None:
        return {}
    return {
        "since": None if policy.live_since is None else moment(policy.live_since),
        "audits": watch.counts.n,
        "disagreements": watch.counts.wrong,
        "agreement": watch.counts.agreement,
        "agreement_lower": lower_bound(watch.counts, LIVE_CONFIDENCE),
        "confidence": LIVE_CONFIDENCE,
        "evidence_against": round(log_evidence_against(watch.counts, policy.target), 3),
        "demoted_at": round(log(1 / rules.alpha), 3),
        "detector": round(watch.detector.log_value, 3),
        "detector_at": round(log(rules.run_length), 3),
        "suspicion": round(suspicion(policy, rules), 3),
        "calls": watch.calls,
        "outside_the_guard": watch.novel,
        "strange_prompts": round(policy.strange, 3),
        "strange_teachers": round(policy.teachers.strange, 3),
    }


def moment(ts: float) -> str:
    """Seconds since the epoch as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
