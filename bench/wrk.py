"""The load generator: `wrk`, one thread, whole requests from a file, and what it said of them.

wrk sends the next request on a connection as soon as its answer is there. Before it prints, it adds to the latencies
what other requests would have waited during each answer that took over twice the mean: a stall does not make a p99
better by the requests it kept from being sent.
"""

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("wrk.lua")
TIMEOUT_SECONDS = 10  # an answer later than this counts as an error, and not among the latencies
_MARK = "FIGURES "


class LoadError(Exception):
    """wrk is missing, failed, or said what nobody understands."""


def http_request(port: int, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A POST of JSON as it goes over the wire."""
    every = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Content-Length": len(body)} | {**headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in every.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def write_requests(file: Path, requests: Iterable[bytes]) -> None:
    """What the Lua script reads."""
    file.write_bytes(b"".join(b"%d\n%b" % (len(request), request) for request in requests))


def run(port: int, requests: Path, connections: int, seconds: int, start: Sequence[str] = ()) -> dict[str, Any]:
    """Send for so many seconds over so many connections; `start` comes before the command, such as `taskset -c 1`.

    The figures of `read`, and `cpu`: wrk's own seconds of processor time a second. Raises LoadError.
    """
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s", "-s", str(SCRIPT)]
    command = [*start, "wrk", *options, f"http://127.0.0.1:{port}/"]
    environ = {**os.environ, "WRK_REQUESTS": str(requests)}
    before = _child_seconds()
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LoadError(f"wrk cannot be run: {error}") from None
    if done.returncode != 0:
        raise LoadError(f"wrk ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    found = read(done.stdout)
    return found | {"connections": connections, "wrk_cpu": round((_child_seconds() - before) / found["seconds"], 3)}


def read(output: str) -> dict[str, Any]:
    """`requests`, `seconds`, `p50_us`, `p99_us`, `max_us`, `errors` by kind, and `calls_a_second`, of which failed ones
    are no part. Raises LoadError where the line is missing."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            good = max(0, found["requests"] - found["errors"]["status"])
            return found | {"calls_a_second": round(good / found["seconds"], 1)}
    raise LoadError(f"wrk did not say what it measured: {output.strip()[-500:]}")


def version() -> str | None:
    """wrk's version; None where it is not installed."""
    program = shutil.which("wrk")
    if program is None:
        return None
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.+-]*", said.stdout + said.stderr)
    return found[0] if found else "?"


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
