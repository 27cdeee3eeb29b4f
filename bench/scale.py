"""Fit time and peak memory against the number of traces: 10,000 to 1,000,000 rows with banking77's 77 labels.

python bench/scale.py [--rows 10000,100000,1000000] [--target 0.95] [--seed 0] [--out FILE] [--write-docs]

The first 10,003 rows are banking77's traces; every further row is one of them changed: words left out, neighbouring
words swapped, a few words put in from another trace of the same label, until the row differs from all rows before it.
Rows made from one trace stay alike, so random folds judge them too kindly; the last columns, on `traffic.jsonl`, say
how much. Rows are streamed to a file, fitted by `tracer fit` in a process of its own, and the memory is that of this
process and its children: the largest sum of proportional set sizes seen, or the process's own high-water mark.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.frontier import DATA, DOCS, agreement, head, short, write_docs
from bench.stamp import stamp
from policies.traces import read_traces
from policies.types import Trace

SECONDS_BETWEEN_LOOKS = 0.25
# Chances that a word is left out, that it changes places with the next, and that a row borrows words. With these,
# 100,000 rows are about as hard under random folds as banking77's own traces.
DROP, SWAP, BORROW = 0.35, 0.1, 0.6
MOST_BORROWED = 4
HEAD = (
    "rows",
    "fit",
    "seconds per 10,000 rows",
    "against linear",
    "peak memory",
    "certified coverage",
    "live coverage",
    "live agreement",
)

Row = dict[str, Any]


def main() -> None:
    """Measure every size, smallest first, and print the table."""
    arguments = parse(sys.argv[1:])
    if not (DATA / "banking77").is_dir():
        sys.exit(f"no data set in TRACER_DATA ({DATA / 'banking77'})")
    traces = read_traces(DATA / "banking77" / "traces.jsonl").traces
    result: dict[str, Any] = {"stamp": stamp(), "target": arguments.target, "seed": arguments.seed, "rows": []}
    print(head(HEAD))
    for n in sorted(arguments.rows):
        with tempfile.TemporaryDirectory(prefix="tracer-scale-") as folder:
            row = measure(traces, n, Path(folder), arguments.target, arguments.seed)
        result["rows"].append(row)
        print(row_line(row, result["rows"][0], arguments.target), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = render(result)
    print("\n" + text.rpartition("\n\n")[2])
    if arguments.write_docs:
        write_docs(DOCS, "bench/scale.py", text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked; exits with argparse's message where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_rows, default="10000,100000,1000000")
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args(argv)


def _rows(text: str) -> list[int]:
    found = [int(part.replace("_", "")) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("a number of rows is at least 1")
    return found


def measure(traces: Sequence[Trace], n: int, folder: Path, target: float, seed: int) -> Row:
    """Write `n` rows, fit them, judge the policy on the traffic. Exits where a command fails."""
    file, policy = folder / "traces.jsonl", folder / "policy"
    with file.open("w", encoding="utf-8") as out:
        for text, label in rows(traces, n, seed):
            out.write(json.dumps({"input": text, "teacher": label}) + "\n")
    command = ["fit", str(file), "--target", str(target), "--seed", str(seed), "--out", str(policy)]
    fit, seconds, peak = watch(command, folder)
    row = {"rows": n, "fit": fit, "seconds": round(seconds, 2), "peak_bytes": peak, "live": None}
    if not fit["refused"]:
        command = ["evaluate", str(DATA / "banking77" / "traffic.jsonl"), "--policy", str(policy)]
        row["live"] = watch(command, folder)[0]
    return row


def rows(traces: Sequence[Trace], n: int, seed: int) -> Iterator[tuple[str, str]]:
    """`n` pairs (input, label), no two inputs equal but for case and white space."""
    draw = random.Random(seed)
    words = [trace.input.split() for trace in traces]
    alike: dict[str, list[int]] = defaultdict(list)
    for i, trace in enumerate(traces):
        alike[trace.teacher].append(i)
    seen: set[int] = set()
    made = turn = 0
    while made < n:
        i = turn % len(traces)
        text = traces[i].input
        if turn >= len(traces):
            text = " ".join(change(words[i], words[draw.choice(alike[traces[i].teacher])], draw))
        turn += 1
        key = hash(" ".join(text.lower().split()))
        if key not in seen:
            seen.add(key)
            made += 1
            yield text, traces[i].teacher


def change(words: Sequence[str], others: Sequence[str], draw: random.Random) -> list[str]:
    """The words of a trace with some left out, some swapped and, often, a few of `others` put in; never empty."""
    kept = [word for word in words if draw.random() >= DROP] or list(words)
    for i in range(len(kept) - 1):
        if draw.random() < SWAP:
            kept[i], kept[i + 1] = kept[i + 1], kept[i]
    if draw.random() < BORROW:
        start, place = draw.randrange(len(others)), draw.randint(0, len(kept))
        kept[place:place] = others[start : start + draw.randint(1, MOST_BORROWED)]
    return kept


def watch(command: Sequence[str], folder: Path) -> tuple[Row, float, int | None]:
    """A `tracer` command's JSON, its seconds from start to exit, and its peak memory in bytes (None without /proc)."""
    with (folder / "said").open("w+") as out, (folder / "progress").open("w+") as err:
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "tracer", *command, "--json"], stdout=out, stderr=err)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seconds = time.monotonic() - started
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            sys.exit(f"tracer {command[0]} failed: {err.read()[-500:].strip()}")
        found: Row = json.load(out)
    found.pop("policy", None)  # a folder that is gone when the result is read
    return found, seconds, peak or None


def memory(pid: int) -> int:
    """Bytes of a process and its children now, shared pages counted once; at least its own peak so far."""
    own_peak = _field(Path(f"/proc/{pid}/status"), "VmHWM:")
    return max(own_peak, sum(_field(Path(f"/proc/{each}/smaps_rollup"), "Pss:") for each in family(pid)))


def family(pid: int) -> list[int]:
    """The process and all that descend from it and still run."""
    found = [pid]
    for each in found:
        try:
            tasks = list(Path(f"/proc/{each}/task").iterdir())
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:  # it has just ended
            continue
    return found


def _field(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # it has just ended, or this system has no /proc
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def render(result: dict[str, Any]) -> str:
    """The table, and one line on where and with what, as Markdown."""
    measured, where = result["rows"], result["stamp"]
    table = "\n".join([head(HEAD), *(row_line(row, measured[0], result["target"]) for row in measured)])
    line = f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {short(where['commit'])}, "
    return f"{table}\n\n{line}{where['date'][:10]}, target {result['target']:.2f}, seed {result['seed']}."


def row_line(row: Row, first: Row, target: float) -> str:
    """One row of the table; `against linear` compares its seconds a row with those of the smallest size."""
    fit, live = row["fit"], row["live"]
    per_row, per_row_first = row["seconds"] / row["rows"], first["seconds"] / first["rows"]
    cells = [f"{row['rows']:,}", f"{row['seconds']:,.0f} s", f"{per_row * 1e4:.1f}", f"{per_row / per_row_first:.2f}"]
    cells.append("?" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f} GB")
    if live is None:
        cells += ["refused", "", ""]
    else:
        cells += [f"{fit['coverage']:.3f}", f"{live['coverage']:.3f}", agreement(live["teacher_agreement"], target)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
