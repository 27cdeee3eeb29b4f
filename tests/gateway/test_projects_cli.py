"""The commands that show where projects stand and that move them, as a user runs them."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from policies.lifecycle import Offer, offer
from policies.projects import Projects, read
from policies.record import Record
from policies.rules import AuditRules, Rules
from policies.states import ProjectState, Withheld
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ROOT, GatewayProcess, ThreadedGateway, make_settings
from tests.versions import Versions

CHANGES = ("promote", "rollback", "pause", "resume")
SHOWN = ("policies", "status", "moves")
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def _tracer(folder: Path, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", *map(str, arguments)]
    environ = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environ}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def _said(folder: Path, *arguments: str | Path) -> str:
    """What a command that works prints."""
    done = _tracer(folder, *arguments, TRACER_STORE="sqlite:///s.db")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert all(len(line) <= 100 for line in done.stdout.splitlines() if "{" not in line), done.stdout
    return done.stdout


def _refused(folder: Path, *arguments: str | Path, store: str = "sqlite:///s.db") -> str:
    """What a command that does not work says, in one line."""
    done = _tracer(folder, *arguments, TRACER_STORE=store)
    assert (done.returncode, done.stdout) == (1, ""), done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def _make(folder: Path, project: str, change: Callable[[ProjectState], None]) -> None:
    """Have a project of the store in `folder` stand so."""

    def step(document: dict[str, Any], *_: object) -> tuple[dict[str, Any], list[Any]]:
        state = read(document)
        change(state)
        return state.to_json(), []

    with contextlib.closing(Record.open(f"sqlite:///{folder}/s.db")) as record:
        record.change(project, [], step)


def _offer(state: ProjectState, version: str, promotion: str = "immediate", *, certified: bool = True) -> None:
    state.rules = Rules(promotion)
    rungs = (0.95, 0.97) if certified else ()
    reason = None if certified else "200 different inputs cannot prove 0.95"
    offer(state, Offer(version, certified, 0.95, 0.9, rungs, 8, 0.01, reason), NOW)


def _live(state: ProjectState) -> None:
    _offer(state, "v1")
    watch = state.policies["v1"].watch
    assert watch is not None
    watch.counts.add(1.0, False, 400)
    watch.counts.add(1.0, True, 12)
    state.policies["v1"].withheld["card lost"] = Withheld("drift", NOW)
    _offer(state, "v2", "shadow")
    state.policies["v2"].trials[0].add(1.0, False, 60)


@pytest.mark.parametrize("command", ["projects", "policies", "status", "moves"])
def test_a_store_that_is_not_there_is_told_and_not_made(tmp_path: Path, command: str) -> None:
    """Looking makes nothing."""
    assert "s.db: there is no such store" in _refused(tmp_path, command)
    assert list(tmp_path.iterdir()) == []


def test_status_says_what_is_known_of_a_live_policy(tmp_path: Path) -> None:
    """The bound, what is against it, what waits in shadow and how long still, what is withheld, and what to do."""
    _make(tmp_path, "bank", _live)
    lines = _said(tmp_path, "status").splitlines()
    assert lines[0] == "bank: live since 2027-01-15T08:00:00Z (promotion: immediate)"
    shown = {line[2:].partition("  ")[0]: line[13:].strip() for line in lines[1:] if line[2] != " "}
    assert (shown["policy"], shown["target"]) == ("v1", "0.95")
    assert shown["agreement"] == (
        ">= 0.941 (95 % sure at all times), estimate 0.971, from 412 audits, 12 disagreements"
    )
    assert shown["evidence"].endswith("of what would demote")
    assert shown["audits"] == "0 % of answered calls; 0 of 2,000 today"
    assert shown["withheld"].startswith("card lost (drift, since 2027-01-15T08:00:00Z): 0 comparisons, evidence 0.0 of")
    assert shown["shadow"] == "v2"
    assert "at 0.95: 60 comparisons, agreement 1.000, evidence 2.2 of 3.7 needed" in "\n".join(lines)
    assert "at 0.97: 0 comparisons, evidence 0.0 of 3.7 needed" in "\n".join(lines)
    assert shown["next"] == "tracer pause bank"


def test_what_evidence_is_held_against_are_the_gateways_settings(tmp_path: Path, policy_folder: Path) -> None:
    """The gateway writes them down when it starts, also of a project that has no policy yet."""
    tree = {
        "projects": {
            "bank": {
                "policy": str(policy_folder),
                "promotion": "manual",
                "proof": {"promotion_risk": 0.2, "demotion_risk": 0.01, "false_alarm_audits": 500},
                "audit": {"daily_calls": 77, "daily_usd": 2.5, "price_input": 1.0, "price_output": 1.0},
            },
            "new": {"policy": str(tmp_path / "absent")},
        },
        "store": {"url": f"sqlite:///{tmp_path}/s.db", "spool": f"{tmp_path}/spool"},
    }
    with ThreadedGateway(make_settings(tmp_path, tree, "http://127.0.0.1:9/v1")):
        pass
    said = _said(tmp_path, "status", "bank")
    assert "0 comparisons, evidence 0.0 of 1.6 needed" in said
    assert "  next       wait" not in said
    assert "  next       tracer promote bank" in said
    found = json.loads(_said(tmp_path, "status", "bank", "--json"))
    assert found["promotion"] == "manual"
    assert found["policies"][0]["shadow"][0]["demoted_at"] == 4.605
    assert (found["audits_today"]["daily_calls"], found["audits_today"]["daily_usd"]) == (77, 2.5)
    assert _said(tmp_path, "status", "new").startswith("new: observing\n")
    assert "\nnew      observing  -" in _said(tmp_path, "projects")
    assert "say which project is meant; the store knows bank, new" in _refused(tmp_path, "status")
    (tmp_path / "c.yaml").write_text(
        "store: {url: 'sqlite:///s.db'}\nupstreams: {a: {base_url: http://a, api_key_env: NO_SUCH}}"
    )
    assert json.loads(_tracer(tmp_path, "status", "new", "--json", "--config", "c.yaml").stdout)["state"] == "observing"
    assert "c.yaml" in _refused(tmp_path, "status", "--config", "d/c.yaml")


def test_rules_outlive_the_store(tmp_path: Path) -> None:
    """What is written down comes back as it was."""
    rules, audits = Rules("manual", 0.1, 0.2, 300.0, False, False), AuditRules(0.5, 0.6, 1.0, 0.7, 3, 4.5)

    def change(state: ProjectState) -> None:
        state.rules, state.audits = rules, audits

    _make(tmp_path, "bank", change)
    with contextlib.closing(Record.open(f"sqlite:///{tmp_path}/s.db")) as record:
        found = record.document("bank")
    assert found is not None
    state = read(found[1])
    assert (state.rules, state.audits) == (rules, audits)


def test_a_person_promotes_rolls_back_pauses_and_resumes(tmp_path: Path) -> None:
    """One line each, that says where the project stands now; every move has who made it."""
    _make(tmp_path, "bank", _live)
    assert _said(tmp_path, "promote", "bank").startswith("bank: live since ")
    lines = _said(tmp_path, "policies").splitlines()
    assert [line.split()[:2] for line in lines[1::2]] == [["v2", "live"], ["v1", "retired"]]
    assert lines[2::2] == ["    promoted", "    superseded by v2"]
    found = json.loads(_said(tmp_path, "policies", "--json"))
    assert [(p["version"], p["state"]) for p in found] == [("v2", "live"), ("v1", "retired")]
    assert "tracer rollback bank (to v1)" in _said(tmp_path, "status")
    assert "(rolled back to" in _said(tmp_path, "rollback", "bank")
    assert _said(tmp_path, "pause", "bank") == "bank: paused; v1 is live\n"
    assert "next       tracer resume bank" in _said(tmp_path, "status")
    assert json.loads(_said(tmp_path, "resume", "bank", "--json"))["live"] == "v1"
    lines = [line for line in _said(tmp_path, "moves").splitlines() if not line.startswith(" ")]
    assert len(lines) == 6
    assert all("(command:" in line for line in lines)
    assert "paused -> live: resumed" in lines[-1]
    moves = json.loads(_said(tmp_path, "moves", "--json", "--limit", "2"))
    assert [(move["old"], move["new"]) for move in moves] == [("live", "paused"), ("paused", "live")]
    assert _said(tmp_path, "projects").splitlines()[1].split()[:3] == ["bank", "live", "v1"]


def _document(folder: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / "s.db")) as connection:
        found = connection.execute("SELECT project, revision, document FROM projects").fetchall()
        return [*found, connection.execute("SELECT count(*) FROM moves").fetchall()]


def test_what_cannot_be_moved_says_why_and_stays(tmp_path: Path) -> None:
    """A refused policy, an unknown one, an unknown project, nothing to go back to, nothing to resume."""
    _make(tmp_path, "bank", lambda state: _offer(state, "v1", certified=False))
    before = _document(tmp_path)
    for arguments, told in (
        (["promote", "bank"], "v1 was refused by the gate and cannot be promoted: 200 different inputs cannot prove"),
        (["promote", "bank", "v1"], "v1 was refused by the gate and cannot be promoted"),
        (["promote", "bank", "v7"], "there is no policy 'v7'; known: v1"),
        (["promote", "nobody"], "the store knows no project 'nobody'; known: bank"),
        (["rollback", "bank"], "there is nothing to roll back to"),
        (["rollback", "bank", "v1"], "'v1' is no policy that was live before"),
        (["resume", "bank"], "the project is not paused"),
        (["status", "nobody"], "the store knows no project 'nobody'"),
        (["moves", "nobody"], "the store knows no project 'nobody'"),
    ):
        assert told in _refused(tmp_path, *arguments)
    assert _document(tmp_path) == before
    said = _said(tmp_path, "status")
    assert "bank: refused since 2027-01-15T08:00:00Z (refused by the gate)" in said
    assert "refused 200 different inputs cannot prove 0.95" in " ".join(said.split())


def _unreadable(folder: Path) -> str:
    (folder / "s.db").write_bytes(b"no database at all " * 100)
    return "file is not a database"


def _newer(folder: Path) -> str:
    with contextlib.closing(sqlite3.connect(folder / "s.db")) as connection, connection:
        table = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%version%'").fetchone()[0]
        connection.execute(f"UPDATE {table} SET version_num = '9999'")
    return "made by a newer program"


def _damaged(folder: Path) -> str:
    with contextlib.closing(sqlite3.connect(folder / "s.db")) as connection, connection:
        connection.execute("UPDATE projects SET document = '{\"live\": 3'")
    return "is damaged"


def _later(folder: Path) -> str:
    with contextlib.closing(sqlite3.connect(folder / "s.db")) as connection, connection:
        connection.execute('UPDATE projects SET document = \'{"live": "v1"}\'')
    return "a project's document cannot be read"


@pytest.mark.parametrize("spoil", [_unreadable, _newer, _damaged, _later])
def test_a_store_that_cannot_be_used_is_told_and_left_alone(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    """Corrupt, of a newer program, or with a document that is none: one line, exit 1."""
    _make(tmp_path, "bank", _live)
    told = spoil(tmp_path)
    before = (tmp_path / "s.db").read_bytes()
    for command in (*SHOWN, *CHANGES):
        assert told in _refused(tmp_path, command, "bank")
    assert (tmp_path / "s.db").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_a_store_that_is_read_only_is_told(tmp_path: Path) -> None:
    """Nothing can be changed; what can be read is."""
    _make(tmp_path, "bank", _live)
    (tmp_path / "s.db").chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        for change in CHANGES:
            assert "readonly" in _refused(tmp_path, change, "bank").replace("-", "")
    finally:
        tmp_path.chmod(0o700)


def test_a_store_that_another_holds_for_long_is_told(tmp_path: Path) -> None:
    """Within the time a write waits for another's."""
    _make(tmp_path, "bank", _live)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "database is locked" in _refused(tmp_path, "pause", "bank", store="sqlite:///s.db?timeout=0.2")
    assert _said(tmp_path, "status").startswith("bank: live")


@pytest.mark.parametrize("url", ["mysql://a/b", "nonsense", "sqlite://"])
def test_a_url_of_no_store_is_told(tmp_path: Path, url: str) -> None:
    """In one line."""
    assert "store" in _refused(tmp_path, "projects", store=url)


def test_a_command_moves_a_running_gateway_within_a_second(
    tmp_path: Path, versions: Versions, teacher: ScriptedTeacher
) -> None:
    """The banner says what is in shadow; a promotion, a pause and a rollback reach it without a restart."""
    tree = f"""
store: {{url: "sqlite:///{tmp_path}/s.db", spool: "{tmp_path}/spool"}}
server: {{policy_poll_seconds: 0.05}}
upstreams: {{teacher: {{base_url: "{teacher.url}"}}}}
default_upstream: teacher
projects: {{bank: {{policy: "{versions.folder}", teacher: gpt, promotion: manual}}}}
"""
    (tmp_path / "c.yaml").write_text(tree)
    with GatewayProcess(tmp_path, "--config", "c.yaml") as gateway:
        assert "project bank: shadow; forwards to teacher" in gateway.banner
        assert f"{versions.first} is in shadow and answers nothing yet: certified" in gateway.banner

        def answered() -> tuple[str, str]:
            body = {"model": "tracer/bank", "messages": [{"role": "user", "content": versions.text}]}
            headers = httpx.post(f"{gateway.base_url}/chat/completions", json=body).headers
            return headers["x-tracer-reason"], headers["x-tracer-policy"]

        def follows(expected: tuple[str, str], *command: str) -> None:
            _said(tmp_path, *command)
            deadline = time.monotonic() + 1.0
            while answered() != expected:
                assert time.monotonic() < deadline, answered()
                time.sleep(0.01)

        assert answered()[0] == "shadow"
        follows(("none", versions.first), "promote", "bank")
        versions.serve(versions.second)
        deadline = time.monotonic() + 10
        while json.loads(_said(tmp_path, "status", "--json"))["shadow"] != versions.second:
            assert time.monotonic() < deadline
        follows(("none", versions.second), "promote", "bank")
        follows(("none", versions.first), "rollback", "bank")
        follows(("paused", "none"), "pause", "bank")
        follows(("none", versions.first), "resume", "bank")
    with contextlib.closing(Projects.open(f"sqlite:///{tmp_path}/s.db")) as projects:
        assert projects.summary("bank")["live"] == versions.first


@pytest.fixture
def versions(tmp_path: Path, policy_folder: Path) -> Versions:
    """Two versions of one policy."""
    return Versions(tmp_path / "policy", policy_folder)
