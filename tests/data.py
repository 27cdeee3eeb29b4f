"""The real data sets, read from TRACER_DATA; tests that need them skip where they are missing."""

import os
from pathlib import Path

import pytest

from policies.traces import read_traces
from policies.types import Trace

DATA = Path(os.environ.get("TRACER_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))


def dataset(name: str) -> tuple[list[Trace], list[Trace]]:
    """(traces, traffic) of a data set."""
    folder = DATA / name
    if not (folder / "traces.jsonl").is_file():
        pytest.skip(f"no data set {name} in TRACER_DATA ({DATA})")
    return read_traces(folder / "traces.jsonl").traces, read_traces(folder / "traffic.jsonl").traces
