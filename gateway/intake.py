"""What one process has seen of one project's calls, until it is handed in.

Counted on the event loop, without locks: each counter is written there and read by the one thread that hands in, which
remembers how far it has got. What could not be handed in is handed in with the next.
"""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.budget import Budget
from gateway.epochs import Epochs
from gateway.observing import Found
from policies.audit_rate import Spent, lease
from policies.evidence import Report
from policies.lifecycle import TRUSTED_CALLS
from policies.prompts import Prompt
from policies.states import ProjectState
from policies.types import Comparison, Reason

MOST_WAITING = 10_000
"""Comparisons that wait for the store; the oldest are dropped then."""

_REPORT_SECONDS = 0.5
_IDLE_REPORT_SECONDS = 5.0  # without anything seen: rates and budgets still move
_MOST_UNSEEN = 500
_MOST_PROMPTS = 20  # one that is like no other costs the store's next change milliseconds

# Reasons under which the live policy was asked.
_DECIDED = frozenset({"", Reason.UNCERTAIN, Reason.NOVEL, Reason.LABEL, Reason.ARGUMENTS})
_STRANGE = frozenset({Reason.PROMPT, Reason.MODEL})


@dataclass(frozen=True, slots=True)
class Handed:
    """What is handed in at a time. `counts` is how far the counting had got."""

    comparisons: Sequence[Comparison]
    report: Report
    spent: Spent
    counts: Counter[str]
    trusted: int


class Intake:
    """One project's. `budget` is that of its audits, None where there are none."""

    def __init__(self, budget: Budget | None, epochs: Epochs) -> None:
        self.budget = budget
        self.epochs = epochs
        self.rate = 0.0
        """The share of handled calls that is audited now. Read on the event loop, set by the thread."""
        self._counts: Counter[str] = Counter()
        self._counted: Counter[str] = Counter()
        self._trusted: set[str] = set()
        self._trusting: str | None = None  # the version that answers on trust
        self._trusted_calls = self._trusted_taken = 0
        self._on_trust: deque[tuple[str, Prompt]] = deque()
        self._comparisons: list[Comparison] = []
        self._report = Report()
        self._usd = 0.0
        self._seen = False
        self._due = 0.0

    def count(self, reason: str, calls: int) -> None:
        """Calls have been decided on, under this reason ("" where they were answered)."""
        self._counts[reason] += calls

    def trusts(self, version: str, prompt: Prompt) -> bool:
        """Whether a version takes a call with this prompt on trust: its first calls, and those like them.

        Also where the store is away and nobody says that trust is over. Cheap for a prompt that has come by before.
        """
        if version != self._trusting:
            self._trusting, self._trusted, self._trusted_calls, self._trusted_taken = version, set(), 0, 0
        self._trusted_calls += 1
        if prompt.fingerprint in self._trusted:
            return True
        if self._trusted_calls > TRUSTED_CALLS:
            return False
        self._trusted.add(prompt.fingerprint)
        self._on_trust.append((version, prompt))
        return True

    def audit_rate(self, now: float) -> float:
        """The share at which a handled call of this moment is audited: without budget it is not, whatever the rate."""
        if not self.rate:
            return 0.0
        if self.budget is None or not self.budget.left:
            self.epochs.missed(now)
            return 0.0
        return self.rate

    def add(self, found: Found) -> None:
        """What observed calls have come to."""
        self.epochs.hold(found.held)
        self._comparisons += found.comparisons
        self._report = _joined(self._report, found.report)
        self._seen = True

    def is_due(self, *, last: bool) -> bool:
        """Whether there is something to hand in now."""
        self._comparisons += self.epochs.settled()
        seen = bool(self._seen or self._comparisons or self._on_trust) or self._counts.copy() != self._counted
        if last:
            return seen or (self.budget is not None and self.budget.left > 0)
        return time.monotonic() >= self._due + (_REPORT_SECONDS if seen else _IDLE_REPORT_SECONDS)

    def hand_in(self, state: ProjectState, *, last: bool) -> Handed:
        """All that is there, of a project that stood so while it was seen; `last`: what is left of budgets as well."""
        self._due = time.monotonic()
        while self._on_trust and len(self._report.prompts) < _MOST_PROMPTS:
            self._report.prompts.append(self._on_trust.popleft())
        trusted = self._trusted_calls
        counts = self._counts.copy()
        new = counts - self._counted
        unused = wanted = 0
        if self.budget is not None:
            self._usd += self.budget.take()[1]
            unused = self.budget.withdraw() if last else 0
            wanted = 0 if last else max(0, lease(state, state.audits) - self.budget.left)
        report = _with_counts(self._report, new, state)
        if self._trusting is not None:
            report.trusted = {self._trusting: trusted - self._trusted_taken}
        spent = Spent(new[""], self._usd, wanted, unused)
        return Handed(self._comparisons[-MOST_WAITING:], report, spent, counts, trusted)

    def handed_in(self, handed: Handed, granted: int) -> None:
        """The store has it, and grants so many audits."""
        self._comparisons, self._report, self._usd, self._seen = [], Report(), 0.0, False
        self._counted, self._trusted_taken = handed.counts, handed.trusted
        if self.budget is not None and granted:
            self.budget.grant(granted)

    def drop(self) -> None:
        """Forget what has been seen: nobody is to learn anything from it."""
        self._comparisons, self._report, self._seen = [], Report(), False
        self._on_trust.clear()
        self._counted = self._counts.copy()


def _with_counts(report: Report, new: Counter[str], state: ProjectState) -> Report:
    """The report, with the calls that were counted since the last one."""
    live = state.serving
    if live is None:
        return report
    decided = sum(n for reason, n in new.items() if reason in _DECIDED)
    return replace(
        report,
        decided=report.decided | {live.version: (decided, new[Reason.NOVEL])},
        known=decided,
        strange=sum(n for reason, n in new.items() if reason in _STRANGE),
        model=new[Reason.MODEL],
    )


def _joined(report: Report, other: Report) -> Report:
    """One report of two."""
    decided = dict(report.decided)
    for version, (calls, novel) in other.decided.items():
        before = decided.get(version, (0, 0))
        decided[version] = before[0] + calls, before[1] + novel
    teachers = dict(report.teachers)
    for name, answers in other.teachers.items():
        teachers[name] = teachers.get(name, 0) + answers
    return Report(
        decided,
        (report.prompts + other.prompts)[:_MOST_PROMPTS],
        (report.strangers + other.strangers)[:_MOST_PROMPTS],
        teachers=teachers,
        unseen=(report.unseen + other.unseen)[-_MOST_UNSEEN:],
    )
