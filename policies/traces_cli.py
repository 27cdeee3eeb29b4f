"""The commands that move traces in and out of the store: `tracer traces export`, `import`, `count`."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from policies.console import plain_errors, stderr
from policies.errors import TraceError
from policies.store import Store
from policies.traces import read_traces, to_line, to_seconds, write_traces
from policies.types import Answer, AnswerKind, Reason, StoredTrace, Trace

app = typer.Typer(name="traces", help="Move traces in and out of the store.", no_args_is_help=True)

_STDOUT = Path("-")
_ROWS_AT_ONCE = 1000

StoreUrl = Annotated[str, typer.Option(envvar="TRACER_STORE", help="sqlite:///PATH or postgresql://...")]
DEFAULT_STORE = "sqlite:///.tracer/traces.db"


@app.command()
def export(
    store: StoreUrl = DEFAULT_STORE,
    project: Annotated[str | None, typer.Option(help="Only this project's traces.")] = None,
    since: Annotated[str | None, typer.Option(help="Only traces of this ISO 8601 time or later.")] = None,
    out: Annotated[Path, typer.Option(help="The file to write; - is standard output.")] = _STDOUT,
) -> None:
    """Write traces as JSONL, oldest first. Those that must not be learned from are left out and counted on stderr."""
    left_out = 0

    def allowed(stored: Iterator[StoredTrace]) -> Iterator[Trace]:
        nonlocal left_out
        for trace in stored:
            if trace.training_allowed:
                yield _to_trace(trace)
            else:
                left_out += 1

    with plain_errors():
        start = None if since is None else to_seconds(since)
        with closing(Store.open(store, create=False)) as opened:
            traces = allowed(opened.traces(project, since=start, training_only=False))
            if out == _STDOUT:
                for trace in traces:
                    sys.stdout.buffer.write(to_line(trace))
            else:
                write_traces(out, traces)
    if left_out:
        stderr.print(f"{left_out} traces left out: their upstream does not allow training on its answers")


@app.command(name="import")
def import_traces(
    file: Annotated[Path, typer.Argument(help="JSONL file of traces.")],
    project: Annotated[str, typer.Option(help="The project they belong to.")],
    store: StoreUrl = DEFAULT_STORE,
    skip_bad: Annotated[bool, typer.Option(help="Count bad lines and go on instead of stopping at the first.")] = False,
) -> None:
    """Add the traces of FILE to the store; importing a file again adds nothing. Ground truth and mini are not kept."""
    with plain_errors():
        found = read_traces(file, skip_bad=skip_bad)
        rows = list(_to_stored(file, project, found.traces))
        with closing(Store.open(store)) as opened:
            starts = range(0, len(rows), _ROWS_AT_ONCE)
            new = sum(opened.append(rows[start : start + _ROWS_AT_ONCE]) for start in starts)
    known = len(found.traces) - new
    stderr.print(f"{new} traces added, {known} already there, {found.skipped} bad lines skipped")


@app.command()
def count(
    store: StoreUrl = DEFAULT_STORE,
    project: Annotated[str | None, typer.Option(help="Only this project's traces.")] = None,
) -> None:
    """Print how many traces the store holds."""
    with plain_errors(), closing(Store.open(store, create=False)) as opened:
        typer.echo(opened.count(project))


def _to_trace(stored: StoredTrace) -> Trace:
    # A reason that only a later version knows is still a deferral by a policy in service: not fair, never lost.
    known = stored.reason in frozenset(Reason)
    reason = (Reason(stored.reason) if known else Reason.UNCERTAIN) if stored.reason else None
    weight = 1 / stored.sampling_probability
    return Trace(
        input=stored.input,
        teacher=stored.teacher,
        id=stored.id,
        ts=stored.ts,
        weight=weight,
        reason=reason,
        kind=stored.kind,
        arguments=stored.arguments,
    )


def _to_stored(file: Path, project: str, traces: list[Trace]) -> Iterator[StoredTrace]:
    """Traces without an id get one made of what they say and how often it was said before: the same at every import."""
    now = time.time()
    said: Counter[tuple[str, Answer]] = Counter()
    for trace in traces:
        if trace.weight < 1:
            raise TraceError(f"{file}: a weight of {trace.weight}: the store takes weights of 1 and above only")
        name = trace.id
        if name is None:
            pair = trace.input, trace.answer
            parts = [project, trace.input, trace.teacher, str(said[pair])]
            said[pair] += 1
            # A plain text's id is what it was before there were kinds: an old file imported again still adds nothing.
            if trace.kind is not AnswerKind.TEXT:
                parts += [trace.kind.value, repr(trace.arguments)]
            name = sha256("\0".join(parts).encode()).hexdigest()[:32]
        ts = now if trace.ts is None else trace.ts
        reason = trace.reason or ""
        yield StoredTrace(
            name,
            project,
            trace.input,
            trace.teacher,
            ts,
            reason=reason,
            sampling_probability=1 / trace.weight,
            kind=trace.kind,
            arguments=trace.arguments,
        )
