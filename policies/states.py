"""What the store remembers of a project: its policies, the state of each, and what has been measured of them live.

One JSON document a project, changed by all processes in one sequence (`policies.record`). Plain values here; what moves
them is in `policies.lifecycle` and `policies.evidence`.
"""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from policies.monitor import Counts, Detector, ShareDetector
from policies.prompts import Family
from policies.rules import AuditRules, Rules

_MOST_POLICIES = 40  # that are remembered; what was retired longest ago is forgotten first
_MOST_PAST = 10


class State(StrEnum):
    """Where a policy, or a project, stands."""

    OBSERVING = "observing"  # traffic is forwarded, traces grow
    REFUSED = "refused"  # the gate certified nothing
    CANDIDATE = "candidate"  # certified on traces, not yet compared with the teacher
    SHADOW = "shadow"  # decides beside the teacher on live calls, answers none
    LIVE = "live"  # answers; a random share is audited
    DEMOTED = "demoted"  # evidence has stopped it
    RETIRED = "retired"  # another took its place


@dataclass(slots=True)
class Withheld:
    """A label that is not answered for now, why, and what the teacher said of calls that would have got it."""

    cause: str
    since: float
    trial: Counts = field(default_factory=Counts)


@dataclass(slots=True)
class Watch:
    """What has been measured of a live policy since it went live, or since what it answers was changed.

    `labels` has a detector for each label that has disagreed. `calls` and `novel` are the calls decided, and those
    outside the guard.
    """

    counts: Counts
    detector: Detector
    labels: dict[str, Detector]
    novelty: ShareDetector
    calls: int = 0
    novel: int = 0


@dataclass(slots=True)
class Teachers:
    """Who has answered: `known` says how often each "asked > model build" did while evidence was gathered.

    `strange` is the share of others among the last answers, `name` the last of them.
    """

    known: dict[str, int] = field(default_factory=dict)
    strange: float = 0.0
    name: str = ""


@dataclass(slots=True)
class PolicyState:
    """One version of a project's policy.

    `rungs` are the agreements it can be held to, loosest first (`Policy.rungs`), and `trials` what shadow has shown of
    each; `agreement` is the one it is held to where it is live (None: the loosest). `watch` is
    of one `stretch`: each time that what it answers changes, another begins. `family` are the prompts that it is
    certified for, `strangers` those that it is not, with what the teacher said of calls with them (`trial`). `openness`
    counts the calls whose prompts and teachers are still taken on trust. `unseen` maps an answer that is no label to
    the texts (hashed) that got it and what the surrogate would have said; `foreign` says how often such an answer came
    in shadow, where it was counted as a disagreement if the policy would have answered: it is not new any more.
    """

    version: str
    state: State
    since: float
    cause: str
    certified: bool
    target: float
    confidence: float
    rungs: list[float]
    n_labels: int
    guard_budget: float
    reason: str | None = None
    agreement: float | None = None
    live_since: float | None = None
    trials: list[Counts] = field(default_factory=list)
    watch: Watch | None = None
    stretch: int = 0
    withheld: dict[str, Withheld] = field(default_factory=dict)
    family: Family = field(default_factory=Family)
    strangers: Family = field(default_factory=Family)
    trial: Counts = field(default_factory=Counts)
    strange: float = 0.0
    openness: int = 0
    teachers: Teachers = field(default_factory=Teachers)
    unseen: dict[str, dict[str, str]] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    novel: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        watch = self.watch
        return found | {
            "state": self.state.value,
            "trials": [trial.to_json() for trial in self.trials],
            "watch": None
            if watch is None
            else {
                "counts": watch.counts.to_json(),
                "detector": watch.detector.to_json(),
                "labels": {label: detector.to_json() for label, detector in watch.labels.items()},
                "novelty": watch.novelty.to_json(),
                "calls": watch.calls,
                "novel": watch.novel,
            },
            "withheld": {
                label: {"cause": held.cause, "since": held.since, "trial": held.trial.to_json()}
                for label, held in self.withheld.items()
            },
            "family": self.family.to_json(),
            "strangers": self.strangers.to_json(),
            "trial": self.trial.to_json(),
            "teachers": asdict(self.teachers),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        watch = found["watch"]
        return cls(
            **{name: found[name] for name in _PLAIN},
            state=State(found["state"]),
            trials=[Counts.from_json(trial) for trial in found["trials"]],
            watch=None
            if watch is None
            else Watch(
                Counts.from_json(watch["counts"]),
                Detector.from_json(watch["detector"]),
                {label: Detector.from_json(detector) for label, detector in watch["labels"].items()},
                ShareDetector.from_json(watch["novelty"]),
                watch["calls"],
                watch["novel"],
            ),
            withheld={
                label: Withheld(held["cause"], held["since"], Counts.from_json(held["trial"]))
                for label, held in found["withheld"].items()
            },
            family=Family.from_json(found["family"]),
            strangers=Family.from_json(found["strangers"]),
            trial=Counts.from_json(found["trial"]),
            teachers=Teachers(**found["teachers"]),
        )


_PLAIN = (
    *("version", "since", "cause", "certified", "target", "confidence", "rungs", "n_labels", "guard_budget", "reason"),
    *("agreement", "live_since", "stretch", "strange", "openness", "unseen", "foreign", "calls", "novel"),
)


@dataclass(slots=True)
class Day:
    """What one day's audits have cost: calls, those that processes hold leases of included, and US dollars."""

    calls: int = 0
    usd: float = 0.0


@dataclass(slots=True)
class ProjectState:
    """One project. `offered` is the version that its folder serves, `live` the one that answers.

    `past` has the versions that were live before, the latest last: a rollback goes there. `rate` is the share of
    handled calls that is audited now, `per_second` how many are handled, both at the time `at`. `rules` and `audits`
    are the settings of the gateway that started last.
    """

    offered: str | None = None
    live: str | None = None
    paused: bool = False
    past: list[str] = field(default_factory=list)
    policies: dict[str, PolicyState] = field(default_factory=dict)
    days: dict[str, Day] = field(default_factory=dict)
    rate: float = 0.0
    per_second: float = 0.0
    at: float = 0.0
    rules: Rules = field(default_factory=Rules)
    audits: AuditRules = field(default_factory=AuditRules)

    @property
    def serving(self) -> PolicyState | None:
        """The live policy."""
        return None if self.live is None else self.policies[self.live]

    @property
    def shadow(self) -> PolicyState | None:
        """The newest policy in shadow."""
        found = [policy for policy in self.policies.values() if policy.state is State.SHADOW]
        return found[-1] if found else None

    @property
    def state(self) -> State:
        """The project's state: its live policy's, or else how far any has come."""
        if self.live is not None:
            return State.LIVE
        states = {policy.state for policy in self.policies.values()}
        for state in (State.SHADOW, State.CANDIDATE):
            if state in states:
                return state
        last = max(self.policies.values(), key=lambda policy: policy.since, default=None)
        return State.OBSERVING if last is None else last.state

    def remember(self, policy: PolicyState) -> None:
        """Add a policy, forgetting what is over where there are too many."""
        self.policies[policy.version] = policy
        over = [p.version for p in self.policies.values() if p.state in (State.RETIRED, State.REFUSED, State.DEMOTED)]
        for version in over[: max(0, len(self.policies) - _MOST_POLICIES)]:
            if version not in (policy.version, *self.past):
                del self.policies[version]

    def was_live(self, version: str) -> None:
        """Remember where a rollback would go."""
        self.past = [*(v for v in self.past if v != version), version][-_MOST_PAST:]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "offered": self.offered,
            "live": self.live,
            "paused": self.paused,
            "past": self.past,
            "policies": [policy.to_json() for policy in self.policies.values()],
            "days": {day: asdict(spent) for day, spent in self.days.items()},
            "rate": self.rate,
            "per_second": self.per_second,
            "at": self.at,
            "rules": asdict(self.rules),
            "audits": asdict(self.audits),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """What `to_json` gave; a project that nobody has written yet for {}.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        if not found:
            return cls()
        policies = [PolicyState.from_json(policy) for policy in found["policies"]]
        return cls(
            found["offered"],
            found["live"],
            found["paused"],
            list(found["past"]),
            {policy.version: policy for policy in policies},
            {day: Day(**spent) for day, spent in found["days"].items()},
            found["rate"],
            found["per_second"],
            found["at"],
            Rules(**found["rules"]),
            AuditRules(**found["audits"]),
        )
