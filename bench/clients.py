"""HTTP clients for the forwarding path: what a call of each costs, at 1 and at 32 side by side.

python bench/clients.py [--seconds 2] [--out FILE] [--write-docs]

Each posts 2 kB to a constant answer on the same machine (an upstream of `asyncio.start_server` in a process of its own)
and reads the body, over connections that stay open. *Ours* is `gateway.upstream.HttpUpstream`, which is aiohttp with
what a gateway needs around it: headers as they came, time-outs, retries on idle connections, losses noticed. Times are
processor time of the client's process a call, the least of five turns; calls/s are the most.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import aiohttp
import httpx
import uvloop

from bench.frontier import DOCS, write_docs
from bench.stamp import stamp
from gateway.settings import UpstreamSettings
from gateway.upstream import HttpUpstream, UpstreamCall

BODY = b"x" * 2_000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n" + b"y" * 500
HEADERS = {"content-type": "application/json"}
TURNS = 5
SIDE_BY_SIDE = (1, 32)
Ask = Callable[[], Awaitable[None]]


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    asked = parser.parse_args(sys.argv[1:])
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        upstream = multiprocessing.get_context("spawn").Process(target=serve, args=(listener,), daemon=True)
        upstream.start()
        rows = uvloop.run(measure(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", asked.seconds))
        upstream.terminate()
    where = stamp()
    text = f"{table(rows)}\n\n{where['cpu']}, Python {where['python']}, commit {(where['commit'] or '?')[:12]}"
    print(text)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"stamp": where, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    if asked.write_docs:
        write_docs(DOCS, "bench/clients.py", text)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line a client."""
    lines = ["| client | us of CPU a call, 1 | calls/s | us of CPU a call, 32 | calls/s |", "|---|---|---|---|---|"]
    for row in rows:
        figures = " | ".join(f"{row[f'cpu_us_{n}']:.0f} | {row[f'calls_a_second_{n}']:,.0f}" for n in SIDE_BY_SIDE)
        lines.append(f"| {row['client']} | {figures} |")
    return "\n".join(lines)


async def measure(url: str, seconds: float) -> list[dict[str, Any]]:
    """A row a client, the clients in turns."""
    ours = HttpUpstream("bench", UpstreamSettings(base_url=url), None)
    await ours.start()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        httpx.AsyncClient(limits=limits) as plain,
    ):
        clients = {"ours": _ours(ours), "aiohttp": _aiohttp(session, url), "httpx": _httpx(plain, url)}
        if (newer := _newer_httpx()) is not None:
            clients["httpx2"] = _httpx(newer, url)
        rows: dict[str, dict[str, Any]] = {name: {"client": name} for name in clients}
        for number in SIDE_BY_SIDE:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
            for _ in range(TURNS):
                for name, ask in clients.items():
                    found[name].append(await _turn(ask, number, seconds / TURNS))
            for name, turns in found.items():
                rows[name][f"cpu_us_{number}"] = min(cpu for cpu, _ in turns)
                rows[name][f"calls_a_second_{number}"] = max(calls for _, calls in turns)
        if newer is not None:
            await newer.aclose()
    await ours.stop()
    return list(rows.values())


async def _turn(ask: Ask, number: int, seconds: float) -> tuple[float, float]:
    """(microseconds of CPU a call, calls a second)."""
    await asyncio.gather(*(ask() for _ in range(number)))
    cpu, started = process_time(), perf_counter()
    calls = 0

    async def client() -> None:
        nonlocal calls
        while perf_counter() - started < seconds:
            await ask()
            calls += 1

    await asyncio.gather(*(client() for _ in range(number)))
    return (process_time() - cpu) / calls * 1e6, calls / (perf_counter() - started)


def _ours(upstream: HttpUpstream) -> Ask:
    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def ask() -> None:
        answer = await upstream.send(UpstreamCall("POST", "/chat/completions", b"", headers, BODY))
        while await answer.read():
            pass
        await answer.close()

    return ask


def _aiohttp(session: aiohttp.ClientSession, url: str) -> Ask:
    async def ask() -> None:
        async with session.post(f"{url}/chat/completions", data=BODY, headers=HEADERS) as answer:
            await answer.read()

    return ask


def _httpx(client: Any, url: str) -> Ask:
    async def ask() -> None:
        await client.post(f"{url}/chat/completions", content=BODY, headers=HEADERS)

    return ask


def _newer_httpx() -> Any:
    """A client of httpx2, where it is installed: nothing here depends on it."""
    try:
        newer = import_module("httpx2")
    except ImportError:
        return None
    return newer.AsyncClient(limits=newer.Limits(max_connections=None, max_keepalive_connections=None))


def serve(listener: socket.socket) -> None:
    """Answer every call with the same 500 bytes."""
    uvloop.run(_serve(listener))


async def _serve(listener: socket.socket) -> None:
    server = await asyncio.start_server(_answer, sock=listener)
    await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(BODY))
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


if __name__ == "__main__":
    main()
