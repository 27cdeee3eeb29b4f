"""What follows from what has been seen: promotions, demotions, and certificates that are void.

Three questions, each with a test that may be looked at after every call:

- *Shadow*: is agreement on the calls that the policy would have answered at least the target? An e-process against
  "agreement < target", for each agreement that the policy can be held to (`rungs`). The error probability `delta` is
  dealt out: half of it to the loosest, the rest in equal parts.
- *Live*: does the promise still hold? An e-process against "agreement >= target", and a Shiryaev-Roberts e-detector for
  a change; one cannot do both jobs. Where either crosses, the labels concerned are withheld, if they can be told
  apart; else the policy is demoted.
- *Is this still what was certified?* Prompts, teachers, labels and inputs that were not there when evidence was
  gathered.

See `policies.monitor` for the tests and docs/guarantees.md for what they promise.
"""

from collections.abc import Sequence
from math import log
from typing import Any

from policies.evidence import Report, compare, count, rung_of
from policies.labels import ROWS, Earlier, blamed, forget_unseen, hear_in_shadow, suspects, too_many, unseen, withhold
from policies.lifecycle import GATEWAY, begin_watch, demote, forget_strangers, go_live, go_to_shadow
from policies.monitor import log_evidence_against, log_evidence_for
from policies.rules import Rules
from policies.states import PolicyState, ProjectState, State, Watch
from policies.types import Comparison, Move

_LEAST_STRANGE = 0.5  # of the calls, or of the answers: then what was certified is not what is asked, or who answers
_LEAST_NOVEL = 100  # calls outside the guard: a few, from somebody who tries something out, are no change
PATIENCE = 1_000  # comparisons after which a policy in shadow makes do with a stricter agreement that is proved


def take(
    project: ProjectState, report: Report, new: Sequence[Comparison], earlier: Earlier, rules: Rules, now: float
) -> list[Move]:
    """Add what was seen to what is known, and make the moves that follow from it."""
    if not rules.watched:
        return []  # nothing would bring back what is stopped
    count(project, report)
    compare(project, new)
    moves = []
    shadow = project.shadow
    if shadow is not None:
        hear_in_shadow(shadow, report)
        moves += _shadow_verdict(project, shadow, rules, now)
    live = project.serving
    if live is not None:
        moves += _live_verdict(project, live, report, earlier, rules, now)
    return moves


def levels(rungs: int, delta: float) -> list[float]:
    """The evidence, in natural logarithms, at which each of so many rungs is proved."""
    shares = [delta] if rungs < 2 else [delta / 2] + [delta / 2 / (rungs - 1)] * (rungs - 1)
    return [log(1 / share) for share in shares]


def _proved(policy: PolicyState, rules: Rules) -> list[int]:
    """The rungs on which the target is proved, loosest first."""
    needed = levels(len(policy.rungs), rules.delta)
    trials = enumerate(zip(policy.trials, needed, strict=True))
    return [rung for rung, (trial, level) in trials if log_evidence_for(trial, policy.target) >= level]


def _shadow_verdict(project: ProjectState, policy: PolicyState, rules: Rules, now: float) -> list[Move]:
    if not policy.trials or not policy.trials[0].n:
        return []
    rejected = [log_evidence_against(trial, policy.target) >= log(1 / rules.alpha) for trial in policy.trials]
    if all(rejected):
        return [demote(project, policy, "shadow: agreement below target", now, _shown(policy, 0))]
    if rules.promotion == "manual":
        return []
    proved = _proved(policy, rules)
    if proved and (proved[0] == 0 or rejected[0] or policy.trials[0].n >= PATIENCE):
        rung = proved[0]
        cause = "proved on live calls" if rung == 0 else f"proved on live calls at {policy.rungs[rung]:g}"
        evidence = _shown(policy, rung)
        return go_live(project, policy, policy.rungs[rung] if rung else None, cause, GATEWAY, now, evidence)
    return []


def _shown(policy: PolicyState, rung: int) -> dict[str, Any]:
    trial = policy.trials[rung]
    return {
        "target": policy.target,
        "held_to": policy.rungs[rung],
        "comparisons": trial.n,
        "disagreements": trial.wrong,
        # By weight: beside a live policy, what it forwards is compared far more often than what it answers.
        "agreement": None if trial.agreement is None else round(trial.agreement, 4),
        "log_evidence_for": round(log_evidence_for(trial, policy.target), 3),
        "log_evidence_against": round(log_evidence_against(trial, policy.target), 3),
    }


def _live_verdict(
    project: ProjectState, policy: PolicyState, report: Report, earlier: Earlier, rules: Rules, now: float
) -> list[Move]:
    moves = _void(project, policy, report, rules, now)
    if not moves:
        moves = _broken(project, policy, earlier, rules, now)
    if not moves and policy.state is State.LIVE:
        moves = [*unseen(project, policy, report, now), *suspects(project, policy, earlier, rules, now)]
    if not moves and policy.state is State.LIVE:
        moves = _returned(policy, rules, now)
    return moves


def _void(project: ProjectState, policy: PolicyState, report: Report, rules: Rules, now: float) -> list[Move]:
    """Something that the certificate stands on has changed: back to shadow, to prove itself again."""
    cause, evidence = None, dict[str, Any]()
    if policy.strange > _LEAST_STRANGE:
        cause = "model" if 2 * report.model > report.strange else "prompt"
        evidence = {"share_of_calls": round(policy.strange, 3)}
    elif policy.teachers.strange > _LEAST_STRANGE:
        if rules.builds or not _same_model(policy.teachers.name, policy.teachers.known):
            cause = "teacher"
            evidence = {"answers_from": policy.teachers.name, "certified_with": list(policy.teachers.known)[:8]}
    elif policy.watch is not None and _novel(policy.watch, rules):
        cause = "novelty"
        evidence = {"calls": policy.watch.calls, "outside_the_guard": policy.watch.novel}
    if cause is None:
        return []
    return [go_to_shadow(project, policy, cause, GATEWAY, now, evidence)]


def _novel(watch: Watch, rules: Rules) -> bool:
    return watch.novel >= _LEAST_NOVEL and watch.novelty.log_value >= log(rules.run_length)


def _same_model(name: str, known: dict[str, int]) -> bool:
    return name.split(" ")[:3] in [seen.split(" ")[:3] for seen in known]


def _broken(project: ProjectState, policy: PolicyState, earlier: Earlier, rules: Rules, now: float) -> list[Move]:
    """The promise does not hold any more: the labels concerned are withheld, or the policy is demoted."""
    watch = policy.watch
    if watch is None:
        return []
    against = log_evidence_against(watch.counts, policy.target)
    drift = watch.detector.log_value
    if against < log(1 / rules.alpha) and drift < log(rules.run_length):
        return []
    cause = "drift" if drift >= log(rules.run_length) else "agreement below target"
    evidence = {
        "target": policy.target,
        "audits": watch.counts.n,
        "disagreements": watch.counts.wrong,
        "log_evidence_against": round(against, 3),
        "log_detector": round(drift, 3),
    }
    rows = earlier(policy.version, "audit", min(ROWS, watch.counts.n))
    labels = blamed(rows, policy.target, rules)
    if labels and not too_many(policy, labels):
        moves = withhold(policy, labels, cause, now, evidence)
        # What crossed has been acted on; a label that is withheld before that leaves the evidence as it is.
        begin_watch(policy)
        return moves
    return [demote(project, policy, cause, now, evidence)]


def _returned(policy: PolicyState, rules: Rules, now: float) -> list[Move]:
    """What has proved itself while it was put off: labels, prompts, looser agreements."""
    level, moves = log(1 / rules.delta), []
    for label, held in list(policy.withheld.items()):
        if log_evidence_for(held.trial, policy.target) >= level:
            del policy.withheld[label]
            forget_unseen(policy, label)
            shown = {"label": label, "comparisons": held.trial.n, "disagreements": held.trial.wrong}
            moves.append(Move("", policy.version, State.LIVE, State.LIVE, "label returned", GATEWAY, now, shown))
    if log_evidence_for(policy.trial, policy.target) >= level:
        shown = {"comparisons": policy.trial.n, "disagreements": policy.trial.wrong}
        policy.family.merge(policy.strangers)
        forget_strangers(policy)
        moves.append(Move("", policy.version, State.LIVE, State.LIVE, "prompt accepted", GATEWAY, now, shown))
    looser = [rung for rung in _proved(policy, rules) if rung < rung_of(policy)] if policy.agreement else []
    if looser:
        policy.agreement = policy.rungs[looser[0]] if looser[0] else None
        shown = _shown(policy, looser[0])
        moves.append(Move("", policy.version, State.LIVE, State.LIVE, "proved at less", GATEWAY, now, shown))
    if moves:
        begin_watch(policy)
    return moves
