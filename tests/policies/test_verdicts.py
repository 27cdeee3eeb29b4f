"""What evidence moves: the cases that need more than the monitors' own tests."""

from collections.abc import Sequence

from policies import lifecycle
from policies.evidence import Report
from policies.lifecycle import Offer
from policies.prompts import Prompt
from policies.rules import Rules
from policies.states import PolicyState, ProjectState, State
from policies.types import Comparison, Move
from policies.verdicts import take


class World:
    """One project with a live policy, fed by hand."""

    def __init__(self, rules: Rules | None = None, *, live: bool = True) -> None:
        self.rules = rules or Rules()
        self.project = ProjectState(rules=self.rules)
        self.rows: list[Comparison] = []
        lifecycle.offer(self.project, Offer("v1", True, 0.95, 0.9, (0.95, 0.99), 20, 0.01), 0.0)
        if live and self.project.live is None:
            lifecycle.promote(self.project, "v1", "ann", 0.0)
        self.policy.openness = 0

    @property
    def policy(self) -> PolicyState:
        return self.project.policies["v1"]

    def compare(
        self, label: str, teacher: str | None, kind: str = "audit", detail: str = "", weight: float = 1.0
    ) -> list[Move]:
        wrong, detail = label != teacher, detail or str(self.policy.stretch)
        made = Comparison(
            str(len(self.rows)), "p", "v1", kind, 0.0, label, teacher, wrong, 0.5, 0.5 * weight, "", detail
        )
        self.rows.append(made)
        return take(self.project, Report(), [made], self._earlier, self.rules, 1.0)

    def report(self, report: Report) -> list[Move]:
        return take(self.project, report, [], self._earlier, self.rules, 1.0)

    def _earlier(self, version: str, kind: str, limit: int) -> Sequence[Comparison]:
        return [row for row in self.rows if row.version == version and row.kind == kind][-limit:]


def test_a_label_that_the_teacher_no_longer_gives_is_withheld() -> None:
    """The policy as a whole may still keep its promise."""
    world, moves = World(), list[Move]()
    for i in range(3_000):
        label = f"l{i % 20}"
        gone = label == "l7" and i > 400
        moves = world.compare(label, "l8" if gone and i % 2 else None if gone else label)
        if moves:
            break
    assert [move.cause for move in moves] == ["label withheld: label vanished"]
    assert moves[0].evidence["label"] == "l7"
    assert list(world.policy.withheld) == ["l7"]
    assert world.policy.state is State.LIVE


def test_a_fall_in_all_labels_demotes_the_policy() -> None:
    """There is nobody to blame."""
    world, moves = World(), list[Move]()
    for i in range(2_000):
        moves = world.compare(f"l{i % 20}", "other" if i > 500 and i % 7 == 0 else f"l{i % 20}")
        if moves:
            break
    assert (moves[0].new, moves[0].cause) == ("demoted", "drift")
    assert world.project.live is None


def test_audits_from_before_a_change_of_what_is_answered_say_nothing_of_it() -> None:
    """They were drawn of other calls: of a label that is withheld by now, or of an earlier life."""
    world = World()
    before = str(world.policy.stretch)
    lifecycle.begin_watch(world.policy)
    assert all(world.compare("a", "b", detail=before) == [] for _ in range(100))
    assert world.policy.watch is not None
    assert world.policy.watch.counts.n == 0


def test_evidence_of_a_policy_that_was_stopped_moves_nothing() -> None:
    """Audits that were under way arrive late."""
    world = World()
    lifecycle.demote(world.project, world.policy, "drift", 1.0, {})
    assert world.compare("a", "b") == []


def test_nobody_stops_what_nobody_watches() -> None:
    """Without an upstream nothing would ever bring it back."""
    world = World(Rules(watched=False))
    assert all(world.compare("a", "b") == [] for _ in range(200))
    assert world.report(Report(decided={"v1": (10_000, 9_000)})) == []
    assert world.project.live == "v1"


def test_a_live_policy_held_to_more_is_let_go_when_less_is_proved() -> None:
    """What it would have answered at its own target goes on being compared."""
    world = World(live=False)
    lifecycle.go_live(world.project, world.policy, 0.99, "test", "ann", 0.0, {})
    moves = list[Move]()
    for i in range(2_000):
        moves = world.compare("a", "a") if i % 2 else world.compare("a", "a", "shadow", "1", 0.5)
        if moves:
            break
    assert [move.cause for move in moves] == ["proved at less"]
    assert world.policy.agreement is None


def test_prompts_that_most_calls_have_and_nobody_knows_send_the_policy_to_shadow() -> None:
    """A few of them do not."""
    world = World()
    world.policy.family.learn(Prompt("a", "f", "gpt", "Sort."))
    assert world.report(Report(known=200, strange=20)) == []
    (move,) = world.report(Report(known=5, strange=200))
    assert (move.new, move.cause) == ("shadow", "prompt")


def test_another_model_asked_for_is_said_to_be_one() -> None:
    """The way back is the same."""
    (move,) = World().report(Report(known=5, strange=200, model=190))
    assert move.cause == "model"


def test_another_build_of_the_teacher_matters_unless_the_settings_say_otherwise() -> None:
    """A `system_fingerprint` may change without the model."""
    for builds, expected in ((True, ["teacher"]), (False, [])):
        world = World(Rules(builds=builds))
        world.policy.teachers.known = {"gpt > gpt-4.1 fp_1": 500}
        moves = world.report(Report(teachers={("gpt", "gpt-4.1", "fp_2"): 30}))
        assert [move.cause for move in moves] == expected


def test_answers_to_another_model_say_nothing_of_the_teacher() -> None:
    """Such a call is not one that the policy answers."""
    world = World()
    world.policy.teachers.known = {"gpt > gpt-4.1 fp_1": 500}
    assert world.report(Report(teachers={("gpt-mini", "gpt-mini", "fp_9"): 100})) == []


def test_a_few_strange_texts_are_no_change() -> None:
    """Somebody tries something out; a share of the traffic is another matter."""
    world = World()
    assert world.report(Report(decided={"v1": (60, 60)})) == []
    moves = list[Move]()
    for _ in range(20):
        moves = moves or world.report(Report(decided={"v1": (100, 30)}))
    assert [move.cause for move in moves] == ["novelty"]


def test_a_candidate_of_promotion_manual_is_never_promoted_by_evidence() -> None:
    """It may be stopped by it."""
    world = World(Rules("manual"), live=False)
    assert all(world.compare("a", "a", "shadow", "11") == [] for _ in range(1_000))
    assert world.policy.state is State.SHADOW
