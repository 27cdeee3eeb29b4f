"""The whole loop on real input: banking77 arrives as live calls, and the gateway learns as it forwards them.

    python -m bench.flywheel [--out bench/results/flywheel.json]

`traces.jsonl` is sent in file order through the official `openai` client. The teacher is a scripted server that answers
the recorded label after 20 ms. There is no policy at the start; after every 2,000 calls the traces are exported and the
policy is fitted, later updated, while the gateway runs. Coverage and agreement are those of the calls actually made.
At the end `tracer evaluate` judges the last policy on `traffic.jsonl`. The data are read from TRACER_DATA, or from
../shared/data.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from bench.stamp import stamp
from gateway.demo import days, driver, processes
from gateway.demo.days import Day
from gateway.demo.show import Screen
from gateway.demo.stack import Learned, Stack, Task
from gateway.demo.workload import Message
from policies.traces import read_traces

DATA = Path(os.environ.get("TRACER_DATA", "../shared/data")) / "banking77"
SYSTEM_PROMPT = "You sort messages to a bank. Answer with the name of one intent and nothing else."
CALLS_A_DAY = 2_000
TEACHER_SECONDS = 0.02
TARGET = 0.95
CONCURRENCY = 32


def main(
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = Path("bench/results/flywheel.json"),
    limit: Annotated[int, typer.Option(help="Send only the first so many calls.")] = sys.maxsize,
) -> None:
    """Run the flywheel, print a table and write the result."""
    console = Console()
    screen = Screen(console)
    started = time.monotonic()
    traces = read_traces(DATA / "traces.jsonl").traces[:limit]
    messages = [Message(trace.input, trace.teacher) for trace in traces]
    task = Task(
        project="banking77",
        system_prompt=SYSTEM_PROMPT,
        labels={message.text: message.label for message in messages},
        target=TARGET,
        median=TEACHER_SECONDS,
    )
    with tempfile.TemporaryDirectory(prefix="tracer-flywheel-") as folder:
        with Stack(task, Path(folder), on_command=screen.command) as stack:
            seen, verdicts = run_days(stack, messages, screen)
        evaluation = evaluate(stack.policy)
    result = {
        "stamp": stamp(),
        "data": "banking77",
        "calls": len(messages),
        "target": TARGET,
        "concurrency": CONCURRENCY,
        "teacher_ms": TEACHER_SECONDS * 1e3,
        "days": [as_row(day) for day in seen],
        "learned": [{key: verdict.get(key) for key in VERDICT_KEYS} for verdict in verdicts],
        "evaluate_on_traffic": evaluation,
        "seconds": round(time.monotonic() - started, 1),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    print_table(console, seen, evaluation)
    console.print(f"{out}: {result['seconds']} s", highlight=False)
    found = days.faults(seen, TARGET)
    for fault in found:
        console.print(f"DID NOT HOLD: {fault}", style="red", highlight=False)
    raise typer.Exit(1 if found else 0)


VERDICT_KEYS = (
    "refused",
    "reason",
    "coverage",
    "teacher_agreement",
    "teacher_agreement_lower",
    "n_traces",
    "n_labels",
    "seconds",
    "replaced",
)


def day_bounds(n: int) -> list[tuple[int, int]]:
    """First and last-but-one call of each day; a short rest belongs to the last day."""
    starts = [day * CALLS_A_DAY for day in range(max(1, round(n / CALLS_A_DAY)))]
    return list(zip(starts, [*starts[1:], n], strict=True))


def run_days(stack: Stack, messages: Sequence[Message], screen: Screen) -> tuple[list[Day], list[dict[str, Any]]]:
    """Every day's calls, each followed by learning."""
    application = stack.application(CONCURRENCY)
    seen: list[Day] = []
    verdicts: list[dict[str, Any]] = []
    forwarded = 0
    for number, (start, stop) in enumerate(day_bounds(len(messages)), 1):
        today = messages[start:stop]
        with screen.day(number, len(today)) as on_call:
            calls = driver.drive(application, today, on_call)
        seen.append(days.summarise(number, calls, application.system_prompt))
        forwarded += sum(call.forwarded for call in calls)
        learned: Learned = stack.learn(forwarded)
        screen.learned(learned)
        verdicts.append(dict(learned.verdict))
    return seen, verdicts


def evaluate(policy: Path) -> dict[str, Any]:
    """What `tracer evaluate` says of the last policy on traffic that never went through the gateway."""
    traffic = str(DATA / "traffic.jsonl")
    argv = [sys.executable, "-m", "tracer", "evaluate", traffic, "--policy", str(policy), "--json"]
    found: dict[str, Any] = orjson.loads(processes.run(argv))
    return found


def as_row(day: Day) -> dict[str, Any]:
    """The figures of a day that mean something here: the teacher's price and the one-by-one times do not."""
    row = asdict(day)
    kept = {key: row[key] for key in ("number", "calls", "failed", "handled", "agreed", "forwarded_seconds")}
    return {**kept, "coverage": round(day.coverage, 4), "agreement": day.agreement and round(day.agreement, 4)}


def print_table(console: Console, seen: Sequence[Day], evaluation: dict[str, Any]) -> None:
    """A row a day, and one for the traffic at the end."""
    table = Table("day", "calls", "handled", "coverage", "agreement", title="banking77 as live calls")
    for day in seen:
        agreement = "" if day.agreement is None else f"{day.agreement:.4f}"
        table.add_row(str(day.number), str(day.calls), str(day.handled), f"{day.coverage:.3f}", agreement)
    last = evaluation["teacher_agreement"]
    table.add_row(
        "traffic",
        str(evaluation["n"]),
        str(evaluation["n_handled"]),
        f"{evaluation['coverage']:.3f}",
        "" if last is None else f"{last:.4f}",
    )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
