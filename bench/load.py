"""What a busy hour does to the gateway: three loads that `peers.py` does not make, each with the bar it has to clear.

python bench/load.py [--scenarios mixed,transformer,memory] [--seconds 20] [--rounds 5] [--rate 1000] [--calls 1000000]
    [--out FILE] [--write-docs]

mixed: 256 connections, half of the calls handled, 0.3 forwarded, 0.2 streamed, `--rate` calls a second in all, alone
and beside a refit (`tracer fit` of banking77, again and again, in processes of its own): at its own priority, as a user
would start it, and at niceness 10, its session as well. The three take turns, `--rounds` times, for `--seconds` in all
each; a refit is stopped (SIGSTOP) while it is not its turn, so that all of it is seen. No error, and handled p99 at
most twice that of alone.
transformer: a cascade with all-minilm-l6-v2 from TRACER_MODELS, 200 handled calls a second, of which 30 % need it:
handled p99 at most 15 ms.
memory: one worker, banking77, `--calls` calls, half of them handled, each other one a text of its own: RSS at most
150 MB at every 100,000th call, and from the first 100,000 on at most 3 MB of growth.

The first two are open loops (bench/caller.py says what is counted), the third a closed one: a call more for every
answer. Gateway, upstream (20 ms before an answer) and this process share the machine's cores, and nothing is pinned.
`own p99` is how late this process sent its calls: where it is near the answers' own figures, these say more of the
machine than of the gateway. Two workers against one are in `peers.py`. Exits with 1 where a bar is missed. Linux only.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import uvloop

from bench import load_tables as tables
from bench import servers, wrk
from bench.caller import FORWARDED, HANDLED, STREAMED, Load, Seen, closed_loop, connect, open_loop, serve
from bench.frontier import DATA, DOCS, MODEL, short, write_docs
from bench.load_tables import ALONE, BESIDE, NICED, STEP, Result, verdict
from bench.loads import cpu_seconds
from bench.peers import system_prompt
from bench.servers import Place, Server
from bench.stamp import stamp
from gateway.demo import processes
from gateway.demo.processes import Child
from policies.policy import Policy
from policies.traces import read_traces

SET = DATA / "banking77"
SHARES = {HANDLED: 0.5, FORWARDED: 0.3, STREAMED: 0.2}
CONNECTIONS = 256
UPSTREAM_SECONDS = 0.02
EVENTS = 5
# The cascade's load: calls a second, the share that needs the encoder, connections.
PER_SECOND, NEEDING, CASCADE_LINES = 200.0, 0.3, 32
# The long one's: calls until the first look, connections.
FIRST, MEMORY_LINES = 10_000, 16
NICE = 10
_SETTLE_SECONDS = 0.3
_OWN = (sys.executable, "-m", "bench.load")


def main() -> None:
    """Measure what is asked for, print the tables, write the result; or be the upstream, or the refits."""
    arguments = parse(sys.argv[1:])
    if arguments.upstream is not None:
        uvloop.run(serve(arguments.upstream, arguments.upstream_seconds, EVENTS))
    if arguments.refit is not None:
        refit_for_ever(arguments.refit, arguments.nice)
    where = stamp()
    result: dict[str, Any] = {"stamp": where, "options": {"seconds": arguments.seconds, "rate": arguments.rate}}
    missed = []
    for name in arguments.scenarios:
        with tempfile.TemporaryDirectory(prefix="tracer-load-") as folder:
            found = SCENARIOS[name](Path(folder), arguments)
        found["missed"] = BARS[name](found)
        missed += found["missed"]
        result[name] = found
        text = f"{TABLES[name](found)}\n\n{verdict(found['missed'])}\n\n{_where(where)}"
        print(f"{name}\n\n{text}\n", flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if arguments.write_docs:
            write_docs(DOCS, f"bench/load.py {name}", text)
    if missed:
        sys.exit(1)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked; exits with argparse's message where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=_names, default=list(SCENARIOS), help=", ".join(SCENARIOS))
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each condition of `mixed`, and of `transformer`"
    )
    parser.add_argument("--rounds", type=int, default=5, help="in which the conditions of `mixed` take turns")
    parser.add_argument("--rate", type=float, default=1_000.0, help="calls a second of `mixed`")
    parser.add_argument("--calls", type=int, default=1_000_000, help="of `memory`")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--upstream-seconds", type=float, default=UPSTREAM_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--refit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nice", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.seconds <= 0 or arguments.rate <= 0:
        parser.error("--rounds is at least 1, --seconds and --rate are above 0")
    if arguments.calls < STEP:
        parser.error(f"--calls is at least {STEP}")
    if arguments.upstream is None and not SET.is_dir():
        parser.error(f"no data set in TRACER_DATA ({SET})")
    if arguments.upstream is None and "transformer" in arguments.scenarios and not MODEL.is_dir():
        parser.error(f"no model in TRACER_MODELS ({MODEL}); leave `transformer` out of --scenarios")
    return arguments


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    return names


# -- what stands ready -------------------------------------------------------------------------------------------------


class Ready:
    """An upstream, and a gateway in front of it with a policy fitted for the run; `port` is the gateway's."""

    def __init__(self, folder: Path, features: str | None = None, upstream_seconds: float = UPSTREAM_SECONDS) -> None:
        self.policy = folder / "policy"
        behind = processes.free_port()
        self._behind = behind
        own = [
            sys.executable,
            "-m",
            "bench.load",
            "--upstream",
            str(behind),
            "--upstream-seconds",
            str(upstream_seconds),
        ]
        self._upstream = Child("the upstream", own, folder / "upstream.log")
        options = [] if features is None else ["--features", features]
        processes.run([*_tracer("fit"), str(SET / "traces.jsonl"), "--out", str(self.policy), *options])
        self.prompt = system_prompt()
        self._place = Place(folder, folder, self.prompt, self.policy, behind)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        upstream = self._stack.enter_context(self._upstream)
        upstream.wait_until(lambda: processes.get(self._behind, "/") is not None, "it was ready")
        self._server = self._stack.enter_context(Server("gateway", self._place))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def port(self) -> int:
        """The gateway's."""
        return self._server.port

    def busy(self) -> dict[str, float]:
        """Seconds of processor time so far, by process."""
        found = {"gateway": cpu_seconds(self._server.pid), "upstream": cpu_seconds(self._upstream.pid)}
        return found | {"caller": time.process_time()}

    def memory(self) -> dict[str, float]:
        """The gateway's resident memory in MB: all of it, and what is not mapped from files."""
        status = Path(f"/proc/{self._server.pid}/status").read_text(encoding="ascii")
        found = dict(line.split(":", 1) for line in status.splitlines())
        names = {"rss": "VmRSS", "own": "RssAnon"}
        return {name: int(found[key].split()[0]) * 1024 / 1e6 for name, key in names.items()}

    def request(self, text: str, stream: bool = False) -> bytes:
        """A chat call as it goes over the wire."""
        body = servers.chat(self.prompt, text, stream)
        return wrk.http_request(self.port, "/v1/chat/completions", servers.ALWAYS, body)


def _tracer(command: str) -> list[str]:
    return [sys.executable, "-m", "tracer", command]


def texts_by_need(policy: Policy) -> tuple[list[str], list[str], list[str]]:
    """The traffic's texts that the cheap stage handles, that are handled after it, and that are deferred."""
    cheap: list[str] = []
    dear: list[str] = []
    deferred: list[str] = []
    for text in dict.fromkeys(trace.input for trace in read_traces(SET / "traffic.jsonl").traces):
        quick = policy.decide_quickly(text) if policy.slow else policy.decide(text)
        decision = quick or policy.decide(text)
        (deferred if not decision.handled else dear if quick is None else cheap).append(text)
    return cheap, dear, deferred


# -- a refit beside the calls ------------------------------------------------------------------------------------------


class Refit:
    """`tracer fit` again and again, in a session of its own, that runs only inside `going()`."""

    def __init__(self, folder: Path, *, nice: bool = False) -> None:
        folder.mkdir()
        self._folder = folder
        own = [*_OWN, "--refit", str(folder), *(["--nice"] if nice else [])]
        self._child = Child("the refits", own, folder / "log")

    def __enter__(self) -> Self:
        self._child.__enter__()
        os.killpg(self._child.pid, signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.stop()

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """It goes on while the block runs."""
        os.killpg(self._child.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self._child.pid, signal.SIGSTOP)

    def done(self) -> int:
        """How many fits have come to their end."""
        return len(list(self._folder.glob("done-*")))


def refit_for_ever(folder: Path, nice: bool) -> None:
    """Fit banking77 into `folder`, and leave a mark for each fit; an ending of one with a fault ends all."""
    if nice:
        os.nice(NICE)
        # Where the system shares the cores out among sessions, the session has a niceness of its own: sched(7).
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICE), encoding="ascii")
    number = 0
    while True:
        fit = [*_tracer("fit"), str(SET / "traces.jsonl"), "--out", str(folder / "policy")]
        subprocess.run(fit, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (folder / f"done-{number}").touch()
        number += 1


# -- the scenarios -----------------------------------------------------------------------------------------------------


def mixed(folder: Path, arguments: argparse.Namespace) -> Result:
    """Calls of all kinds, alone and beside refits: by condition the rounds, and all of them together."""
    seen: dict[str, list[dict[str, Seen]]] = {ALONE: [], BESIDE: [], NICED: []}
    busy = {condition: dict.fromkeys(("gateway", "upstream", "caller"), 0.0) for condition in seen}
    with (
        Ready(folder) as ready,
        Refit(folder / "refit") as refit,
        Refit(folder / "niced", nice=True) as niced,
    ):
        beside: dict[str, Callable[[], AbstractContextManager[None]]] = {
            ALONE: contextlib.nullcontext,
            BESIDE: refit.going,
            NICED: niced.going,
        }
        handled, _, deferred = texts_by_need(Policy.load(ready.policy))
        requests = {
            HANDLED: [ready.request(text) for text in handled],
            FORWARDED: [ready.request(text) for text in deferred],
            STREAMED: [ready.request(text, stream=True) for text in deferred],
        }
        seconds = arguments.seconds / arguments.rounds
        for number in range(-1, arguments.rounds):  # the first opens the upstream's connections and warms up
            for condition in list(seen)[:: 1 if number % 2 else -1]:
                with beside[condition]():
                    time.sleep(_SETTLE_SECONDS)
                    before = ready.busy()
                    found = uvloop.run(_mixed_round(ready.port, requests, arguments.rate, seconds, number))
                    after = ready.busy()
                if number >= 0:
                    seen[condition].append(found)
                    for name, spent in after.items():
                        busy[condition][name] += (spent - before[name]) / arguments.seconds
        refits = {BESIDE: refit.done(), NICED: niced.done()}
    rows = {condition: _together(rounds) for condition, rounds in seen.items()}
    each = {condition: [_rows(round_) for round_ in rounds] for condition, rounds in seen.items()}
    return {"rows": rows, "rounds": each, "refits": refits, "busy": busy}


async def _mixed_round(
    port: int, requests: dict[str, list[bytes]], rate: float, seconds: float, seed: int
) -> dict[str, Seen]:
    loads = []
    for kind, share in SHARES.items():
        lines = await connect(port, round(share * CONNECTIONS))
        loads.append(Load(kind, share * rate, lines, requests[kind]))
    try:
        return await open_loop(loads, seconds, seed)
    finally:
        for load in loads:
            for line in load.lines:
                line.close()


def transformer(folder: Path, arguments: argparse.Namespace) -> Result:
    """Handled calls of a cascade, of which 30 % need its encoder."""
    with Ready(folder, f"lexical,static,transformer:{MODEL}") as ready:
        cheap, dear, _ = texts_by_need(Policy.load(ready.policy))

        async def run() -> Seen:
            lines = await connect(ready.port, CASCADE_LINES)
            needing = round(NEEDING * CASCADE_LINES)
            loads = [
                Load(HANDLED, (1 - NEEDING) * PER_SECOND, lines[needing:], [ready.request(text) for text in cheap]),
                Load(HANDLED, NEEDING * PER_SECOND, lines[:needing], [ready.request(text) for text in dear]),
            ]
            await open_loop(loads, min(3.0, arguments.seconds))
            return (await open_loop(loads, arguments.seconds, 1))[HANDLED]

        seen = uvloop.run(run())
    return {"row": seen.row(), "needing": NEEDING, "texts": {"cheap": len(cheap), "needing": len(dear)}}


def memory(folder: Path, arguments: argparse.Namespace) -> Result:
    """Memory in MB by the number of calls made."""
    with Ready(folder, upstream_seconds=0.0) as ready:
        handled, _, deferred = texts_by_need(Policy.load(ready.policy))
        plain = [ready.request(text) for text in handled]
        points = {0: ready.memory()}
        errors: list[str] = []
        started = time.monotonic()

        def request(number: int) -> bytes:
            if number % 2:
                return plain[number % len(plain)]
            return ready.request(f"{deferred[number % len(deferred)]} {number}")

        async def run() -> None:
            lines = await connect(ready.port, MEMORY_LINES)
            stops = [FIRST, *range(STEP, arguments.calls + 1, STEP)]
            for before, stop in zip([0, *stops], stops, strict=False):
                errors.extend(await closed_loop(lines, lambda n, b=before: request(b + n), stop - before))  # type: ignore[misc]
                await asyncio.sleep(1)  # what is on its way to the trace store arrives
                points[stop] = ready.memory()

        uvloop.run(run())
        seconds = time.monotonic() - started
    return {
        "memory_mb": points,
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "seconds": seconds,
    }


def _together(rounds: Sequence[dict[str, Seen]]) -> dict[str, Any]:
    found: dict[str, Seen] = {}
    for each in rounds:
        for kind, seen in each.items():
            found.setdefault(kind, Seen()).add(seen)
    return _rows(found)


def _rows(seen: dict[str, Seen]) -> dict[str, Any]:
    return {kind: each.row() for kind, each in seen.items()}


def _where(where: dict[str, Any]) -> str:
    commit, date = short(where["commit"]), where["date"][:10]
    return f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {commit}, {date}."


SCENARIOS = {"mixed": mixed, "transformer": transformer, "memory": memory}
BARS = {"mixed": tables.mixed_missed, "transformer": tables.transformer_missed, "memory": tables.memory_missed}
TABLES = {"mixed": tables.mixed_table, "transformer": tables.transformer_table, "memory": tables.memory_table}

if __name__ == "__main__":
    main()
