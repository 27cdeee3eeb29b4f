"""The demo's teacher, its child processes and its application, on real sockets."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from gateway.demo import driver, processes, teacher
from gateway.demo.driver import Application
from gateway.demo.errors import DemoError
from gateway.demo.processes import Child
from gateway.demo.workload import Message

LABELS = {"where is my card": "card_not_arrived", "hello": "other", "ümläut 🙂": "other"}


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    """An application in front of a scripted teacher, no gateway between."""
    teacher.write_script(tmp_path / "script.jsonl", LABELS)
    port = processes.free_port()
    argv = [sys.executable, "-m", "gateway.demo.teacher", str(tmp_path / "script.jsonl"), "--port", str(port)]
    with Child("the teacher", argv, tmp_path / "log") as child:
        child.wait_until(lambda: processes.get(port, teacher.HEALTH_PATH) is not None, "it was ready")
        yield Application(f"http://127.0.0.1:{port}/v1", "any", "Sort this.", concurrency=4)


def test_the_teacher_says_what_its_script_says(application: Application) -> None:
    """Every message gets its label, in the order sent, with token counts, and each call is reported once."""
    messages = [Message(text, label) for text, label in LABELS.items()] * 20
    reported: list[driver.Call] = []
    calls = driver.drive(application, messages, reported.append)
    assert [call.message for call in calls] == messages
    assert all(call.agrees and call.forwarded and call.usage.prompt > 0 for call in calls)
    assert len(reported) == len(messages)


def test_a_message_outside_the_script(application: Application) -> None:
    """A call the teacher refuses is a failed call with the teacher's reason, and the others go on."""
    calls = driver.drive(application, [Message("hello", "other"), Message("unheard of", "other")], lambda _: None)
    assert [call.error is None for call in calls] == [True, False]
    assert "not in the script" in str(calls[1].error)
    with pytest.raises(openai.BadRequestError):
        driver.exchange(application, "unheard of")


def test_one_exchange_in_full(application: Application) -> None:
    """An exchange holds the request as sent and the answer with its headers."""
    exchange = driver.exchange(application, "ümläut 🙂")
    assert "ümläut 🙂" in exchange.request
    assert exchange.status == 200
    assert ("content-type", "application/json") in exchange.headers
    assert '"other"' in exchange.answer


def test_times_of_single_calls(application: Application) -> None:
    """Calls are timed one by one, through the client and over a bare socket."""
    messages = [Message("hello", "other")] * 5
    (call,) = driver.drive(replace(application, concurrency=1), messages[:1], lambda _: None)
    assert 0 < call.seconds < 5
    assert all(0 < seconds < 5 for seconds in driver.bare_seconds(application, messages))


def test_latency_is_fixed_by_the_message() -> None:
    """The same message always takes the same time; the median over messages is the one asked for."""
    script = teacher.Script({}, median=0.3, spread=0.35)
    seconds = sorted(script.seconds(f"message {i}") for i in range(2_001))
    assert script.seconds("a") == script.seconds("a")
    assert seconds[1_000] == pytest.approx(0.3, rel=0.05)
    assert seconds[-1] > 2 * seconds[1_000]
    assert teacher.Script({}, median=0.02, spread=0.0).seconds("a") == 0.02


def test_a_child_that_ends_early_shows_its_log(tmp_path: Path) -> None:
    """Where a process ends before it was ready, the error ends with what it wrote."""
    argv = [sys.executable, "-c", "print('no such setting'); raise SystemExit(2)"]
    with Child("the gateway", argv, tmp_path / "log") as child, pytest.raises(DemoError, match="no such setting"):
        child.wait_until(lambda: False, "it was ready")


def test_a_child_that_takes_too_long(tmp_path: Path) -> None:
    """Where a process does not become ready in time, the error says so, and the process ends with its context."""
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    with Child("the gateway", argv, tmp_path / "log") as child, pytest.raises(DemoError, match="took more than"):
        child.wait_until(lambda: False, "it was ready", timeout=0.2)
    assert not Path(f"/proc/{child.pid}/cmdline").exists() or sys.platform != "linux"


def test_a_command_that_fails_shows_its_output() -> None:
    """A failing command is an error with its exit code and its output; a good one gives its stdout."""
    with pytest.raises(DemoError, match=r"(?s)ended with 3.*broken"):
        processes.run([sys.executable, "-c", "import sys; print('broken', file=sys.stderr); sys.exit(3)"])
    assert processes.run([sys.executable, "-c", "print('fine')"]) == "fine\n"
