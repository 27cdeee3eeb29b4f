"""The commands that look at policies: `tracer evaluate` and `tracer report`. Nothing of learning is loaded here."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from policies.console import (
    EmbeddingsFile,
    Json,
    PolicyFolder,
    SkipBad,
    plain_errors,
    print_json,
    reading_bar,
    stderr,
    stdout,
)
from policies.embeddings import read_embeddings
from policies.evaluation import evaluate
from policies.policy import Policy
from policies.report import plot_report, print_report, read_report
from policies.traces import read_traces

app = typer.Typer(no_args_is_help=True)


@app.command(name="evaluate")
def evaluate_command(
    traffic: Annotated[Path, typer.Argument(help="JSONL file of calls with the teacher's labels.")],
    policy: PolicyFolder = Path(".tracer"),
    embeddings: EmbeddingsFile = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Decide every call of TRAFFIC and compare with the teacher."""
    with plain_errors():
        with reading_bar(traffic.name) as on_read:
            found = read_traces(traffic, skip_bad=skip_bad, on_read=on_read)
        matrix = None if embeddings is None else read_embeddings(embeddings)
        result = evaluate(Policy.load(policy), found.traces, matrix)
    if found.skipped:
        stderr.print(f"{found.skipped} bad lines skipped, the first: {found.problems[0]}")
    if as_json:
        print_json(asdict(result))
        return
    agreement = "none handled" if result.teacher_agreement is None else f"agreement {result.teacher_agreement:.4f}"
    stdout.print(
        f"{result.n} calls: coverage {result.coverage:.3f}, {agreement} on {result.n_handled} handled", highlight=False
    )
    stdout.print(f"one decision: p50 {result.decide_us_p50} us, p99 {result.decide_us_p99} us")
    if len(result.by_stage) > 1:
        shares = ", ".join(f"stage {stage}: {count}" for stage, count in result.by_stage.items())
        stdout.print(f"handled by {shares}")
    for reason, count in result.by_reason.items():
        stdout.print(f"deferred, {reason}: {count}")


@app.command()
def report(
    policy: PolicyFolder = Path(".tracer"),
    plot: Annotated[Path | None, typer.Option(help="Draw the frontier: a .png, .svg or .html file.")] = None,
    as_json: Json = False,
) -> None:
    """Show a policy's certificate, its frontier over targets, and its labels."""
    with plain_errors():
        if plot is not None:
            plot_report(policy, plot)
            stderr.print(f"drawn: {plot}")
        if as_json:
            print_json(read_report(policy))
        else:
            print_report(policy)
