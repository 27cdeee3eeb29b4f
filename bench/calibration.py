"""How true a policy's probabilities are: `Policy.probabilities` against the teacher, on traffic it has not seen.

python bench/calibration.py [--sets banking77,clinc150] [--target 0.95] [--out FILE]

For each data set a policy is fitted on `traces.jsonl` with default settings and asked for the probabilities of every
call of `traffic.jsonl`. Prints a Markdown table: the share of calls on which the likeliest label was the teacher's, the
mean probability it was given, the expected calibration error (ten bins of equal mass), over all calls and over the
handled ones, and the log-loss of the teacher's label. Writes the bins as JSON with machine and versions.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from bench.stamp import stamp
from policies.calibration import calibration_bins, calibration_error
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.traces import read_traces
from policies.types import Trace

DATA = Path(os.environ.get("TRACER_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
SETS = ("banking77", "clinc150")
HEAD = ("data set", "calls", "agreement", "mean probability", "calibration error", "of handled calls", "log-loss")
# A label that a policy has never seen has no probability; it is counted as if it had this one.
_UNKNOWN = 1e-6

Row = dict[str, Any]


def main() -> None:
    """Measure every data set that is asked for, and print the table."""
    arguments = parse(sys.argv[1:])
    if not DATA.is_dir():
        sys.exit(f"no data sets in TRACER_DATA ({DATA})")
    rows = []
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name in arguments.sets:
        traces, traffic = (read_traces(DATA / name / f"{part}.jsonl").traces for part in ("traces", "traffic"))
        with tempfile.TemporaryDirectory(prefix="tracer-calibration-") as folder:
            fit_policy(traces, folder, FitConfig(arguments.target))
            row = measure(Policy.load(folder), traffic)
        rows.append({"set": name, **row})
        print(line(rows[-1]), flush=True)
    where = stamp()
    print(f"\n{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {(where['commit'] or '?')[:12]}")
    if arguments.out is not None:
        result = {"stamp": where, "target": arguments.target, "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it names an unknown data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--out", type=Path)
    found = parser.parse_args(argv)
    unknown = [name for name in found.sets if name not in SETS]
    if unknown:
        parser.error(f"--sets: unknown {unknown[0]!r}, one of {', '.join(SETS)}")
    return found


def measure(policy: Policy, traffic: Sequence[Trace]) -> Row:
    """The figures of one data set; calls that cannot be scored are left out."""
    top, right, handled, losses = [], [], [], []
    for trace in traffic:
        found = policy.probabilities(trace.input)
        if found is None:
            continue
        label = next(iter(found))
        top.append(found[label])
        right.append(label == trace.teacher)
        handled.append(policy.decide(trace.input).handled)
        losses.append(-log(max(found.get(trace.teacher, 0.0), _UNKNOWN)))
    likeliest, agreed, answered = np.array(top), np.array(right, np.bool_), np.array(handled, np.bool_)
    return {
        "calls": len(top),
        "agreement": float(agreed.mean()),
        "mean_probability": float(likeliest.mean()),
        "calibration_error": calibration_error(likeliest, agreed),
        "calibration_error_handled": calibration_error(likeliest[answered], agreed[answered]),
        "log_loss": float(np.mean(losses)),
        "bins": calibration_bins(likeliest, agreed),
    }


def line(row: Row) -> str:
    """One row of the table."""
    names = ("agreement", "mean_probability", "calibration_error", "calibration_error_handled", "log_loss")
    return f"| {' | '.join([row['set'], str(row['calls']), *(f'{row[name]:.3f}' for name in names)])} |"


if __name__ == "__main__":
    main()
