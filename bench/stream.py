"""What the gateway adds to a stream: the same events read from the upstream itself and through the gateway.

python bench/stream.py [--streams 1,32] [--rounds 20] [--events 25] [--interval-ms 10] [--out FILE] [--write-docs]

Upstream, gateway and client are three processes. An event holds the time at which the upstream wrote it, on the clock
all three share; its delay is that of its arrival at the client less that time. The time to the first event runs from
the request's last byte, so that it holds the request's way as well. In each round as many streams as are named run side
by side, over connections that stay open, first from the upstream and then through the gateway, so that both see the
same machine; each starts at a moment of its own within the first 100 ms, the same for both. The calls are a project's,
of which the gateway keeps a copy. Prints a Markdown table and writes the figures as JSON with machine and versions;
exits with 1 where the median delay of a first event is more than 1 ms longer through the gateway.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
import yaml

from bench.frontier import write_docs
from bench.stamp import stamp
from gateway.demo import processes
from gateway.demo.processes import Child

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
LIMIT_MS = 1.0
SPREAD_SECONDS = 0.1
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(
    {"model": "tracer/bench", "stream": True, "messages": [{"role": "user", "content": "where is my card?"}]}
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"X-Events: %d\r\nX-Interval: %.6f\r\nContent-Length: %d\r\n\r\n%b"
)
WHAT = {
    "asked": "time to the first event, ms",
    "first": "delay of the first event, ms",
    "later": "delay of a later event, ms",
}
START, END = b'"content":"', b'"'


@dataclass
class Times:
    """Milliseconds: first events since their requests; first and later events since each was written."""

    asked: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, print the table and write the result; or be the upstream."""
    arguments = parse(sys.argv[1:])
    if arguments.upstream is not None:
        uvloop.run(_serve(arguments.upstream))
    with tempfile.TemporaryDirectory(prefix="tracer-stream-") as folder:
        rows = measure(Path(folder), arguments)
    text = table(rows)
    where = stamp()
    text += (
        f"\n\n{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {(where['commit'] or '?')[:12]}"
    )
    print(text)
    if arguments.out is not None:
        options = {key: getattr(arguments, key) for key in ("rounds", "events", "interval_ms")}
        result = {"stamp": where, **options, "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.write_docs:
        write_docs(DOCS, "bench/stream.py", text)
    late = [row["streams"] for row in rows if row["added_first_ms"]["p50"] > LIMIT_MS]
    if late:
        sys.exit(f"\nthe first event comes more than {LIMIT_MS} ms later through the gateway with {late} streams")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, checked; exits with argparse's message where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=_sizes, default=[1, 32], help="how many side by side, for each row")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--events", type=int, default=20, help="in each stream")
    parser.add_argument("--interval-ms", type=float, default=10.0, help="between two events")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if min(arguments.rounds, arguments.events) < 1 or arguments.interval_ms < 0:
        parser.error("--rounds and --events are at least 1, --interval-ms at least 0")
    return arguments


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError("at least one stream")
    return sizes


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of streams."""
    upstream, gateway = processes.free_port(), processes.free_port()
    tree = {
        "store": {"url": f"sqlite:///{folder}/traces.db", "spool": f"{folder}/spool.jsonl"},
        "upstreams": {"upstream": {"base_url": f"http://127.0.0.1:{upstream}/v1"}},
        "default_upstream": "upstream",
        "projects": {"bench": {"policy": f"{folder}/absent", "teacher": "some-model"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    serve = [sys.executable, "-m", "tracer", "serve", "--config", f"{folder}/config.yaml", "--port", str(gateway)]
    own = [sys.executable, "-m", "bench.stream", "--upstream", str(upstream)]
    with (
        Child("the upstream", own, folder / "upstream.log") as upstream_child,
        Child("the gateway", serve, folder / "gateway.log") as gateway_child,
    ):
        upstream_child.wait_until(lambda: processes.get(upstream, "/") is not None, "it was ready")
        gateway_child.wait_until(lambda: processes.get(gateway, "/healthz") is not None, "it was ready")
        return [uvloop.run(_row(upstream, gateway, streams, arguments)) for streams in arguments.streams]


async def _row(upstream: int, gateway: int, streams: int, arguments: argparse.Namespace) -> dict[str, Any]:
    request = REQUEST % (arguments.events, arguments.interval_ms / 1e3, len(BODY), BODY)
    direct, through = Times(), Times()
    to_upstream = [await asyncio.open_connection("127.0.0.1", upstream) for _ in range(streams)]
    to_gateway = [await asyncio.open_connection("127.0.0.1", gateway) for _ in range(streams)]
    draw = random.Random(0)
    for round_ in range(arguments.rounds + 1):
        starts = [draw.uniform(0, SPREAD_SECONDS) for _ in range(streams)]
        for connections, times in ((to_upstream, direct), (to_gateway, through)):
            kept = times if round_ else Times()  # the first round opens connections and warms up
            reading = zip(starts, connections, strict=True)
            await asyncio.gather(*(_read(start, *connection, request, kept) for start, connection in reading))
    for _, writer in (*to_upstream, *to_gateway):
        writer.close()
    return as_row(streams, direct, through)


async def _read(
    start: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, times: Times
) -> None:
    await asyncio.sleep(start)
    writer.write(request)
    asked = time.monotonic_ns()
    await reader.readuntil(b"\r\n\r\n")
    buffer, seen = b"", 0
    while not buffer.endswith(b"0\r\n\r\n"):
        piece = await reader.read(65_536)
        now = time.monotonic_ns()
        if not piece:
            raise ConnectionError("the stream broke off")
        buffer += piece
        written = stamps(buffer)
        if not seen and written:
            times.asked.append((now - asked) / 1e6)
        for index, stamp_ in enumerate(written[seen:], seen):
            (times.later if index else times.first).append((now - stamp_) / 1e6)
        seen = len(written)


def stamps(buffer: bytes) -> list[int]:
    """The times in the whole events of a stream so far."""
    pieces = buffer.split(START)[1:]
    return [int(piece.partition(END)[0]) for piece in pieces if b"\n\n" in piece]


def as_row(streams: int, direct: Times, through: Times) -> dict[str, Any]:
    """The percentiles of both, in milliseconds, and what the gateway added to them."""
    row: dict[str, Any] = {"streams": streams, "n_streams": len(direct.first), "n_later": len(direct.later)}
    for name in WHAT:
        own, ours = _percentiles(getattr(direct, name)), _percentiles(getattr(through, name))
        row[f"direct_{name}_ms"], row[f"gateway_{name}_ms"] = own, ours
        row[f"added_{name}_ms"] = {part: round(ours[part] - own[part], 3) for part in own}
    return row


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a number of streams."""
    head = ["streams side by side", "what", "direct p50 / p99", "through the gateway p50 / p99", "added p50 / p99"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        for name, what in WHAT.items():
            cells = [row[f"{kind}_{name}_ms"] for kind in ("direct", "gateway", "added")]
            lines.append([str(row["streams"]), what, *(f"{cell['p50']:.2f} / {cell['p99']:.2f}" for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", port)
    await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            break
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        if b"x-events" not in fields:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            continue
        await reader.readexactly(int(fields[b"content-length"]))
        writer.write(HEAD)
        for index in range(int(fields[b"x-events"])):
            if index:
                await asyncio.sleep(float(fields[b"x-interval"]))
            writer.write(_event())
        writer.write(b"0\r\n\r\n")
    writer.close()


def _event() -> bytes:
    choice = b'{"index":0,"delta":{"content":"%d"},"finish_reason":null}' % time.monotonic_ns()
    data = b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","choices":[%b]}\n\n' % choice
    return b"%x\r\n%b\r\n" % (len(data), data)


if __name__ == "__main__":
    main()
