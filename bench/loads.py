"""One load of one row of `peers.py`: what is sent, what came of it, and whether the answers were the right ones."""

import http.client
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from bench import nginx, servers, wrk
from bench.scale import family
from bench.servers import Answer, Place, Server
from gateway.demo import processes

WARM_UP_SECONDS = 1
SLOW_TIMES = 3  # a call of theirs may take seconds
SETTLE_SECONDS = 30.0
DECIDED = "decisions"  # of which none was remembered
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class RowKind:
    """A row: the server that is asked, with what, and which lane has to answer."""

    title: str
    server: str
    lane: str | None = None
    messages: str = "handled"
    stream: bool = False
    slow: bool = False
    needs: str | None = None  # an option of `tracer serve`


@dataclass(frozen=True, slots=True)
class Cores:
    """Where servers, many workers, and wrk with the upstream behind run; None: anywhere."""

    server: list[int] | None = None
    workers: list[int] | None = None
    load: list[int] | None = None

    def of(self, name: str) -> list[int] | None:
        """The cores of a server."""
        return self.load if name == "behind" else self.workers if name.endswith("-2") else self.server


@dataclass(slots=True)
class Bench:
    """What a run needs: the servers that stand ready, the messages by kind, and the cores."""

    place: Place
    cores: Cores
    seconds: int
    running: dict[str, Server] = field(default_factory=dict)
    messages: dict[str, list[str]] = field(default_factory=dict)
    vectors: list[bytes] = field(default_factory=list)  # bodies for tracer-llm


def load(
    bench: Bench, server: Server, kind: RowKind, connections: int, found: dict[str, Any], number: int
) -> dict[str, Any]:
    """One load of one row: warm-up, checks before and after; its figures, memory and faults go into the row `found`.

    Returns the figures: those of `wrk.run`, and `cpu_us`, the server's processor time a call. Raises LoadError.
    """
    requests = requests_of(bench, server, kind)
    file, warm = (bench.place.folder / server.name / name for name in ("requests", "warm-up"))
    # What is to be new must not have been part of the warm-up.
    split = len(requests) * 7 // 10 if kind.messages == "new" else 0
    wrk.write_requests(file, requests[split and 0 : split or None])
    wrk.write_requests(warm, requests[split:])
    start = servers.pinned(bench.cores.load)
    seconds = bench.seconds * (SLOW_TIMES if kind.slow else 1)
    settle([*bench.running.values(), server])
    wrk.run(server.port, warm, connections, WARM_UP_SECONDS, start)
    faults = check(server, kind, requests[split:])
    counts, cpu = own_counts(server, kind), cpu_seconds(server.pid)
    figures = wrk.run(server.port, file, connections, seconds, start)
    figures["cpu_us"] = round((cpu_seconds(server.pid) - cpu) / max(1, figures["requests"]) * 1e6, 1)
    settle([server])
    after = own_counts(server, kind)
    faults += miscounted(counts, after, kind)
    if kind.messages == "new":
        faults += remembered(counts, after, figures["requests"])
    faults += check(server, kind, requests[split:])
    faults += Counter({f"{what} errors of wrk": count for what, count in figures["errors"].items() if count})
    keep(found, number, figures, memory_of(server.pid), faults)
    return figures


def keep(
    found: dict[str, Any], number: int, figures: dict[str, Any], memory: dict[str, int], faults: Counter[str]
) -> None:
    """Put one load into its row: figures by round and connections, the most memory so far, faults added up."""
    connections = figures["connections"]
    if not found["rounds"] or found["rounds"][-1]["round"] != number:
        found["rounds"].append({"round": number, "loads": {}})
    found["rounds"][-1]["loads"][str(connections)] = figures
    older = found.get("memory", memory)
    found["memory"] = {name: max(older[name], memory[name]) for name in memory}
    for what, count in faults.items():
        key = f"{what} ({connections} connection{'s' * (connections > 1)})"
        found["faults"][key] = found["faults"].get(key, 0) + count


def settle(running: list[Server]) -> None:
    """Wait until the servers have nothing left to do, such as traces to write."""
    until = time.monotonic() + SETTLE_SECONDS
    before = sum(cpu_seconds(server.pid) for server in running)
    while time.monotonic() < until:
        time.sleep(0.2)
        now = sum(cpu_seconds(server.pid) for server in running)
        if now - before < 0.03:
            return
        before = now


def check(server: Server, kind: RowKind, requests: list[bytes]) -> Counter[str]:
    """What is wrong with the answers to a few of the requests, and how often."""
    faults: Counter[str] = Counter()
    for request in requests[:: max(1, len(requests) // 3)][:3]:
        try:
            found = fault(server.ask(request), kind)
        except (OSError, http.client.HTTPException) as error:
            found = f"no answer, {type(error).__name__}"
        if found is not None:
            faults[f"checks: {found}"] += 1
    return faults


def fault(answer: Answer, kind: RowKind) -> str | None:
    """What is wrong with one answer."""
    if answer.status != 200:
        return f"status {answer.status}"
    lane = answer.headers.get("x-tracer-lane")
    if kind.lane != lane:
        return f"answered by lane {lane}"
    if kind.stream:
        whole = answer.body.endswith(b"data: [DONE]\n\n")
        events = answer.headers.get("content-type", "").startswith("text/event-stream")
        return None if whole and events else "no whole stream"
    return None if label_of(answer.body) else "no label in the answer"


def label_of(body: bytes) -> str | None:
    """The label that a chat completion, or tracer-llm's answer, carries."""
    try:
        read = orjson.loads(body)
        found = read["label"] if "label" in read else read["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None


def own_counts(server: Server, kind: RowKind) -> dict[str, float]:
    """What our gateway has counted: calls by lane, traces dropped, faults at its borders; empty for others."""
    if kind.lane is None:
        return {}
    found: dict[str, float] = {}
    page = (processes.get(server.port, "/metrics") or b"").decode()
    for sample in (one for metric in text_string_to_metric_families(page) for one in metric.samples):
        if sample.name == "tracer_requests_total":
            key = f"calls by lane {sample.labels['lane']}"
        elif sample.name == "tracer_decision_seconds_count":
            key = DECIDED
        elif sample.name in {"tracer_traces_dropped_total", "tracer_internal_errors_total"}:
            key = sample.name.removeprefix("tracer_").removesuffix("_total").replace("_", " ")
        else:
            continue
        found[key] = found.get(key, 0.0) + sample.value
    return found


def miscounted(before: Mapping[str, float], after: Mapping[str, float], kind: RowKind) -> Counter[str]:
    """What the gateway counted during a load beside calls by the row's lane."""
    expected = {f"calls by lane {kind.lane}", DECIDED}
    more = {key: round(value - before.get(key, 0.0)) for key, value in after.items() if key not in expected}
    return Counter({key: count for key, count in more.items() if count > 0})


def remembered(before: Mapping[str, float], after: Mapping[str, float], calls: int) -> Counter[str]:
    """How many of so many new texts the gateway did not have to decide on, where that is more than one in a hundred."""
    known = calls - round(after.get(DECIDED, 0.0) - before.get(DECIDED, 0.0))
    return Counter({"texts that were not new": known} if known > calls / 100 else {})


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all that descend from it so far."""
    total = 0
    for each in family(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process and all that descend from it: `rss` counts shared pages in each, `pss` once."""
    found = {"rss": 0, "pss": 0}
    for each in family(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name.lower() in found:
                found[name.lower()] += int(rest.split()[0]) * 1024
    return found


def requests_of(bench: Bench, server: Server, kind: RowKind) -> list[bytes]:
    """What wrk sends for a row."""
    if kind.server == "tracer-llm":
        return [wrk.http_request(server.port, "/predict", servers.ALWAYS, body) for body in bench.vectors]
    bodies = (servers.chat(bench.place.system_prompt, text, kind.stream) for text in bench.messages[kind.messages])
    return [chat_request(server, body, kind, bench.place.behind) for body in bodies]


def chat_request(server: Server, body: bytes, kind: RowKind, behind: int = 0) -> bytes:
    """One chat completion call of a row."""
    headers = dict(servers.ALWAYS)
    if kind.stream and kind.lane == "teacher":
        headers |= nginx.STREAMED
    if kind.server == "portkey":
        headers |= {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{behind}/v1"}
    return wrk.http_request(server.port, "/v1/chat/completions", headers, body)
