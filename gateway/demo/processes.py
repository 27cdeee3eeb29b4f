"""Child processes with their output in a file. None outlives its context."""

import http.client
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from gateway.demo.errors import DemoError

START_SECONDS = 30.0
STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_TAIL_LINES = 25


class Child:
    """A process that runs until the context ends.

    It has a session of its own: a Ctrl-C in the terminal reaches the demo alone, which then ends its children in order.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self._name = name
        self._argv = argv
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id; DemoError before the context is entered."""
        if self._process is None:
            raise DemoError(f"{self._name} was not started")
        return self._process.pid

    def stop(self) -> None:
        """Ask it to end; end it where it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_until(self, holds: Callable[[], bool], what: str, timeout: float = START_SECONDS) -> None:
        """Raises DemoError with the log's tail where the process ends, or `timeout` seconds pass, before it holds."""
        until = time.monotonic() + timeout
        while not holds():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > until:
                how = "ended before" if ended else f"took more than {timeout:.0f} s until"
                raise DemoError(f"{self._name} {how} {what}\n{self.tail()}")
            time.sleep(_POLL_SECONDS)

    def tail(self) -> str:
        """The last lines it wrote."""
        lines = self._log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:] if self._log.exists() else []
        return "\n".join([f"--- {self._log}", *(lines or ["(empty)"]), "---"])


def run(argv: Sequence[str]) -> str:
    """What a command wrote to stdout. Raises DemoError with the tail of its output where it fails."""
    done = subprocess.run(  # noqa: S603 - our own commands
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL_LINES:])
        raise DemoError(f"`{' '.join(argv)}` ended with {done.returncode}\n{tail}")
    return done.stdout


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str) -> bytes | None:
    """The body of a 200 answer from a loopback server; None for any other answer, or none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == 200 else None
