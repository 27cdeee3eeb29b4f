"""How many of the handled calls are audited."""

import random

from policies import lifecycle
from policies.audit_rate import Spent, settle
from policies.evidence import compare
from policies.lifecycle import Offer
from policies.rules import AuditRules, Rules
from policies.states import ProjectState
from policies.types import Comparison


def _live() -> ProjectState:
    project = ProjectState()
    lifecycle.offer(project, Offer("v1", True, 0.95, 0.9, (0.95,), 10, 0.01), 0.0)
    lifecycle.promote(project, "v1", "test", 1.0)
    return project


def _mean_rate(agreement: float, audits: int = 2_000, seed: int = 0) -> float:
    """The rate on average while so many audits come in, long after promotion."""
    draw, project, rates = random.Random(seed), _live(), []
    for number in range(audits):
        wrong = draw.random() >= agreement
        stretch = str(project.policies["v1"].stretch)
        compare(
            project, [Comparison(str(number), "p", "v1", "audit", 0.0, "x", "x", wrong, 0.02, 0.02, detail=stretch)]
        )
        settle(project, Spent(), AuditRules(daily_calls=10**9), Rules(), 1e6 + number)
        rates.append(project.rate)
    return sum(rates) / len(rates)


def test_a_policy_that_keeps_its_promise_is_audited_as_often_as_was_asked_for() -> None:
    """Its detector holds half of what an alarm takes, which is no suspicion."""
    assert max(_mean_rate(agreement) for agreement in (0.97, 0.98, 0.99)) < 1.1 * 0.02


def test_evidence_against_a_policy_has_it_audited_more() -> None:
    """Up to ten times as often."""
    assert _mean_rate(0.90, 250) > 2 * 0.02
