"""Between the gateway and the store: what a project is to do, what the settings say of it, what a folder offers."""

from dataclasses import dataclass

from gateway.settings import ProjectSettings, Settings
from policies.lifecycle import Offer
from policies.policy import Policy
from policies.prompts import Family
from policies.rules import AuditRules, Rules
from policies.states import ProjectState, State


@dataclass(frozen=True, slots=True)
class Orders:
    """What the store says of a project: which version answers, held to which agreement (None: its target).

    `withheld` labels are not answered. `family` are the prompts that the live policy is certified for, None where
    nobody watches it, or while they are taken on trust (`trusting`). `stretch` counts what it has been measured under.
    `shadow` is the version that decides beside the teacher, `kept` one that a rollback would want. `told` says, for
    people, why nothing answers.
    """

    state: State
    paused: bool = False
    live: str | None = None
    agreement: float | None = None
    withheld: frozenset[str] = frozenset()
    family: Family | None = None
    trusting: bool = False
    stretch: int = 0
    shadow: str | None = None
    kept: str | None = None
    told: str = ""

    @property
    def versions(self) -> set[str]:
        """The versions to have loaded."""
        return {version for version in (self.live, self.shadow, self.kept) if version is not None}


def orders_of(state: ProjectState, before: Orders | None) -> Orders:
    live, shadow = state.serving, state.shadow
    family = None
    trusting = live is not None and state.rules.watched and live.openness > 0
    if live is not None and state.rules.watched and not trusting:
        family = live.family
        if before is not None and before.family is not None and before.family.to_json() == family.to_json():
            family = before.family  # which remembers what it has been asked
    return Orders(
        state.state,
        state.paused,
        state.live,
        None if live is None else live.agreement,
        frozenset() if live is None else frozenset(live.withheld),
        family,
        trusting,
        0 if live is None else live.stretch,
        None if shadow is None else shadow.version,
        next((version for version in reversed(state.past) if version != state.live), None),
        _told(state),
    )


def _told(state: ProjectState) -> str:
    """Why nothing answers, for people; "" where something does, or nothing ever did."""
    if state.live is not None:
        return ""
    if state.shadow is not None:
        return f"{state.shadow.version} is in shadow and answers nothing yet: {state.shadow.cause}"
    stopped = [policy for policy in state.policies.values() if policy.state is state.state]
    return f"{stopped[-1].version} is {state.state}: {stopped[-1].cause}" if stopped else ""


def rules_of(settings: Settings, name: str) -> Rules:
    project = settings.projects[name]
    proof = project.proof
    return Rules(
        promotion=project.promotion,
        delta=proof.promotion_risk,
        alpha=proof.demotion_risk,
        run_length=proof.false_alarm_audits,
        builds=proof.system_fingerprint,
        watched=settings.upstream_of(name) is not None,
    )


def audit_rules_of(project: ProjectSettings) -> AuditRules:
    audit = project.audit
    return AuditRules(
        audit.rate, audit.first_rate, audit.first_hours, audit.most_rate, audit.daily_calls, audit.daily_usd
    )


def offer_of(policy: Policy) -> Offer:
    manifest = policy.manifest
    certificate = manifest.certificate
    budget = manifest.settings.get("guard_budget")
    return Offer(
        policy.version,
        policy.certified,
        certificate.target,
        certificate.confidence,
        policy.rungs if policy.certified else (),
        manifest.n_labels,
        budget if isinstance(budget, float) else 0.01,
        certificate.reason,
    )
