"""A steady stream of calls that a gateway should answer itself, and how late each answer was.

    with Pacer(gateway.port, "lost my card", "card_lost") as pacer:
        ...
    pacer.late  # milliseconds

It runs in a process of its own, so that what the test does meanwhile holds up none of its calls. A call is late from
the moment at which it was due, so that one that had to wait for the one before counts with its wait.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from typing import Self

from tests.serving import ROOT

_BODY = '{"model":"tracer/%s","messages":[{"role":"user","content":%s}]}'


class Pacer:
    """Asks the project's policy for `text` so many times a second until the context ends; `label` is the answer."""

    def __init__(self, port: int, text: str, label: str, project: str = "p", per_second: float = 100.0) -> None:
        self._arguments = [str(port), project, text, label, str(per_second)]
        self.late: list[float] = []
        self.wrong = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pacer", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        told, _unused = self._process.communicate(timeout=30)
        found = json.loads(told)
        self.late, self.wrong = found["late"], found["wrong"]

    @property
    def longest(self) -> float:
        """How late the latest answer was, in milliseconds."""
        return max(self.late)

    def within(self, share: float) -> float:
        """The milliseconds within which this share of the answers came."""
        return sorted(self.late)[int(share * (len(self.late) - 1))]


def main(port: int, project: str, text: str, label: str, per_second: float) -> None:
    """Call until stdin ends, then write what was seen as JSON."""
    body = (_BODY % (project, json.dumps(text))).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    wanted = b'"content":%b' % json.dumps(label).encode()
    late: list[float] = []
    wrong = 0
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        due = time.monotonic()
        while not ended.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            connection.sendall(head + body)
            answer = _answer(connection)
            late.append(1e3 * (time.monotonic() - due))
            wrong += not (answer.startswith(b"HTTP/1.1 200") and wanted in answer)
            due += 1 / per_second
    sys.stdout.write(json.dumps({"late": late, "wrong": wrong}))


def _answer(connection: socket.socket) -> bytes:
    answer = b""
    while True:
        piece = connection.recv(65_536)
        if not piece:
            return answer
        answer += piece
        head, found, body = answer.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), None)
        if found and (length is None or len(body) >= length):
            return answer


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:5], float(sys.argv[5]))
