"""Projects as the commands and the admin API see them: what is shown, what is moved, and what is not."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from math import log
from pathlib import Path
from typing import Any

import pytest

from policies.errors import LifecycleError, StoreError, UnknownPolicy
from policies.lifecycle import Offer, offer
from policies.projects import Projects, moment, read
from policies.record import Record
from policies.rules import AuditRules, Rules
from policies.states import ProjectState

NOW = 1_800_000_000.25


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store."""
    return f"sqlite:///{tmp_path}/s.db"


@pytest.fixture
def projects(url: str) -> Iterator[Projects]:
    """A store with a project `bank`: v1 has been live, v2 is, v3 was refused; and `new`, which has nothing yet."""

    def step(document: dict[str, Any], *_: object) -> tuple[dict[str, Any], list[Any]]:
        state = read(document)
        state.rules, state.audits = Rules("immediate", delta=0.1, alpha=0.01, run_length=1_000.0), AuditRules(0.5)
        for version in ("v1", "v2", "v3"):
            certified = version != "v3"
            rungs = (0.9, 0.95, 0.99) if certified else ()
            offer(state, Offer(version, certified, 0.9, 0.9, rungs, 8, 0.01, None if certified else "too few"), NOW)
        return state.to_json(), []

    with contextlib.closing(Record.open(url)) as record:
        record.change("bank", [], step)
        record.change("new", [], lambda *_: (ProjectState().to_json(), []))
    with contextlib.closing(Projects.open(url)) as found:
        yield found


def test_a_summary_has_what_figures_are_held_against(projects: Projects) -> None:
    """The limits are those of the project's rules, not the defaults."""
    assert projects.names() == ["bank", "new"]
    summaries = projects.summaries()
    assert summaries["bank"] == projects.summary("bank")
    assert (summaries["new"]["state"], summaries["new"]["policies"]) == ("observing", [])
    found = summaries["bank"]
    assert (found["state"], found["live"], found["rollback_to"], found["promotion"]) == (
        "live",
        "v2",
        "v1",
        "immediate",
    )
    assert [policy["version"] for policy in found["policies"]] == ["v3", "v2", "v1"]
    live = found["policies"][1]["live"]
    assert (live["demoted_at"], live["detector_at"]) == (round(log(100), 3), round(log(1_000), 3))
    assert found["policies"][1]["since"] == moment(NOW) == "2027-01-15T08:00:00.250Z"
    assert datetime.fromisoformat(moment(NOW)).timestamp() == NOW


def test_in_shadow_each_agreement_has_what_it_needs(projects: Projects, url: str) -> None:
    """Half of the risk is the loosest agreement's, the rest is shared by the others."""

    def step(document: dict[str, Any], *_: object) -> tuple[dict[str, Any], list[Any]]:
        state = read(document)
        state.rules = Rules(delta=0.1)
        offer(state, Offer("v4", True, 0.9, 0.9, (0.9, 0.95, 0.99), 8, 0.01), NOW)
        return state.to_json(), []

    with contextlib.closing(Record.open(url)) as record:
        record.change("bank", [], step)
    found = projects.summary("bank")
    assert (found["live"], found["shadow"]) == ("v2", "v4")
    assert [row["held_to"] for row in found["policies"][0]["shadow"]] == [0.9, 0.95, 0.99]
    needed = [row["promoted_at"] for row in found["policies"][0]["shadow"]]
    assert needed == [round(log(1 / share), 3) for share in (0.05, 0.025, 0.025)]


def test_every_change_is_a_move_with_who_made_it(projects: Projects) -> None:
    """The project's name stands in each; they come oldest first, as many as are asked for."""
    assert projects.rollback("bank", None, "anna")["live"] == "v1"
    assert projects.pause("bank", "anna")["state"] == "paused"
    assert projects.resume("bank", "bert")["state"] == "live"
    assert projects.promote("bank", "v2", "bert")["rollback_to"] == "v1"
    moves = projects.moves("bank")
    assert [(move["version"], move["new"], move["by"]) for move in moves] == [
        ("v2", "retired", "anna"),
        ("v1", "live", "anna"),
        ("v1", "paused", "anna"),
        ("v1", "live", "bert"),
        ("v1", "retired", "bert"),
        ("v2", "live", "bert"),
    ]
    assert {move["project"] for move in moves} == {"bank"}
    assert projects.moves("bank", 2) == moves[-2:]
    assert projects.moves("new") == []


@pytest.mark.parametrize(
    ("change", "arguments", "kind", "told"),
    [
        ("promote", ("bank", None, "me"), LifecycleError, "v3 was refused by the gate and cannot be promoted: too few"),
        ("promote", ("bank", "v2", "me"), LifecycleError, "v2 is live already"),
        ("promote", ("bank", "v9", "me"), UnknownPolicy, "there is no policy 'v9'; known: v3, v2, v1"),
        ("promote", ("nobody", None, "me"), UnknownPolicy, "the store knows no project 'nobody'; known: bank, new"),
        ("promote", ("new", None, "me"), LifecycleError, "there is no policy yet"),
        ("rollback", ("new", None, "me"), LifecycleError, "nothing to roll back to"),
        ("rollback", ("bank", "v3", "me"), LifecycleError, "'v3' is no policy that was live before"),
        ("rollback", ("bank", "v9", "me"), UnknownPolicy, "'v9' is no policy that was live before"),
        ("resume", ("bank", "me"), LifecycleError, "is not paused"),
        ("pause", ("nobody", "me"), UnknownPolicy, "knows no project"),
        ("summary", ("nobody",), UnknownPolicy, "knows no project"),
        ("moves", ("nobody",), UnknownPolicy, "knows no project"),
    ],
)
def test_what_cannot_be_moved_says_why_and_stays(
    projects: Projects, change: str, arguments: tuple[str | None, ...], kind: type[LifecycleError], told: str
) -> None:
    """What is not there is told apart from what may not be."""
    before = projects.summaries()
    with pytest.raises(LifecycleError, match=told) as raised:
        getattr(projects, change)(*arguments)
    assert type(raised.value) is kind
    assert projects.summaries() == before
    assert projects.moves("bank") == []


def test_a_document_that_is_none_is_a_fault_of_the_store(projects: Projects, url: str) -> None:
    """Of a newer program, perhaps: it is not guessed at."""
    with contextlib.closing(Record.open(url)) as record:
        record.change("bank", [], lambda document, *_: (document | {"policies": [{"version": "v1"}]}, []))
    for ask in (projects.summaries, lambda: projects.pause("bank", "me"), lambda: projects.summary("bank")):
        with pytest.raises(StoreError, match="a project's document cannot be read"):
            ask()
