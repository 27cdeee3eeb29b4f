"""20,000 requests that nobody should send, against a gateway process: `make fuzz`.

python bench/fuzz.py [--requests 20000] [--seed N] [--out FILE]

hypothesis draws them (tests/fidelity/shots.py) and shrinks the first that breaks something: a 5xx, an answer later than
five seconds, a forwarded body that has changed. At the end the gateway may have caught no fault at its borders, no file
or socket of the process may be left open, and its memory may have grown by 10 MB at most since the warm-up. Prints what
was answered, and writes it as JSON with machine and versions (`--out`). Exits with 1 where something broke.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from bench.stamp import stamp
from tests.fidelity.fuzzing import Range, memory, open_files
from tests.fidelity.shots import Shot, shots
from tests.fidelity.world import World, make_world, projects
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import GatewayProcess

REQUESTS = 20_000
WARM_UP = 2_000
MOST_GROWTH = 10.0  # MB
_SETTLE_SECONDS = 15.0
# The gateway's end of the client's connection and of the teacher's come and go.
_SPARE_FILES = 2


def main() -> None:
    """Run, print, write."""
    asked = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), asked.requests, asked.seed)
    print(json.dumps(found, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps({"stamp": stamp(), **found}, indent=1) + "\n")
    if found["broken"]:
        sys.exit(1)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def run(folder: Path, requests: int, seed: int) -> dict[str, Any]:
    """Fire so many requests, after a warm-up; what was found, with a list of what is `broken`."""
    world = make_world(folder)
    with ScriptedTeacher(answer_of=world.answer_of, script="openai") as teacher:
        tree = {
            "upstreams": {"teacher": {"base_url": teacher.url}},
            "default_upstream": "teacher",
            "projects": {name: project | {"promotion": "immediate"} for name, project in projects(folder).items()},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        with GatewayProcess(folder, "--config", "config.yaml") as gateway:
            target = Range(gateway.url, teacher)
            try:
                return _fired(target, world, gateway.process.pid, requests, seed)
            finally:
                target.close()


def _fired(target: Range, world: World, process: int, requests: int, seed: int) -> dict[str, Any]:
    _fire(target, world, WARM_UP, seed)
    files, resident, faults = open_files(process), memory(process), target.internal_errors()
    started = time.monotonic()
    _fire(target, world, requests, seed + 1)
    seconds = time.monotonic() - started
    deadline = time.monotonic() + _SETTLE_SECONDS
    while open_files(process) > files + _SPARE_FILES and time.monotonic() < deadline:
        time.sleep(0.2)
    found: dict[str, Any] = {"requests": target.fired, "seed": seed, "seconds": round(seconds, 1)}
    found |= {"statuses": dict(sorted(target.statuses.items())), "decisions": dict(target.decisions)}
    found |= {"open_files": [files, open_files(process)], "slowest_ms": round(1e3 * target.slowest, 1)}
    found |= {"memory_mb": [round(resident, 1), round(memory(process), 1)]}
    found["internal_errors"] = target.internal_errors() - faults
    found["broken"] = [
        what
        for what, holds in (
            ("files left open", open_files(process) <= files + _SPARE_FILES),
            ("memory grew", memory(process) - resident <= MOST_GROWTH),
            ("faults inside", found["internal_errors"] == 0),
        )
        if not holds
    ]
    return found


def _fire(target: Range, world: World, number: int, seed: int) -> None:
    @hypothesis.seed(seed)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(shots(world))
    def fire(shot: Shot) -> None:
        target.fire(shot)

    fire()


if __name__ == "__main__":
    main()
