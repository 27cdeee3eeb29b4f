"""A steady stream of calls that a gateway should answer itself, and what the gateway did until it had answered each.

    with Pacer(gateway, "lost my card", "card_lost") as pacer:
        ...
    pacer.longest  # milliseconds

It runs in a process of its own, so that what the test does meanwhile holds up none of its calls. Time is that which the
gateway's process has used, not that on the clock: while a gateway works on something else, the two are the same, but
the clock also shows what other work the machine has.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from typing import Self

from tests.serving import ROOT, GatewayProcess

_BODY = '{"model":"tracer/%s","messages":[{"role":"user","content":%s}]}'


class Pacer:
    """Asks the project's policy for `text` so many times a second until the context ends; `label` is the answer.

    `used` and `waited` are the milliseconds of each call: what the gateway's process used of them, and all.
    """

    def __init__(
        self, gateway: GatewayProcess, text: str, label: str, project: str = "p", per_second: float = 100.0
    ) -> None:
        self._arguments = [str(gateway.port), str(gateway.process.pid), project, text, label, str(per_second)]
        self.used: list[float] = []
        self.waited: list[float] = []
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
        self.used, self.waited, self.wrong = found["used"], found["waited"], found["wrong"]

    @property
    def longest(self) -> float:
        """The most that the gateway did before it had answered a call, in milliseconds of its own."""
        return max(self.used)

    def __str__(self) -> str:
        used, waited = (sorted(times) for times in (self.used, self.waited))
        p99 = int(0.99 * (len(used) - 1))
        return (
            f"{len(used)} calls, used p99 {used[p99]:.1f} longest {used[-1]:.1f} ms, "
            f"on the clock p99 {waited[p99]:.1f} longest {waited[-1]:.1f} ms"
        )


def main(port: int, process: int, project: str, text: str, label: str, per_second: float) -> None:
    """Call until stdin ends, then write what was seen as JSON."""
    body = (_BODY % (project, json.dumps(text))).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    wanted = b'"content":%b' % json.dumps(label).encode()
    clock = ~process << 3 | 2  # the CPU time of all of a process, as clock_getcpuclockid(3) has it on Linux
    used: list[float] = []
    waited: list[float] = []
    wrong = 0
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        due = time.monotonic()
        while not ended.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            started, before = time.monotonic(), time.clock_gettime(clock)
            connection.sendall(head + body)
            answer = _answer(connection)
            used.append(1e3 * (time.clock_gettime(clock) - before))
            waited.append(1e3 * (time.monotonic() - started))
            wrong += not (answer.startswith(b"HTTP/1.1 200") and wanted in answer)
            due = max(due + 1 / per_second, time.monotonic())
    sys.stdout.write(json.dumps({"used": used, "waited": waited, "wrong": wrong}))


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
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5], float(sys.argv[6]))
