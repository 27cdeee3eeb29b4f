"""The commands as a user runs them: real processes, real files, JSON on stdout, the rest on stderr."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from policies.traces import write_traces
from policies.types import Trace
from tests.traces_maker import make_traces, write


def _tracer(*arguments: str | Path, fails: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces, traffic, and a policy fitted by the command."""
    root = tmp_path_factory.mktemp("cli")
    write(root / "traces.jsonl", make_traces(700))
    write(root / "traffic.jsonl", make_traces(300, seed=1))
    return root


@pytest.fixture(scope="module")
def fit_output(folder: Path) -> dict[str, Any]:
    """What `tracer fit --json` printed."""
    done = _tracer("fit", folder / "traces.jsonl", "--target", "0.85", "--out", folder / "policy", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_fit_prints_one_json_object_with_the_promised_keys(fit_output: dict[str, Any], folder: Path) -> None:
    """The keys of the format are all there, and the folder is where it was asked for."""
    promised = "method refused reason target confidence coverage teacher_agreement teacher_agreement_lower"
    promised += " n_traces n_labels policy seconds answers inputs"
    assert set(promised.split()) <= set(fit_output)
    assert fit_output["refused"] is False
    assert fit_output["target"] == 0.85
    assert fit_output["policy"] == str(folder / "policy")


def test_evaluate_prints_coverage_agreement_and_times(fit_output: dict[str, Any], folder: Path) -> None:
    """The keys of the format, and shares that fit the counts."""
    done = _tracer("evaluate", folder / "traffic.jsonl", "--policy", folder / "policy", "--json")
    found = json.loads(done.stdout)
    keys = {"n", "coverage", "teacher_agreement", "n_handled", "by_reason", "decide_us_p50", "decide_us_p99"}
    assert set(found) == keys | {"by_stage"}
    assert sum(found["by_stage"].values()) == found["n_handled"]
    assert found["n_handled"] + sum(found["by_reason"].values()) == found["n"] == 300
    assert 0 < found["decide_us_p50"] <= found["decide_us_p99"]
    assert fit_output["method"] in {"l2d", "global"}


def test_report_shows_certificate_and_frontier(fit_output: dict[str, Any], folder: Path) -> None:
    """For people as tables, for programs as JSON."""
    text = _tracer("report", "--policy", folder / "policy").stdout
    assert "certified" in text
    assert "answers: plain text" in text
    assert "inputs: read whole" in text
    assert "Frontier" in text
    found = json.loads(_tracer("report", "--policy", folder / "policy", "--json").stdout)
    assert found["manifest"]["certificate"]["target"] == fit_output["target"]
    assert {"target", "certified", "coverage"} <= set(found["frontier"][0])


def test_update_refits_with_new_traces(fit_output: dict[str, Any], folder: Path) -> None:
    """The number of traces grows and the version changes."""
    new = write(folder / "new.jsonl", make_traces(200, seed=2))
    found = json.loads(_tracer("update", new, "--policy", folder / "policy", "--json").stdout)
    assert found["n_traces"] == fit_output["n_traces"] + 200
    assert found["replaced"] is True
    assert found["version"] != fit_output["version"]


def test_a_refusal_is_exit_code_zero_and_says_why(tmp_path: Path) -> None:
    """Refusing is a normal result."""
    write(tmp_path / "t.jsonl", make_traces(30))
    done = _tracer("fit", tmp_path / "t.jsonl", "--out", tmp_path / "p", "--json")
    found = json.loads(done.stdout)
    assert found["refused"] is True
    assert "traces" in found["reason"]
    assert "refused" in _tracer("fit", tmp_path / "t.jsonl", "--out", tmp_path / "p").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "missing.jsonl"], "missing.jsonl"),
        (["fit", "{traces}", "--target", "1.5"], "target_teacher_agreement"),
        (["fit", "{traces}", "--features", "magic"], "lexical,static"),
        (["fit", "{traces}", "--embeddings", "{traces}"], ".npy"),
        (["evaluate", "{traces}", "--policy", "nowhere"], "tracer fit"),
        (["update", "{traces}", "--policy", "nowhere"], "tracer fit"),
        (["report", "--policy", "nowhere"], "tracer fit"),
        (["nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_line_that_names_them(
    folder: Path, tmp_path: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback, exit code other than 0, and the message names what is wrong."""
    monkeypatch.chdir(tmp_path)
    traces = str(folder / "traces.jsonl")
    write(folder / "traces.jsonl", make_traces(700))
    done = _tracer(*[argument.format(traces=traces) for argument in arguments], fails=True)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_lines_stop_the_fit_or_are_counted(tmp_path: Path) -> None:
    """By default `file:line: what is wrong`; with --skip-bad the rest is fitted and the count is said."""
    path = tmp_path / "t.jsonl"
    write_traces(path, make_traces(400))
    path.write_bytes(path.read_bytes() + b'{"input": "x"}\n\xff\xfe\n')
    assert f"{path}:401:" in _tracer("fit", path, "--out", tmp_path / "p", fails=True).stderr.replace("\n", "")
    done = _tracer("fit", path, "--out", tmp_path / "p", "--target", "0.8", "--skip-bad", "--json")
    assert json.loads(done.stdout)["n_traces"] == 400
    assert any("2 bad lines" in note for note in json.loads(done.stdout)["notes"])


def test_label_text_with_markup_does_not_break_the_output(tmp_path: Path) -> None:
    """Labels are data: square brackets in them are printed, not interpreted."""
    odd = {label: f"[{label}]" for label in {trace.teacher for trace in make_traces(100)}}
    traces = [Trace(trace.input, odd[trace.teacher]) for trace in make_traces(400)]
    write(tmp_path / "t.jsonl", traces)
    _tracer("fit", tmp_path / "t.jsonl", "--target", "0.8", "--out", tmp_path / "p")
    assert "[refund]" in _tracer("report", "--policy", tmp_path / "p").stdout


def test_forms_are_shown_in_words(tmp_path: Path) -> None:
    """What the answers are, which part of an input is read, what was merged; and merging can be turned off."""
    label = {trace.teacher: f'{{"intent": "{trace.teacher}", "v": 1}}' for trace in make_traces(100)}
    traces = [Trace(f"Sort this message:\n{t.input}\n", label[t.teacher]) for t in make_traces(400)]
    path = write(tmp_path / "t.jsonl", traces)
    text = _tracer("fit", path, "--target", "0.8", "--out", tmp_path / "p").stdout
    assert "answers: JSON objects, label at 'intent', other fields constant\n" in text
    assert "inputs: the part after 'Sort this message:\\n' and before '\\n'\n" in text
    spelled = [Trace(t.input, t.teacher if i % 9 else f"{t.teacher}.") for i, t in enumerate(make_traces(400))]
    path = write(tmp_path / "s.jsonl", spelled)
    assert " also stands for " in _tracer("fit", path, "--target", "0.8", "--out", tmp_path / "q").stdout
    done = _tracer("fit", path, "--target", "0.8", "--out", tmp_path / "q", "--no-merge-labels", "--json")
    assert json.loads(done.stdout)["n_labels"] == 16
    found = json.loads(_tracer("report", "--policy", tmp_path / "q", "--json").stdout)
    assert found["manifest"]["settings"]["merge_labels"] is False
    assert found["manifest"]["answers"]["merging"] is False


def test_help_lists_every_command() -> None:
    """`tracer --help` joins both groups."""
    text = _tracer("--help").stdout
    for command in ("fit", "update", "evaluate", "report", "traces", "serve", "demo", "check-config"):
        assert command in text
