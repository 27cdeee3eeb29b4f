"""Labels that have gone wrong, told apart from a policy that has: what is withheld, and why.

No promise hangs on which labels are chosen: what is withheld is not answered, and what is left is measured anew.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import comb, exp, lgamma, log, log1p
from typing import Any

from policies.evidence import Report
from policies.lifecycle import GATEWAY, demote, go_to_shadow
from policies.monitor import Counts, Detector, log_evidence_against
from policies.rules import Rules
from policies.states import PolicyState, ProjectState, State, Withheld
from policies.types import Comparison, Move

Earlier = Callable[[str, str, int], Sequence[Comparison]]
Found = dict[str, tuple[int, int]]
"""Labels, with their audits and disagreements."""

ROWS = 2_000
"""Audits that are looked through for labels to blame."""

_UNSEEN_TEXTS, _UNSEEN_GUESSES, _MOST_UNSEEN, _MOST_UNSEEN_TEXTS = 5, 2, 20, 60
_UNSEEN_SHARE = 0.1  # of the texts that get a new answer: less of them is what a surrogate says of anything strange
_MOST_WITHHELD = 1 / 3  # of the labels; then it is the policy that is wrong
_BLAMED = 0.01  # chance that a label is blamed for what is no fault of its own, over all labels


def too_many(policy: PolicyState, labels: Found) -> bool:
    return len(policy.withheld.keys() | labels.keys()) > max(1.0, _MOST_WITHHELD * policy.n_labels)


def withhold(policy: PolicyState, labels: Found, cause: str, now: float, evidence: dict[str, Any]) -> list[Move]:
    moves = []
    for label, (n, wrong) in labels.items():
        policy.withheld[label] = Withheld(cause, now)
        if policy.watch is not None:
            policy.watch.labels.pop(label, None)  # it has done its work
        shown = evidence | {"label": label, "label_audits": n, "label_disagreements": wrong}
        moves.append(Move("", policy.version, State.LIVE, State.LIVE, f"label withheld: {cause}", GATEWAY, now, shown))
    return moves


def blamed(rows: Sequence[Comparison], target: float, rules: Rules) -> Found:
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


def suspects(project: ProjectState, policy: PolicyState, earlier: Earlier, rules: Rules, now: float) -> list[Move]:
    """Labels that have gone wrong while the policy as a whole has not."""
    watch = policy.watch
    if watch is None:
        return []
    level = log(rules.run_length * max(1, policy.n_labels))
    crossed = [label for label, detector in watch.labels.items() if detector.log_value >= level]
    if not crossed:
        return []
    rows = earlier(policy.version, "audit", min(ROWS, watch.counts.n))
    said = {row.teacher for row in rows[-200:]}
    labels, gone = {}, True
    for label in crossed:
        mine = [row.wrong for row in rows if row.label == label]
        labels[label] = (len(mine), sum(mine))
        gone = gone and label not in said
    cause = "label vanished" if gone else "label"
    if too_many(policy, labels):
        return [demote(project, policy, cause, now, {"labels": sorted(policy.withheld.keys() | labels.keys())})]
    return withhold(policy, labels, cause, now, {})


def unseen(project: ProjectState, policy: PolicyState, report: Report, now: float) -> list[Move]:
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
        if len(texts) < _UNSEEN_TEXTS or policy.foreign.get(said, 0) >= _UNSEEN_TEXTS:
            continue
        guesses = Counter(guess for guess in texts.values() if guess and guess not in policy.withheld)
        enough = max(_UNSEEN_GUESSES, _UNSEEN_SHARE * len(texts))
        labels = {guess: (n, n) for guess, n in guesses.items() if n >= enough}
        evidence = {"answer": said[:100], "texts": len(texts)}
        if too_many(policy, labels):
            return [go_to_shadow(project, policy, "new label", GATEWAY, now, evidence)]
        if labels:
            moves += withhold(policy, labels, "new label", now, evidence)
    return moves


def hear_in_shadow(policy: PolicyState, report: Report) -> None:
    """Answers that are no label and come while the policy is compared on every call: they are part of its evidence."""
    for version, said, _, _ in report.unseen:
        if version == policy.version and (said in policy.foreign or len(policy.foreign) < _MOST_UNSEEN):
            policy.foreign[said] = policy.foreign.get(said, 0) + 1


def forget_unseen(policy: PolicyState, label: str) -> None:
    """A label is answered again: the texts that it was withheld for are no reason to do so once more."""
    for said, texts in list(policy.unseen.items()):
        policy.unseen[said] = {text: guess for text, guess in texts.items() if guess != label}
