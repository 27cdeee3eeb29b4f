"""What must hold whatever is sent: for test_fuzz.py's short run and bench/fuzz.py's long one."""

import os
import re
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from hypothesis import note

from tests.fidelity.shots import Shot
from tests.scripted_teacher import ScriptedTeacher

LONGEST_SECONDS = 5.0
_KEPT_CALLS = 200


@dataclass
class Range:
    """Fires at a gateway and checks each shot: answered in time, no 5xx, forwarded to the byte or not at all."""

    url: str
    teacher: ScriptedTeacher
    statuses: Counter[int] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    fired: int = 0
    slowest: float = 0.0  # seconds

    def __post_init__(self) -> None:
        self._client = httpx.Client(timeout=LONGEST_SECONDS)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def fire(self, shot: Shot) -> None:
        """Send one request and check what must hold."""
        note(repr(shot))
        self.fired += 1
        if shot.leaves is not None:
            self._leave(shot)
            return
        mark = f"{self.fired}"
        headers = [("x-shot", mark), ("content-type", "application/json"), *shot.headers]
        started = time.monotonic()
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        answer = self._client.request(shot.method, self.url + shot.path, content=shot.body, headers=encoded)
        self.slowest = max(self.slowest, time.monotonic() - started)
        assert self.slowest < LONGEST_SECONDS
        assert answer.status_code < 500, answer.text
        self.statuses[answer.status_code] += 1
        decision = answer.headers["x-tracer-decision"]
        self.decisions[decision] += 1
        self._check(shot, mark, decision, answer)

    def internal_errors(self) -> float:
        """Faults that the gateway caught at its borders."""
        page = self._client.get(f"{self.url}/metrics").text
        return sum(
            float(count) for count in re.findall(r"^tracer_internal_errors_total\{.*\} (\S+)$", page, re.MULTILINE)
        )

    def _check(self, shot: Shot, mark: str, decision: str, answer: httpx.Response) -> None:
        arrived = [call for call in self.teacher.calls if call.header("x-shot") == mark]
        del self.teacher.calls[:-_KEPT_CALLS]
        if decision == "none" or answer.headers["x-tracer-lane"] == "surrogate" or "classify" in shot.path:
            assert not arrived
            if answer.status_code >= 400 and shot.method != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        elif decision == "deferred" and arrived and b"tracer/" not in shot.body:
            (call,) = arrived
            assert call.body == shot.body

    def _leave(self, shot: Shot) -> None:
        port = int(self.url.rpartition(":")[2])
        head = f"POST {shot.path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(shot.body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=LONGEST_SECONDS) as connection:
            connection.sendall(head.encode() + shot.body[: shot.leaves])


def open_files(process: int | str = "self") -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def memory(process: int) -> float:
    """A process's resident memory in MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
