"""What a call costs through ours, through other gateways, and through servers that do nothing: one run, one machine.

python bench/peers.py [--rows NAMES] [--connections 1,32,256] [--rounds 5] [--seconds 3] [--slow-rounds 2] [--no-pin]
    [--peer-env FOLDER] [--out FILE [--resume]] [--write-docs]

The request is that of a classifier with banking77's 77 labels, about 2 kB. wrk sends those messages of `traffic.jsonl`
that a policy fitted on `traces.jsonl` at 0.95 handles, or those it defers; a gateway remembers what a policy has said
of a short text, so there is a row with more texts than it remembers as well. Every server is one process, and all stand
ready while one is asked, but for the slow ones (LiteLLM, Portkey, tracer-llm), which run in their turn alone and in
fewer rounds. In each round the rows take turns, forwards or backwards. A server has one core; wrk has another, together
with the upstream behind a server; --no-pin leaves that to the system. Answers are checked before and after each load,
and ours by the gateway's own count of lanes. Peers are installed under --peer-env where they are missing. Prints two
Markdown tables, the rows and the bars that ours has to clear; exits with 1 where one is missed or a server failed.
--resume measures the rows asked for and keeps the others of --out. Linux only.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import installs, servers
from bench.frontier import CACHE, DATA, DOCS, write_docs
from bench.installs import LITELLM, PORTKEY, TRACER_LLM, NotInstalledError
from bench.loads import SLOW_TIMES, Bench, Cores, RowKind, chat_request, load
from bench.servers import Place, Server
from bench.stamp import stamp
from bench.verdict import BARS, judge, render
from gateway.demo import processes
from gateway.demo.errors import DemoError
from policies.traces import read_traces

SET = DATA / "banking77"
MOST_MESSAGES = 500
NEW_MESSAGES = 10_000  # more than twice as many as are remembered
OPENINGS = ("hi", "hello", "good morning", "good evening", "hey there", "hi team", "please help", "quick question")
ROWS = {
    "upstream": RowKind("the upstream itself: nginx, a constant answer", "upstream"),
    "nginx": RowKind("nginx, `proxy_pass` to it", "nginx"),
    "empty": RowKind("empty Starlette app on uvicorn", "empty"),
    "handled": RowKind("**ours, handled**: texts seen before", "gateway", "surrogate"),
    "new": RowKind("**ours, handled**: every text new", "gateway", "surrogate", "new"),
    "streamed": RowKind("**ours, handled, streamed**: every text new", "gateway", "surrogate", "new", stream=True),
    "new-2": RowKind(
        "**ours, handled, two workers**: every text new", "gateway-2", "surrogate", "new", needs="--workers"
    ),
    "relay": RowKind("bare Starlette + aiohttp relay", "relay"),
    "forwarded": RowKind("**ours, forwarded**: decided, deferred, traced", "forwarding", "teacher", "deferred"),
    "observed": RowKind("**ours, forwarded**: no policy yet, traced", "observing", "teacher"),
    "passed": RowKind("**ours, forwarded, streamed**", "forwarding", "teacher", "deferred", stream=True),
    "forwarded-2": RowKind(
        "**ours, forwarded, two workers**", "forwarding-2", "teacher", "deferred", needs="--workers"
    ),
    "portkey": RowKind(f"Portkey gateway {PORTKEY}, forwarded", "portkey", slow=True),
    "litellm": RowKind(f"LiteLLM proxy {LITELLM}, forwarded", "litellm", slow=True),
    "tracer-llm": RowKind(f"tracer-llm {TRACER_LLM} `tracer serve`, given an embedding", "tracer-llm", slow=True),
}
TITLES = {name: kind.title for name, kind in ROWS.items()}


def main() -> None:
    """Measure, print the tables, write the result."""
    arguments = parse(sys.argv[1:])
    check_tools()
    result = read_result(arguments.out) if arguments.resume else {"runs": [], "rows": {}, "absent": {}}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tracer-peers-") as folder:
        measure(Path(folder), arguments, result)
    text = render(result, TITLES)
    print(text)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    if arguments.write_docs:
        write_docs(DOCS, "bench/peers.py", text)
    missed = [bar.title for bar in BARS if judge(bar, result["rows"], result["runs"][-1]["stamp"]["cores"]).missed]
    failed = [row for row, found in result["rows"].items() if not found["rounds"]]
    if missed or failed:
        sys.exit("\n" + "; ".join([*(f"missed: {bar}" for bar in missed), *(f"failed: {row}" for row in failed)]))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, checked; exits with argparse's message where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_names, default=list(ROWS), help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--connections", type=_numbers, default=[1, 32, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of one load, after a second of warm-up")
    parser.add_argument("--slow-rounds", type=int, default=2, help="for LiteLLM, Portkey and tracer-llm")
    parser.add_argument("--no-pin", action="store_true", help="let the system choose the cores")
    parser.add_argument("--peer-env", type=Path, default=CACHE, help="where the peers are installed")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--resume", action="store_true", help="keep the other rows that --out already has")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    found = parser.parse_args(argv)
    if min(found.rounds, found.seconds, found.slow_rounds) < 1:
        parser.error("--rounds, --seconds and --slow-rounds are at least 1")
    if found.resume and found.out is None:
        parser.error("--resume needs --out")
    return found


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ROWS)}")
    return [name for name in ROWS if name in names]


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(part) for part in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError("at least one connection")
    return numbers


def check_tools() -> None:
    """Exit with what to install where data or programs are missing that no row can do without."""
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("this reads /proc: Linux only")
    if not SET.is_dir():
        sys.exit(f"no data set in TRACER_DATA ({SET})")
    missing = [name for name in ("wrk", "nginx") if shutil.which(name) is None]
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (Debian: apt-get install {' '.join(missing)})")


def read_result(file: Path) -> dict[str, Any]:
    """What an earlier run wrote."""
    if not file.is_file():
        return {"runs": [], "rows": {}, "absent": {}}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def measure(folder: Path, arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """All rows that are asked for and can be had, round by round, into `result`, and into the file after each round."""
    cores = choose_cores(sorted(os.sched_getaffinity(0)), arguments.no_pin)
    prompt, policy = system_prompt(), fit(folder)
    place = Place(folder, arguments.peer_env, prompt, policy)
    with ExitStack() as stack:
        behind = stack.enter_context(Server("behind", place, cores.of("behind")))
        place = Place(folder, arguments.peer_env, prompt, policy, behind.port)
        bench = Bench(place, cores, arguments.seconds, {"behind": behind})
        rows, absent = available(arguments.rows, place)
        for name in {"gateway", *(ROWS[row].server for row in rows if not ROWS[row].slow)}:
            bench.running[name] = stack.enter_context(Server(name, place, cores.of(name)))
        with_new = any(ROWS[row].messages == "new" for row in rows)
        sort_messages(bench, "tracer-llm" in rows, with_new)
        new = open_run(result, rows, absent, arguments, cores)
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            quick = [row for row in rows if not ROWS[row].slow]
            for connections in arguments.connections:
                for row in quick if number % 2 == 0 else reversed(quick):
                    say(row, load(bench, bench.running[ROWS[row].server], ROWS[row], connections, new[row], number))
            for row in rows if number < arguments.slow_rounds else []:
                if ROWS[row].slow:
                    slow_round(bench, row, arguments.connections, new[row], number)
            write(result, arguments.out)


def choose_cores(allowed: list[int], free: bool) -> Cores:
    """One core for a server and another for wrk; several workers have all that wrk leaves, or all there are of two."""
    if free or len(allowed) < 2 or shutil.which("taskset") is None:
        return Cores()
    return Cores(allowed[:1], allowed[:-1] if len(allowed) > 2 else allowed, allowed[-1:])


def available(rows: list[str], place: Place) -> tuple[list[str], dict[str, str]]:
    """The rows that can be measured here, with their peers installed, and why the others cannot."""
    install: dict[str, Callable[[Path], Any]] = {
        "litellm": installs.install_litellm,
        "portkey": installs.install_portkey,
        "tracer-llm": installs.fit_tracer_llm,
    }
    absent = {}
    for row in rows:
        needed = ROWS[row].needs
        try:
            if needed is not None and not servers.tracer_has(needed):
                raise NotInstalledError(f"`tracer serve` has no {needed} yet")
            if row in install:
                install[row](place.peers)
        except NotInstalledError as error:
            absent[row] = str(error).splitlines()[0]
            print(f"left out: {row}: {error}", file=sys.stderr)
    return [row for row in rows if row not in absent], absent


def open_run(
    result: dict[str, Any], rows: list[str], absent: Mapping[str, str], arguments: argparse.Namespace, cores: Cores
) -> dict[str, dict[str, Any]]:
    """A new run in `result`, its rows empty and in the place of older ones; returns the rows."""
    number = max((run["id"] for run in result["runs"]), default=0) + 1
    pinned = "servers on one core, wrk and the upstream on another" if cores.server else "cores left to the system"
    options = {key: getattr(arguments, key) for key in ("rounds", "seconds", "slow_rounds", "connections")}
    options |= {"slow_seconds": arguments.seconds * SLOW_TIMES, "cores": pinned}
    versions = installs.versions(arguments.peer_env)
    result["runs"].append({"id": number, "stamp": stamp(), "options": options, "versions": versions})
    new: dict[str, dict[str, Any]] = {row: {"run": number, "rounds": [], "faults": {}} for row in rows}
    result["rows"] |= new
    kept = {row["run"] for row in result["rows"].values()}
    result["runs"] = [run for run in result["runs"] if run["id"] in kept]
    result["absent"] = {row: why for row, why in (result["absent"] | absent).items() if row not in result["rows"]}
    return new


def system_prompt() -> str:
    """A classifier's instructions with all labels of the data set."""
    labels = sorted({trace.teacher for trace in read_traces(SET / "traces.jsonl").traces})
    return f"You sort messages to a bank. Answer with one of these intents and nothing else: {', '.join(labels)}"


def fit(folder: Path) -> Path:
    """A policy for banking77 at 0.95. Exits where `tracer fit` fails or refuses."""
    print("fitting banking77 at 0.95", file=sys.stderr)
    policy = folder / "policy"
    command = [sys.executable, "-m", "tracer", "fit", str(SET / "traces.jsonl"), "--target", "0.95"]
    found = json.loads(processes.run([*command, "--out", str(policy), "--json"]))
    if found["refused"]:
        sys.exit(f"no policy: {found['reason']}")
    return policy


def sort_messages(bench: Bench, with_vectors: bool, with_new: bool) -> None:
    """Ask the gateway for every message of the traffic, and keep what it handles and what it defers."""
    gateway = bench.running["gateway"]
    lanes: dict[str, list[int]] = {"surrogate": [], "teacher": []}
    texts = [trace.input for trace in read_traces(SET / "traffic.jsonl").traces]
    for index, text in enumerate(texts):
        request = chat_request(gateway, servers.chat(bench.place.system_prompt, text), ROWS["handled"])
        lanes[gateway.ask(request).headers["x-tracer-lane"]].append(index)
    handled, deferred = (lanes[lane][:MOST_MESSAGES] for lane in ("surrogate", "teacher"))
    bench.messages = {"handled": [texts[i] for i in handled], "deferred": [texts[i] for i in deferred]}
    if with_new:
        bench.messages["new"] = new_messages(bench, [texts[i] for i in lanes["surrogate"]])
    if with_vectors:
        vectors = np.load(installs.fit_tracer_llm(bench.place.peers)[2])
        bench.vectors = [json.dumps({"embedding": vectors[i].tolist()}).encode() for i in handled]


def new_messages(bench: Bench, texts: list[str]) -> list[str]:
    """Handled messages behind openings of several kinds, those that are handled so, too."""
    gateway, found = bench.running["gateway"], list[str]()
    for text in (f"{opening}, {text}" for opening in OPENINGS for text in texts):
        request = chat_request(gateway, servers.chat(bench.place.system_prompt, text), ROWS["handled"])
        if gateway.ask(request).headers["x-tracer-lane"] == "surrogate":
            found.append(text)
            if len(found) == NEW_MESSAGES:
                break
    return found


def slow_round(bench: Bench, row: str, connections: list[int], found: dict[str, Any], number: int) -> None:
    """One round of a server that runs in its turn alone."""
    name = ROWS[row].server
    shutil.rmtree(bench.place.folder / name, ignore_errors=True)
    try:
        with Server(name, bench.place, bench.cores.of(name)) as server:
            for each in connections:
                say(row, load(bench, server, ROWS[row], each, found, number))
    except DemoError as error:
        what = str(error).splitlines()[0]
        found["faults"][what] = found["faults"].get(what, 0) + 1
        print(error, file=sys.stderr)


def say(row: str, figures: Mapping[str, Any]) -> None:
    """One line of progress."""
    print(
        f"  {row:12} c={figures['connections']:<4} p50 {figures['p50_us']:>9,} us  p99 {figures['p99_us']:>9,} us"
        f"  {figures['calls_a_second']:>9,.0f}/s  {figures['cpu_us']:>6,.0f} us of CPU a call",
        file=sys.stderr,
    )


def write(result: dict[str, Any], out: Path | None) -> None:
    """Put the result so far into the file, whole or not at all."""
    if out is not None:
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.replace(out)


if __name__ == "__main__":
    main()
