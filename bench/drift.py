"""What happens when the world changes under a live policy: noticed when, at which price, and back how.

python bench/drift.py [--scenario NAME ...] [--out FILE] [--plot FILE] [--write-docs] [--later]

banking77 through `tracer serve`, over sockets, with default settings but for the day's cap on audits; the teacher is a
scripted server. A policy for 0.95 is fitted on one half of the traces and starts in shadow. Live calls are the other
half, again and again in new orders and in other capitals, which the policy does not see; after a refit they are
`traffic.jsonl`, which nothing was fitted on. To learn anew, all calls go to the teacher (`tracer pause`, where the
policy was not stopped as a whole), and 5,000 of them are exported and fitted on. Traffic rests during the fit. Prints a
timeline for each scenario and one table; with --out the figures as JSON, with --plot (PNG or SVG, the extra `plot`) the
coverage and the agreement that the application saw.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from bench import drift_plot, drift_tables
from bench.drift_scenarios import SCENARIOS, Data, Scenario, in_other_capitals, read_data
from bench.frontier import DATA, DOCS, write_docs
from bench.life import PROJECT, Call, Life, living
from bench.stamp import stamp
from gateway.demo import processes
from policies.policy import Policy
from policies.traces import write_traces

TARGET = 0.95
PROMPT = "You sort messages to a bank. Today is 2026-11-23. Answer with the name of one intent and nothing else."
# Calls: before the event, at most until it is noticed, to learn from, and after recovery.
HEALTHY, NOTICED, AFTERWARDS, RECOVERED = 3_000, 20_000, 5_000, 2_500
PROVING = 20_000  # at most, for a policy in shadow
QUIET = 3_000  # where nothing is to happen
# A day's calls pass in half a minute: its 2,000 audits would be spent by then.
AUDIT = {"daily_calls": 1_000_000}
LATER = {"first_hours": 0}
_LAST_SECONDS = 1.5  # in which the last audits come in, and the last traces and moves are written


def main() -> None:
    """Run the scenarios and say what came of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=sorted(SCENARIOS))
    parser.add_argument("--rate", type=float, default=800.0, help="calls a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--later", action="store_true", help="audit as after the first hours: 2 %% instead of 10 %%")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if not (DATA / "banking77").is_dir():
        sys.exit(f"no data set in TRACER_DATA ({DATA})")
    started = time.monotonic()
    audit = AUDIT | (LATER if options.later else {})
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tracer-drift-") as name:
        folder, data = Path(name), read_data(DATA)
        fitted = fit(data, folder)
        for scenario in options.scenario or SCENARIOS:
            print(f"\n## {scenario}: {SCENARIOS[scenario].title}\n", flush=True)
            place = folder / scenario
            place.mkdir()
            shutil.copytree(folder / "policy", place / "policy")
            story = Story(SCENARIOS[scenario], data, place, Random(options.seed))
            found[scenario] = asyncio.run(story.run(options.rate, audit))
            print(drift_tables.timeline(found[scenario]), flush=True)
    conditions = {
        "target": TARGET,
        "calls_a_second": options.rate,
        "seed": options.seed,
        "audit": audit,
        "fitted": fitted,
        "seconds": round(time.monotonic() - started, 1),
    }
    result = {"stamp": stamp(), **conditions, "scenarios": found}
    table = drift_tables.table(result)
    print(f"\n{table}")
    if options.out is not None:
        options.out.write_text(json.dumps(drift_tables.short(result), indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        drift_plot.draw(found, options.plot)
    if options.write_docs:
        write_docs(DOCS, "bench/drift.py" + (" --later" if options.later else ""), table)


def fit(data: Data, folder: Path) -> dict[str, Any]:
    """The policy that all scenarios begin with; what `tracer fit` said of it."""
    write_traces(folder / "traces.jsonl", data.history)
    return _tracer("fit", folder / "traces.jsonl", "--target", TARGET, "--out", folder / "policy", "--json")


def _tracer(*arguments: object) -> dict[str, Any]:
    told = processes.run([sys.executable, "-m", "tracer", *map(str, arguments)])
    found: dict[str, Any] = json.loads(told) if "--json" in arguments else {}
    return {
        key: found[key] for key in found.keys() & {"refused", "coverage", "teacher_agreement", "n_traces", "version"}
    }


class Story:
    """One scenario from its beginning to its end."""

    def __init__(self, scenario: Scenario, data: Data, folder: Path, draw: Random) -> None:
        self._scenario = scenario
        self._data = data
        self._folder = folder
        self._draw = draw
        self._first = Policy.load(folder / "policy")
        self._happens = scenario.event(data, draw)
        self._events: list[dict[str, Any]] = []
        self._seen: set[str] = set()

    async def run(self, per_second: float, audit: dict[str, Any]) -> dict[str, Any]:
        """Everything that is to be told of it."""
        async with living(self._folder, self._data.label, per_second, audit) as life:
            await life.send(self._calls(self._data.live, PROVING), life.live)
            if not life.live():
                raise RuntimeError(f"the policy did not prove itself in {PROVING:,} calls")
            promoted = len(life.calls)
            await life.send(self._calls(self._data.live, HEALTHY))
            agreement = life.summary["policies"][0]["held_to"]
            event = self._event(life)
            await (self._quiet(life) if self._scenario.quiet else self._noticed(life))
            end = len(life.calls)
            await asyncio.sleep(_LAST_SECONDS)
            return self._told(life, promoted, event, end, agreement)

    def _calls(self, texts: Sequence[str], most: int, *, happened: bool = False) -> Iterator[Call]:
        """Texts in one new order after another."""
        prompt = self._happens.prompt(PROMPT) if happened else PROMPT
        made = 0
        while True:
            for text in self._draw.sample(texts, len(texts)):
                if made >= most:
                    return
                made += 1
                if happened and self._draw.random() < self._happens.share_of_others:
                    text = self._draw.choice(self._happens.others)  # noqa: PLW2901 - another in its place
                known = text in self._seen
                self._seen.add(text)
                yield Call(in_other_capitals(text, self._draw) if known else text, prompt)

    def _event(self, life: Life) -> int:
        life.teach = self._happens.teach
        self._mark(life, "event", self._scenario.title)
        return len(life.calls)

    def _mark(self, life: Life, kind: str, told: str) -> None:
        self._events.append({"call": len(life.calls), "ts": time.time(), "kind": kind, "told": told})

    async def _quiet(self, life: Life) -> None:
        await life.send(self._calls(self._data.live, QUIET, happened=True))

    async def _noticed(self, life: Life) -> None:
        moves, version = len(life.moves), life.summary["live"]
        await life.send(self._calls(self._data.live, NOTICED, happened=True), lambda: len(life.moves) > moves)
        self._mark(life, "noticed", "")
        if self._scenario.refit:
            version = await self._learned(life)
            texts = self._data.traffic
        else:
            texts = self._data.live
        await life.send(self._calls(texts, PROVING, happened=True), lambda: life.live(version))
        if life.state == "paused":
            await self._resume(life)
        self._mark(life, "recovered" if life.live(version) else "not recovered", "")
        await life.send(self._calls(texts, RECOVERED, happened=True))

    async def _learned(self, life: Life) -> str:
        """A policy of what the teacher says now; its version."""
        paused = life.live()
        if paused:
            # What a policy in service leaves to the teacher is what it finds hard: no fair sample to learn from.
            self._mark(life, "command", "tracer pause")
            await asyncio.to_thread(_tracer, "pause", PROJECT, "--store", life.store)
        since = time.time()
        await life.send(self._calls(self._data.live, AFTERWARDS, happened=True))
        return await self._refit(life, since)

    async def _resume(self, life: Life) -> None:
        """What was paused is in force again."""
        self._mark(life, "command", "tracer resume")
        await asyncio.to_thread(_tracer, "resume", PROJECT, "--store", life.store)
        await life.settle(lambda: life.state == "live", "the project had been resumed")

    async def _refit(self, life: Life, since: float) -> str:
        """What a person would type. Traffic rests meanwhile."""
        await asyncio.sleep(_LAST_SECONDS)
        traces, policy = self._folder / "since.jsonl", self._folder / "policy"
        moment = datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds")
        self._mark(life, "refit", f"tracer traces export --since {moment}; tracer fit")
        chosen = ("--store", life.store, "--project", PROJECT, "--since", moment, "--out", traces)
        await asyncio.to_thread(_tracer, "traces", "export", *chosen)
        told = await asyncio.to_thread(_tracer, "fit", traces, "--target", TARGET, "--out", policy, "--json")
        self._events[-1] |= {"fit": told}
        version = str(told["version"])
        if not told["refused"]:
            known = lambda: version in {policy["version"] for policy in life.summary["policies"]}  # noqa: E731
            await life.settle(known, "the gateway had seen the refitted policy")
        return version

    def _told(self, life: Life, promoted: int, event: int, end: int, agreement: float) -> dict[str, Any]:
        audits = life.comparisons("audit")
        calls = life.calls
        changed = self._events[0]["ts"]
        # What the policy would have answered, had nothing been done: it was frozen, so it can be asked now.
        would = [self._first.decide(call.text, agreement).label for call in calls[event:end]]
        idle = [label is not None and label != call.truth for label, call in zip(would, calls[event:], strict=False)]
        moves = [
            move
            | {
                "call": life.number(move["ts"]),
                "seconds": round(move["ts"] - calls[0].ts, 1),
                "audits": sum(audit.ts <= move["ts"] for audit in audits),
                "audits_since": sum(changed < audit.ts <= move["ts"] for audit in audits),
                "seconds_since": round(move["ts"] - changed, 1),
            }
            for move in life.moves
        ]
        for mark in self._events:
            mark["seconds"] = round(mark["ts"] - calls[0].ts, 1)
            mark["audits"] = sum(audit.ts <= mark["ts"] for audit in audits)
        return drift_tables.figures(
            [asdict(call) | {"wrong": call.wrong} for call in calls],
            moves,
            self._events,
            {"promoted": promoted, "event": event, "end": end, "idle_wrong": idle, "audits": len(audits)},
        ) | {"title": self._scenario.title, "note": self._happens.note}


if __name__ == "__main__":
    main()
