"""What has been seen of live calls -> what a project's policies have proved, and what that moves.

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

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb, exp, lgamma, log, log1p
from typing import Any

from policies.lifecycle import GATEWAY, begin_watch, demote, forget_strangers, go_live, go_to_shadow
from policies.monitor import Counts, Detector, log_evidence_against, log_evidence_for
from policies.prompts import Known, Prompt
from policies.states import PolicyState, ProjectState, State, Withheld
from policies.types import Comparison, Move

Earlier = Callable[[str, str, int], Sequence[Comparison]]

_LEAST_STRANGE = 0.5  # of the calls, or of the answers: then what was certified is not what is asked, or who answers
_CALLS_WINDOW, _ANSWERS_WINDOW = 100.0, 15.0  # over so many, falling off exponentially
_PATIENCE = 1_000  # comparisons after which a policy in shadow makes do with a stricter agreement that is proved
_UNSEEN_TEXTS, _UNSEEN_GUESSES, _MOST_UNSEEN, _MOST_UNSEEN_TEXTS = 5, 2, 20, 60
_LABEL_ERRORS = 0.2  # a label is looked at on its own where more than this, and three times the policy's, is wrong
_MOST_WITHHELD = 1 / 3  # of the labels; then it is the policy that is wrong
_BLAMED = 0.01  # chance that a label is blamed for what is no fault of its own, over all labels
_ROWS = 2_000  # audits that are looked through for labels to blame


@dataclass(frozen=True, slots=True)
class Rules:
    """What a project's settings say of promotion and demotion.

    `delta` is the chance that a policy below its target is promoted, `alpha` that one on its target is ever demoted by
    the e-process, `run_length` the mean number of audits between false alarms of the detector.
    """

    promotion: str = "shadow"
    delta: float = 0.05
    alpha: float = 0.05
    run_length: float = 20_000.0
    builds: bool = True  # whether another system_fingerprint is another teacher


@dataclass(slots=True)
class Report:
    """What one process has seen since its last report, but for the comparisons.

    `decided`: calls decided by each version, and how many were outside its guard. `prompts`: for a version, a prompt
    not reported before by this process. `trusted`: calls that a version has answered on trust. `known` and `strange`:
    calls of the live policy with prompts that it is certified for, and with others; `model`: of those, with only the
    model another one. `teachers`: "model build" and answers. `unseen`: an answer that is no label of the version, a hash
    of the text, and what the surrogate would have said.
    """

    decided: dict[str, tuple[int, int]] = field(default_factory=dict)
    prompts: list[tuple[str, Prompt]] = field(default_factory=list)
    strangers: list[tuple[str, Prompt]] = field(default_factory=list)
    trusted: dict[str, int] = field(default_factory=dict)
    known: int = 0
    strange: int = 0
    model: int = 0
    teachers: dict[tuple[str, str], int] = field(default_factory=dict)
    unseen: list[tuple[str, str, str, str | None]] = field(default_factory=list)


def take(
    project: ProjectState, report: Report, new: Sequence[Comparison], earlier: Earlier, rules: Rules, now: float
) -> list[Move]:
    """Add what was seen to what is known, and make the moves that follow from it."""
    _count(project, report)
    for comparison in new:
        policy = project.policies.get(comparison.version)
        if policy is not None:
            _compare(policy, comparison)
    moves = []
    shadow, live = project.shadow, project.serving
    if shadow is not None:
        moves += _shadow_verdict(project, shadow, rules, now)
    if live is not None and project.live == live.version:
        moves += _live_verdict(project, live, report, earlier, rules, now)
    return moves


def _count(project: ProjectState, report: Report) -> None:
    """Calls, prompts and teachers."""
    for version, (calls, novel) in report.decided.items():
        policy = project.policies.get(version)
        if policy is not None and policy.state is State.SHADOW:
            policy.calls, policy.novel = policy.calls + calls, policy.novel + novel
        elif policy is not None and policy.watch is not None and calls:
            watch = policy.watch
            watch.calls, watch.novel = watch.calls + calls, watch.novel + novel
            if watch.novelty is not None:
                watch.novelty.update(calls, novel)
    for version, prompt in report.prompts:
        policy = project.policies.get(version)
        if policy is not None and (policy.state is State.SHADOW or policy.openness > 0):
            policy.family.learn(prompt)
    for version, prompt in report.strangers:
        if version == project.live and version in project.policies:
            project.policies[version].strangers.learn(prompt)
    for policy in (project.serving, project.shadow):
        if policy is not None:
            _count_teachers(policy, report)
    live = project.serving
    if live is not None:
        if report.known + report.strange:
            live.strange = _faded(live.strange, report.strange, report.known + report.strange, _CALLS_WINDOW)
        live.openness = max(0, live.openness - report.trusted.get(live.version, 0))


def _count_teachers(policy: PolicyState, report: Report) -> None:
    teachers = policy.teachers
    trusted = policy.state is State.SHADOW or policy.openness > 0 or not teachers.known
    for (model, build), answers in report.teachers.items():
        name = f"{model} {build}".strip()
        if trusted:
            teachers.known[name] = teachers.known.get(name, 0) + answers
            continue
        strange = answers if name not in teachers.known else 0
        if strange:
            teachers.name = name
        teachers.strange = _faded(teachers.strange, strange, answers, _ANSWERS_WINDOW)


def _faded(share: float, found: int, of: int, window: float) -> float:
    kept = exp(-of / window)
    return share * kept + (1 - kept) * found / of


def _compare(policy: PolicyState, comparison: Comparison) -> None:
    weight = comparison.base / comparison.probability
    if policy.state is State.SHADOW:
        _try_rungs(policy, comparison.detail, weight)
    elif policy.state is State.LIVE and comparison.kind == "audit" and policy.watch is not None:
        watch = policy.watch
        watch.counts.add(weight, comparison.wrong)
        watch.detector.update(weight, comparison.wrong)
        detector = watch.labels.get(comparison.label)
        if detector is not None:
            detector.update(weight, comparison.wrong)
        elif comparison.wrong:
            # Without this one: what made somebody look is no evidence of what will be found.
            watch.labels[comparison.label] = Detector(1 - max(_LABEL_ERRORS, 3 * (1 - policy.target)))
        for rung in range(_rung(policy)):
            policy.trials[rung].add(weight, comparison.wrong)
    elif policy.state is State.LIVE and comparison.detail == "label" and comparison.label in policy.withheld:
        policy.withheld[comparison.label].trial.add(weight, comparison.wrong)
    elif policy.state is State.LIVE and comparison.detail == "prompt":
        policy.trial.add(weight, comparison.wrong)
    elif policy.state is State.LIVE and comparison.detail not in ("label", "prompt"):
        _try_rungs(policy, comparison.detail[: _rung(policy)], weight)


def _try_rungs(policy: PolicyState, detail: str, weight: float) -> None:
    """`detail` has a character a rung: - where the call would not be answered, 1 right, 0 wrong."""
    for trial, found in zip(policy.trials, detail, strict=False):
        if found != "-":
            trial.add(weight, found == "0")


def _rung(policy: PolicyState) -> int:
    """Which of its rungs a policy is held to."""
    return 0 if policy.agreement is None else policy.rungs.index(policy.agreement)


def _proved(policy: PolicyState, rules: Rules) -> list[int]:
    """The rungs on which the target is proved, loosest first."""
    rest = len(policy.rungs) - 1
    shares = [rules.delta / 2] + [rules.delta / 2 / rest] * rest if rest else [rules.delta]
    return [
        rung
        for rung, (trial, share) in enumerate(zip(policy.trials, shares, strict=True))
        if log_evidence_for(trial, policy.target) >= log(1 / share)
    ]


def _shadow_verdict(project: ProjectState, policy: PolicyState, rules: Rules, now: float) -> list[Move]:
    if not policy.trials or not policy.trials[0].n:
        return []
    rejected = [log_evidence_against(trial, policy.target) >= log(1 / rules.alpha) for trial in policy.trials]
    if all(rejected):
        return [demote(project, policy, "shadow: agreement below target", now, _shown(policy, 0))]
    if rules.promotion != "shadow":
        return []
    proved = _proved(policy, rules)
    if proved and (proved[0] == 0 or rejected[0] or policy.trials[0].n >= _PATIENCE):
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
        moves = [*_unseen(project, policy, report, now), *_suspect_labels(project, policy, earlier, rules, now)]
    if not moves and policy.state is State.LIVE:
        moves = _returned(policy, rules, now)
    return moves


def _void(project: ProjectState, policy: PolicyState, report: Report, rules: Rules, now: float) -> list[Move]:
    """Something that the certificate stands on has changed: back to shadow, to prove itself again."""
    cause, evidence = None, {}
    if policy.strange > _LEAST_STRANGE:
        cause = "model" if 2 * report.model > report.strange else "prompt"
        evidence = {"share_of_calls": round(policy.strange, 3)}
    elif policy.teachers.strange > _LEAST_STRANGE:
        if rules.builds or not _same_model(policy.teachers.name, policy.teachers.known):
            cause = "teacher"
            evidence = {"answers_from": policy.teachers.name, "certified_with": list(policy.teachers.known)[:8]}
    elif policy.watch is not None and policy.watch.novelty is not None:
        if policy.watch.novelty.log_value >= log(rules.run_length):
            cause = "novelty"
            evidence = {"calls": policy.watch.calls, "outside_the_guard": policy.watch.novel}
    if cause is None:
        return []
    return [go_to_shadow(project, policy, cause, GATEWAY, now, evidence)]


def _same_model(name: str, known: dict[str, int]) -> bool:
    return name.partition(" ")[0] in {seen.partition(" ")[0] for seen in known}


def _broken(
    project: ProjectState, policy: PolicyState, earlier: Earlier, rules: Rules, now: float
) -> list[Move]:
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
    rows = earlier(policy.version, "audit", min(_ROWS, watch.counts.n))
    labels = blamed(rows, policy.target, rules)
    if labels and not _too_many(policy, labels):
        return _withhold(policy, labels, cause, now, evidence)
    return [demote(project, policy, cause, now, evidence)]


def _too_many(policy: PolicyState, labels: dict[str, tuple[int, int]]) -> bool:
    return len(policy.withheld.keys() | labels.keys()) > max(1.0, _MOST_WITHHELD * policy.n_labels)


def _withhold(
    policy: PolicyState, labels: dict[str, tuple[int, int]], cause: str, now: float, evidence: dict[str, Any]
) -> list[Move]:
    moves = []
    for label, (n, wrong) in labels.items():
        policy.withheld[label] = Withheld(cause, now)
        shown = evidence | {"label": label, "label_audits": n, "label_disagreements": wrong}
        moves.append(Move("", policy.version, State.LIVE, State.LIVE, f"label withheld: {cause}", GATEWAY, now, shown))
    begin_watch(policy)
    return moves


def blamed(rows: Sequence[Comparison], target: float, rules: Rules) -> dict[str, tuple[int, int]]:
    """The labels that account for a fall in agreement, with their audits and disagreements; none where it is general.

    `rows` are audits in order. Those since the likeliest change are looked at: a label is blamed where so many
    disagreements would be a rare chance among calls that agree as often as the target, and all that are blamed together
    only where what is left shows nothing. This is a choice of what to stop, and no promise hangs on it.
    """
    since = rows[_change(rows, target) :]
    totals = Counter(row.label for row in since)
    wrongs = Counter(row.label for row in since if row.wrong)
    level = _BLAMED / max(1, len(totals))
    found = {
        label: (totals[label], wrong)
        for label, wrong in wrongs.items()
        if wrong >= 3 and _tail(totals[label], wrong, 1 - target) <= level
    }
    if not found or 2 * sum(n for n, _ in found.values()) > len(since):
        return {}
    rest, detector = Counts(), Detector(target)
    for row in since:
        if row.label not in found:
            rest.add(row.base / row.probability, row.wrong)
            detector.update(row.base / row.probability, row.wrong)
    quiet = log_evidence_against(rest, target) < log(1 / rules.alpha) / 2
    return found if quiet and detector.log_value < log(rules.run_length) / 2 else {}


def _change(rows: Sequence[Comparison], target: float) -> int:
    """Where agreement most likely fell: the start of the stretch up to now that speaks most for a fall (CUSUM)."""
    alpha = 1 - target
    fallen = min(0.5, 3 * alpha)
    right, wrong = log1p(-fallen) - log1p(-alpha), log(fallen / alpha)
    best, total, start = 0.0, 0.0, 0
    for index in range(len(rows) - 1, -1, -1):
        total += wrong if rows[index].wrong else right
        if total > best:
            best, start = total, index
    return start


def _tail(n: int, k: int, rate: float) -> float:
    """P(X >= k), X binomial over n trials."""
    if n <= 60:
        return sum(comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k, n + 1))
    terms = (
        exp(lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) + i * log(rate) + (n - i) * log1p(-rate))
        for i in range(k, n + 1)
    )
    return min(1.0, sum(terms))


def _suspect_labels(
    project: ProjectState, policy: PolicyState, earlier: Earlier, rules: Rules, now: float
) -> list[Move]:
    """Labels that have gone wrong while the policy as a whole has not."""
    watch = policy.watch
    if watch is None:
        return []
    level = log(rules.run_length * max(1, policy.n_labels))
    crossed = [label for label, detector in watch.labels.items() if detector.log_value >= level]
    if not crossed:
        return []
    rows = earlier(policy.version, "audit", min(_ROWS, watch.counts.n))
    said = {row.teacher for row in rows[-200:]}
    labels, gone = {}, True
    for label in crossed:
        mine = [row.wrong for row in rows if row.label == label]
        labels[label] = (len(mine), sum(mine))
        gone = gone and label not in said
    cause = "label vanished" if gone else "label"
    if _too_many(policy, labels):
        return [demote(project, policy, cause, now, {"labels": sorted(policy.withheld.keys() | labels.keys())})]
    return _withhold(policy, labels, cause, now, {})


def _unseen(project: ProjectState, policy: PolicyState, report: Report, now: float) -> list[Move]:
    """The teacher says something that is no label: what the surrogate makes of such texts is withheld."""
    for version, said, text, guess in report.unseen:
        if version == policy.version:
            if said not in policy.unseen and len(policy.unseen) >= _MOST_UNSEEN:
                policy.unseen.pop(min(policy.unseen, key=lambda word: len(policy.unseen[word])))
            texts = policy.unseen.setdefault(said, {})
            if len(texts) < _MOST_UNSEEN_TEXTS:
                texts[text] = guess or ""
    moves = []
    for said, texts in policy.unseen.items():
        if len(texts) < _UNSEEN_TEXTS:
            continue
        guesses = Counter(guess for guess in texts.values() if guess and guess not in policy.withheld)
        labels = {guess: (n, n) for guess, n in guesses.items() if n >= _UNSEEN_GUESSES}
        evidence = {"answer": said[:100], "texts": len(texts)}
        if _too_many(policy, labels):
            return [go_to_shadow(project, policy, "new label", GATEWAY, now, evidence)]
        if labels:
            moves += _withhold(policy, labels, "new label", now, evidence)
    return moves


def _returned(policy: PolicyState, rules: Rules, now: float) -> list[Move]:
    """What has proved itself while it was put off: labels, prompts, looser agreements."""
    level, moves = log(1 / rules.delta), []
    for label, held in list(policy.withheld.items()):
        if log_evidence_for(held.trial, policy.target) >= level:
            del policy.withheld[label]
            shown = {"label": label, "comparisons": held.trial.n, "disagreements": held.trial.wrong}
            moves.append(Move("", policy.version, State.LIVE, State.LIVE, "label returned", GATEWAY, now, shown))
    if log_evidence_for(policy.trial, policy.target) >= level:
        shown = {"comparisons": policy.trial.n, "disagreements": policy.trial.wrong}
        policy.family.merge(policy.strangers)
        forget_strangers(policy)
        moves.append(Move("", policy.version, State.LIVE, State.LIVE, "prompt accepted", GATEWAY, now, shown))
    looser = [rung for rung in _proved(policy, rules) if rung < _rung(policy)] if policy.agreement else []
    if looser:
        policy.agreement = policy.rungs[looser[0]] if looser[0] else None
        shown = _shown(policy, looser[0])
        moves.append(Move("", policy.version, State.LIVE, State.LIVE, "proved at less", GATEWAY, now, shown))
    if moves:
        begin_watch(policy)
    return moves
