"""`tracer traces`: JSONL out of the store, and into it."""

import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from policies.store import Store
from policies.traces import read_traces
from policies.traces_cli import app
from policies.types import AnswerKind, StoredTrace, Trace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/traces.db"


@pytest.fixture
def filled(url: str) -> str:
    first = StoredTrace(id="1", project="bank", input="où est ma carte", teacher="card", ts=1000.0)
    store = Store.open(url)
    store.append(
        [
            first,
            replace(first, id="2", ts=2000.0, sampling_probability=0.05),
            replace(first, id="3", ts=3000.0, training_allowed=False),
            replace(first, id="4", ts=4000.0, project="shop"),
        ]
    )
    store.close()
    return url


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_export_to_standard_output(filled: str) -> None:
    """Export prints the documented JSONL, oldest first; what must not be learned from is counted on stderr."""
    result = run("export", "--store", filled)
    assert result.exit_code == 0
    assert [orjson.loads(line) for line in result.stdout_bytes.splitlines()] == [
        {"input": "où est ma carte", "teacher": "card", "id": "1", "ts": 1000.0},
        {"input": "où est ma carte", "teacher": "card", "id": "2", "ts": 2000.0, "weight": 20.0},
        {"input": "où est ma carte", "teacher": "card", "id": "4", "ts": 4000.0},
    ]
    assert result.stderr == "1 traces left out: their upstream does not allow training on its answers\n"


def test_export_to_a_file(filled: str, tmp_path: Path) -> None:
    """Export writes a file that `fit` reads, narrowed to a project and a time."""
    out = tmp_path / "out.jsonl"
    result = run("export", "--store", filled, "--project", "bank", "--since", "1970-01-01T00:33:20Z", "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert read_traces(out).traces == [Trace("où est ma carte", "card", id="2", ts=2000.0, weight=20.0)]


def test_round_trip(filled: str, tmp_path: Path) -> None:
    """What is exported can be imported into another store, weights included."""
    out, other = tmp_path / "out.jsonl", f"sqlite:///{tmp_path}/other.db"
    run("export", "--store", filled, "--project", "bank", "--out", out)
    result = run("import", out, "--store", other, "--project", "bank")
    assert result.stderr == "2 traces added, 0 already there, 0 bad lines skipped\n"
    again = run("export", "--store", other)
    assert again.stdout_bytes == out.read_bytes()


def test_import_again_adds_nothing(url: str, tmp_path: Path) -> None:
    """Importing a file twice stores it once, equal lines without an id as often as they stand in it."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "a", "label": 1}\n' * 3 + '{"text": "b", "label": 2, "id": "x"}\nbad\n')
    result = run("import", file, "--store", url, "--project", "bank", "--skip-bad")
    assert result.stderr == "4 traces added, 0 already there, 1 bad lines skipped\n"
    result = run("import", file, "--store", url, "--project", "bank", "--skip-bad")
    assert result.stderr == "0 traces added, 4 already there, 1 bad lines skipped\n"
    assert run("count", "--store", url).stdout == "4\n"
    assert run("count", "--store", url, "--project", "none").stdout == "0\n"


def test_tool_calls_travel_with_their_arguments(url: str, tmp_path: Path) -> None:
    """In and out again; calls that differ by arguments alone are two traces, and repeated ones stay as many."""
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    call = '{"input": "a", "teacher": "route", "kind": "tool", "arguments": "%s"}\n'
    rest = '{"input": "a", "teacher": "route"}\n{"input": "a", "teacher": "I cannot", "kind": "other"}\n'
    blank = '{"input": "a", "teacher": " ", "kind": "other"}\n'
    file.write_text(call % "{}" + call % "{ }" + call % "{}" + rest + blank)
    assert run("import", file, "--store", url, "--project", "bank").stderr.startswith("6 traces added")
    assert run("import", file, "--store", url, "--project", "bank").stderr.startswith("0 traces added")
    run("export", "--store", url, "--out", out)
    found = sorted((trace.teacher, trace.kind, trace.arguments or "") for trace in read_traces(out).traces)
    assert found == [
        (" ", AnswerKind.OTHER, ""),
        ("I cannot", AnswerKind.OTHER, ""),
        ("route", AnswerKind.TEXT, ""),
        ("route", AnswerKind.TOOL, "{ }"),
        ("route", AnswerKind.TOOL, "{}"),
        ("route", AnswerKind.TOOL, "{}"),
    ]


def test_ids_of_texts_are_those_of_older_versions(url: str, tmp_path: Path) -> None:
    """A file imported before there were kinds adds nothing when it is imported again."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"input": "a", "teacher": "x"}\n')
    run("import", file, "--store", url, "--project", "bank")
    digest = sha256(b"bank\0a\0x\0" + b"0").hexdigest()[:32]
    assert orjson.loads(run("export", "--store", url).stdout_bytes)["id"] == digest


def test_import_of_many(url: str, tmp_path: Path) -> None:
    """A file of more traces than fit into one transaction is imported whole."""
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f'{{"input": "message {number}", "teacher": "x"}}\n' for number in range(2500)))
    assert run("import", file, "--store", url, "--project", "bank").exit_code == 0
    assert run("count", "--store", url).stdout == "2500\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": ""}', "in.jsonl:1: no 'teacher'"),
        ('{"input": "a", "teacher": "x", "weight": 0.5}', "in.jsonl: a weight of 0.5: the store takes weights of 1"),
        (f'{{"input": "a", "teacher": "x", "id": "{"y" * 300}"}}', "id must have 1 to 255 characters"),
    ],
)
def test_import_errors(url: str, tmp_path: Path, line: str, message: str) -> None:
    """A file that cannot be imported ends with one line of explanation and exit code 1."""
    file = tmp_path / "in.jsonl"
    file.write_text(line + "\n")
    result = run("import", file, "--store", url, "--project", "bank")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_export_errors(url: str, tmp_path: Path) -> None:
    """A store that is not there, and a time that is none, are errors; no store is made by looking for it."""
    assert f"error: {url}: there is no such store" in run("export", "--store", url).stderr
    assert f"error: {url}: there is no such store" in run("count", "--store", url).stderr
    assert "Invalid isoformat string: 'yesterday'" in run("export", "--store", url, "--since", "yesterday").stderr
    assert list(tmp_path.iterdir()) == []


def test_command_line(filled: str) -> None:
    """`tracer traces export` works as a process, takes the store from TRACER_STORE, and stops quietly in a pipe."""
    store = Store.open(filled)
    store.append([StoredTrace(id=f"n{n}", project="p", input="long " * 200, teacher="x", ts=0.0) for n in range(500)])
    store.close()
    command = [sys.executable, "-m", "tracer", "traces", "export"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TRACER_STORE": filled},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert orjson.loads(process.stdout.readline())["id"] == "n0"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_export_says_why_a_call_was_deferred(url: str) -> None:
    """The reason travels with the trace; one that only a later version knows is a deferral, not an error."""
    store = Store.open(url)
    base = StoredTrace(id="1", project="bank", input="a", teacher="x", ts=1.0, reason="no_policy")
    store.append([base, replace(base, id="2", reason="novel"), replace(base, id="3", reason="from_the_future")])
    store.close()
    rows = [orjson.loads(line) for line in run("export", "--store", url).stdout_bytes.splitlines()]
    assert [row["reason"] for row in rows] == ["no_policy", "novel", "uncertain"]
