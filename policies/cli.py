"""The commands that make and inspect policies: `tracer fit`, `update`, `evaluate`, `report`, `traces`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from policies import api, traces_cli
from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.fitting import FitResult
from policies.fitting import Progress as OnProgress
from policies.policy import Policy
from policies.report import print_report, print_verdict, read_report
from policies.settings import DEFAULT_FEATURES, FitConfig
from policies.traces import read_traces

app = typer.Typer(no_args_is_help=True)
app.add_typer(traces_cli.app, name="traces", help="Move traces in and out of the store.")

_stderr = Console(stderr=True)
_stdout = Console()

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SkipBad = Annotated[bool, typer.Option(help="Count bad lines and go on instead of stopping at the first.")]
EmbeddingsFile = Annotated[Path | None, typer.Option(help="A .npy matrix, one row a trace.")]
PolicyFolder = Annotated[Path, typer.Option(help="The policy folder.")]


@app.command()
def fit(
    traces: Annotated[Path, typer.Argument(help="JSONL file of traces.")],
    target: Annotated[float, typer.Option(help="Agreement to prove on handled calls.")] = 0.95,
    confidence: Annotated[float, typer.Option(help="How sure the proof must be.")] = 0.90,
    out: Annotated[Path, typer.Option(help="The policy folder to write.")] = Path(".tracer"),
    features: Annotated[
        str, typer.Option(help="lexical,static or static; static:FOLDER for another table.")
    ] = DEFAULT_FEATURES,
    embeddings: EmbeddingsFile = None,
    assume: Annotated[Literal["iid"], typer.Option(help="Which measurement of agreement rules.")] = "iid",
    mode: Annotated[
        Literal["strict", "refit"], typer.Option(help="Serve the fold average, or a refit on all.")
    ] = "strict",
    seed: Annotated[int, typer.Option(help="Seed of folds and solver.")] = 0,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Learn a policy from TRACES, judge it, and write it to a folder. Refusal is a normal result (exit code 0)."""
    with _errors(), _progress() as progress:
        config = FitConfig(target, confidence, features, assume, mode, seed)
        matrix = None if embeddings is None else api.read_embeddings(embeddings)
        _warn_of_bad_lines(traces, skip_bad)
        result = api.fit(traces, out, matrix, config, skip_bad=skip_bad, progress=progress)
    _show(result, as_json)


@app.command()
def update(
    new_traces: Annotated[Path, typer.Argument(help="JSONL file of new traces.")],
    policy: PolicyFolder = Path(".tracer"),
    embeddings: EmbeddingsFile = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Refit on old and new traces; replace the served version only by a certified one."""
    with _errors(), _progress() as progress:
        matrix = None if embeddings is None else api.read_embeddings(embeddings)
        _warn_of_bad_lines(new_traces, skip_bad)
        result = api.update(new_traces, policy, matrix, skip_bad=skip_bad, progress=progress)
    _show(result, as_json)


@app.command(name="evaluate")
def evaluate_command(
    traffic: Annotated[Path, typer.Argument(help="JSONL file of calls with the teacher's labels.")],
    policy: PolicyFolder = Path(".tracer"),
    embeddings: EmbeddingsFile = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Decide every call of TRAFFIC and compare with the teacher."""
    with _errors():
        _warn_of_bad_lines(traffic, skip_bad)
        calls = read_traces(traffic, skip_bad=skip_bad).traces
        matrix = None if embeddings is None else api.read_embeddings(embeddings)
        result = evaluate(Policy.load(policy), calls, matrix)
    if as_json:
        _print_json(asdict(result))
        return
    agreement = "none handled" if result.teacher_agreement is None else f"agreement {result.teacher_agreement:.4f}"
    _stdout.print(
        f"{result.n} calls: coverage {result.coverage:.3f}, {agreement} on {result.n_handled} handled", highlight=False
    )
    _stdout.print(f"one decision: p50 {result.decide_us_p50} us, p99 {result.decide_us_p99} us", highlight=False)
    for reason, count in result.by_reason.items():
        _stdout.print(f"deferred, {reason}: {count}", highlight=False)


@app.command()
def report(policy: PolicyFolder = Path(".tracer"), as_json: Json = False) -> None:
    """Show a policy's certificate, its frontier over targets, and its labels."""
    with _errors():
        if as_json:
            _print_json(read_report(policy))
        else:
            print_report(policy, _stdout)


def _show(result: FitResult, as_json: bool) -> None:
    certificate = result.manifest.certificate
    if as_json:
        _print_json(
            {
                "method": certificate.method,
                "refused": certificate.refused,
                "reason": certificate.reason,
                "target": certificate.target,
                "confidence": certificate.confidence,
                "coverage": certificate.coverage,
                "teacher_agreement": certificate.teacher_agreement,
                "teacher_agreement_lower": certificate.teacher_agreement_lower,
                "n_traces": result.manifest.n_traces,
                "n_labels": result.manifest.n_labels,
                "policy": result.artifact_dir,
                "seconds": round(result.seconds, 2),
                "version": result.manifest.version,
                "replaced": result.replaced,
                "traces_needed": certificate.traces_needed,
                "notes": result.notes,
            }
        )
        return
    print_verdict(result.manifest, _stdout)
    if not result.replaced:
        _stdout.print(
            "[bold]the version served before stays[/]; the new traces are kept for the next update", highlight=False
        )
    _stdout.print(f"{result.artifact_dir}, {result.seconds:.1f} s", highlight=False)


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def _warn_of_bad_lines(path: Path, skip_bad: bool) -> None:
    if not skip_bad:
        return
    found = read_traces(path, skip_bad=True)
    if found.skipped:
        _stderr.print(
            f"{found.skipped} bad lines skipped, the first: {found.problems[0]}", highlight=False, markup=False
        )


@contextmanager
def _errors() -> Iterator[None]:
    """What a user can mend is one line on stderr and exit code 1, not a traceback."""
    try:
        yield
    except (PolicyError, ValueError) as error:
        _stderr.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on a terminal, a line a step elsewhere; both on stderr."""
    if not _stderr.is_terminal:
        seen: list[str] = []

        def line(step: str, done: float) -> None:
            if step not in seen:
                seen.append(step)
                _stderr.print(f"{done:4.0%} {step}", highlight=False)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_stderr, transient=True) as bar:
        task = bar.add_task("reading traces", total=1.0)
        yield lambda step, done: bar.update(task, description=step, completed=done)
