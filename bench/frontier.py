"""Coverage and agreement on traffic the fit never saw, for each data set and target.

python bench/frontier.py [--sets banking77,clinc150,metatool] [--targets 0.90,0.95,0.97,0.99] [--out FILE]

Prints a Markdown table and writes the figures as JSON with machine and versions. The teacher is the data set's label.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.stamp import stamp

DATA = Path(os.environ.get("TRACER_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))


def _tracer(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tracer", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(name: str, target: str, folder: Path) -> dict[str, Any]:
    policy = str(folder / f"{name}-{target}")
    fit = _tracer("fit", str(DATA / name / "traces.jsonl"), "--target", target, "--out", policy)
    live = _tracer("evaluate", str(DATA / name / "traffic.jsonl"), "--policy", policy)
    return {"set": name, "target": float(target), "fit": fit, "live": live}


def _row(found: dict[str, Any]) -> str:
    fit, live = found["fit"], found["live"]
    head = f"| {found['set']} | {found['target']:.2f} | "
    if fit["refused"]:
        return head + f"refused | | | {fit['seconds']:.0f} s | |"
    kept = "kept" if live["teacher_agreement"] >= found["target"] else "**broken**"
    return (
        f"{head}{fit['coverage']:.3f} | {live['coverage']:.3f} | {live['teacher_agreement']:.4f} ({kept}) | "
        f"{fit['seconds']:.0f} s | {live['decide_us_p50']:.0f} / {live['decide_us_p99']:.0f} us |"
    )


def main() -> None:
    """Run every combination and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="banking77,clinc150,metatool")
    parser.add_argument("--targets", default="0.90,0.95,0.97,0.99")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no data sets in TRACER_DATA ({DATA})")
    rows = []
    print("| data set | target | certified coverage | live coverage | live agreement | fit | decision p50 / p99 |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sets.split(","):
            for target in arguments.targets.split(","):
                rows.append(_measure(name, target, Path(folder)))
                print(_row(rows[-1]), flush=True)
    where = stamp()
    print(f"\n{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {(where['commit'] or '?')[:12]}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"stamp": where, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
