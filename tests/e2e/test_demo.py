"""`tracer demo` as a user runs it: a process with pipes for a terminal, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the demo's processes in /proc")

# Few calls and a modest target: enough to certify, quick enough for every run of the tests.
SMALL = ("--calls-per-day", "400", "--target", "0.75")


@contextmanager
def _demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "tracer", "demo", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _processes_of(folder: Path) -> dict[int, str]:
    """Command lines that mention the folder, without this test's own demo."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text("utf-8", "replace").replace("\0", " ")
            except OSError:
                continue
            if str(folder) in command and " demo " not in command:
                found[int(entry.name)] = command
    return found


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came; the demo said:\n{seen}")


def test_four_days(tmp_path: Path) -> None:
    """The demo goes through four days, shows coverage and agreement, both kinds of call, and ends well and clean."""
    folder = tmp_path / "kept"
    started = time.monotonic()
    with _demo(*SMALL, "--keep", str(folder)) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output
    assert time.monotonic() - started < 90
    assert "SYNTHETIC" in output
    for number in range(1, 5):
        assert f"day {number}" in output
    assert output.count("$ tracer traces export") == 3
    assert output.count("$ tracer fit") == 1
    assert output.count("$ tracer update") == 2
    assert "x-tracer-lane: surrogate" in output
    assert "x-tracer-decision: deferred" in output
    assert '"tracer_surrogate"' in output
    assert "What to do next" in output
    assert (folder / "policy" / "manifest.json").is_file()
    assert _processes_of(folder) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and kill in the middle of a day end the demo with every process it started."""
    folder = tmp_path / "kept"
    with _demo(*SMALL, "--keep", str(folder)) as process:
        _read_until(process, "100 of 400 calls")
        assert len(_processes_of(folder)) == 2
        process.send_signal(number)
        rest = process.communicate(timeout=30)[0]
    assert process.returncode == 130, rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert _processes_of(folder) == {}


def test_the_gateway_dies(tmp_path: Path) -> None:
    """Where the gateway ends in the middle of a day, the demo says so, shows its log, and exits with 1."""
    folder = tmp_path / "kept"
    with _demo(*SMALL, "--keep", str(folder)) as process:
        _read_until(process, "100 of 400 calls")
        (gateway,) = [pid for pid, command in _processes_of(folder).items() if " serve " in command]
        os.kill(gateway, signal.SIGKILL)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 1, rest
    assert "the gateway ended" in rest
    assert "gateway.log" in rest
    assert _processes_of(folder) == {}


def test_a_folder_that_holds_something(tmp_path: Path) -> None:
    """--keep refuses a folder with something in it instead of mixing two demos."""
    (tmp_path / "precious").touch()
    with _demo("--keep", str(tmp_path)) as process:
        output = process.communicate()[0]
    assert process.returncode == 1
    assert "is not empty" in output
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("option", [("--calls-per-day", "3"), ("--target", "1.5"), ("--days", "9")])
def test_impossible_options(option: tuple[str, str]) -> None:
    """An option out of range, or unknown, is refused before anything starts."""
    with _demo(*option) as process:
        output = process.communicate()[0]
    assert process.returncode == 2
    assert option[0] in output
