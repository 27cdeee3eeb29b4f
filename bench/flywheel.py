"""The whole loop on real input: banking77 arrives as live calls, and the gateway learns as it forwards them.

python bench/flywheel.py [--out FILE]

`traces.jsonl` is sent in file order through the official `openai` client. The teacher is a scripted server that answers
the recorded label after 20 ms. There is no policy at the start; after every 2,000 calls the traces are exported and the
policy is fitted, later updated, while the gateway runs. Coverage and agreement are those of the calls actually made.
At the end `tracer evaluate` judges the last policy on `traffic.jsonl`. Prints a Markdown table and writes the figures
as JSON with machine and versions. Exits with 1 where a call failed or agreement fell below the target.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.stamp import stamp
from gateway.demo import days, driver, processes
from gateway.demo.days import Day
from gateway.demo.show import Screen
from gateway.demo.stack import Stack, Task
from gateway.demo.workload import Message
from policies.traces import read_traces

DATA = Path(os.environ.get("TRACER_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data")) / "banking77"
SYSTEM_PROMPT = "You sort messages to a bank. Answer with the name of one intent and nothing else."
CALLS_A_DAY = 2_000
TEACHER_SECONDS = 0.02
TARGET = 0.95
CONCURRENCY = 32


def main() -> None:
    """Run the flywheel, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no data set in TRACER_DATA ({DATA})")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tracer-flywheel-") as folder:
        seen, verdicts, evaluation = measure(Path(folder), Screen(Console(stderr=True)))
    print_table(seen, evaluation)
    seconds = round(time.monotonic() - started, 1)
    where = stamp()
    print(f"\n{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {(where['commit'] or '?')[:12]}")
    if arguments.out is not None:
        conditions = {"target": TARGET, "calls_a_day": CALLS_A_DAY, "concurrency": CONCURRENCY, "seconds": seconds}
        rows = {"days": [as_row(day) for day in seen], "learned": verdicts, "traffic": evaluation}
        result = {"stamp": where, "teacher_ms": TEACHER_SECONDS * 1e3, **conditions, **rows}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    found = days.faults(seen, TARGET)
    for fault in found:
        print(f"DID NOT HOLD: {fault}")
    sys.exit(1 if found else 0)


def measure(folder: Path, screen: Screen) -> tuple[list[Day], list[dict[str, Any]], dict[str, Any]]:
    """Every day's figures, the verdict after each, and `tracer evaluate` of the last policy on the traffic."""
    traces = read_traces(DATA / "traces.jsonl").traces
    messages = [Message(trace.input, trace.teacher) for trace in traces]
    task = Task(
        project="banking77",
        system_prompt=SYSTEM_PROMPT,
        labels={message.text: message.label for message in messages},
        target=TARGET,
        median=TEACHER_SECONDS,
    )
    with Stack(task, folder, on_command=screen.command) as stack:
        seen, verdicts = run_days(stack, messages, screen)
    traffic, policy = str(DATA / "traffic.jsonl"), str(stack.policy)
    argv = [sys.executable, "-m", "tracer", "evaluate", traffic, "--policy", policy, "--json"]
    return seen, verdicts, json.loads(processes.run(argv))


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
        learned = stack.learn(forwarded)
        screen.learned(learned)
        verdicts.append({key: value for key, value in learned.verdict.items() if key != "policy"})
    return seen, verdicts


def day_bounds(n: int) -> list[tuple[int, int]]:
    """First call of each day and of the next; a short rest belongs to the last day."""
    starts = [day * CALLS_A_DAY for day in range(max(1, round(n / CALLS_A_DAY)))]
    return list(zip(starts, [*starts[1:], n], strict=True))


def as_row(day: Day) -> dict[str, Any]:
    """The figures of a day that mean something here: the teacher's price and the calls' times do not."""
    return {
        "day": day.number,
        "calls": day.calls,
        "failed": len(day.failures),
        "handled": day.handled,
        "agreed": day.agreed,
        "coverage": round(day.coverage, 4),
        "agreement": None if day.agreement is None else round(day.agreement, 4),
    }


def print_table(seen: Sequence[Day], evaluation: dict[str, Any]) -> None:
    """A row a day, and one for the traffic at the end."""
    print("| day | calls | handled | coverage | agreement on handled calls |")
    print("|---|---|---|---|---|")
    for day in seen:
        print(_row(str(day.number), day.calls, day.handled, day.coverage, day.agreement))
    n, handled, coverage = (evaluation[key] for key in ("n", "n_handled", "coverage"))
    print(_row("`traffic.jsonl`, after day " + str(len(seen)), n, handled, coverage, evaluation["teacher_agreement"]))


def _row(name: str, calls: int, handled: int, coverage: float, agreement: float | None) -> str:
    return f"| {name} | {calls:,} | {handled:,} | {coverage:.3f} | {'' if agreement is None else f'{agreement:.4f}'} |"


if __name__ == "__main__":
    main()
