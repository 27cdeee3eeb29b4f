"""The commands that make policies: `tracer fit` and `tracer update`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from policies import api
from policies.console import EmbeddingsFile, Json, PolicyFolder, SkipBad, plain_errors, print_json, stderr, stdout
from policies.embeddings import read_embeddings
from policies.fitting import FitResult
from policies.learning import Progress as OnProgress
from policies.report import inputs_in_words, print_notes, print_verdict
from policies.settings import DEFAULT_BUDGET, DEFAULT_FEATURES, FitConfig

app = typer.Typer(no_args_is_help=True)


@app.command()
def fit(
    traces: Annotated[Path, typer.Argument(help="JSONL file of traces.")],
    target: Annotated[float, typer.Option(help="Agreement to prove on handled calls.")] = 0.95,
    confidence: Annotated[float, typer.Option(help="How sure the proof must be.")] = 0.90,
    out: Annotated[Path, typer.Option(help="The policy folder to write.")] = Path(".tracer"),
    features: Annotated[
        str,
        typer.Option(help="lexical, static[:FOLDER], transformer:FOLDER, endpoint:URL#MODEL, with commas; or auto."),
    ] = DEFAULT_FEATURES,
    embeddings: EmbeddingsFile = None,
    assume: Annotated[
        Literal["iid", "grouped", "newest", "strictest"], typer.Option(help="Which measurement of agreement rules.")
    ] = "iid",
    mode: Annotated[
        Literal["strict", "refit"], typer.Option(help="Serve the fold average, or a refit on all.")
    ] = "strict",
    seed: Annotated[int, typer.Option(help="Seed of folds and solver.")] = 0,
    protect: Annotated[
        list[str] | None, typer.Option(help="A label to answer only if certified on its own; may be repeated.")
    ] = None,
    guard_budget: Annotated[
        float, typer.Option(help="Share of calls like the traces that the guard may turn away.")
    ] = DEFAULT_BUDGET,
    surrogates: Annotated[
        str, typer.Option(help="Candidates to choose from, with commas: joint, logreg, sgd, mlp, trees.")
    ] = "joint",
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Let the acceptor ask the nearest traces: slower, often covers more.")
    ] = False,
    trees: Annotated[bool, typer.Option("--trees", help="Try trees as well.")] = False,
    latency_budget: Annotated[
        float, typer.Option(help="Mean microseconds a decision that --features auto may spend.")
    ] = 1_000.0,
    engine: Annotated[
        Literal["local", "ray", "dask"], typer.Option(help="Where folds are fitted (joblib's backends).")
    ] = "local",
    jobs: Annotated[int | None, typer.Option(help="Folds fitted at a time; one a core unless given.")] = None,
    merge_labels: Annotated[
        bool, typer.Option("--merge-labels/--no-merge-labels", help="Take 'Refund' and 'refund.' for one label.")
    ] = True,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Learn a policy from TRACES, judge it, and write it to a folder. Refusal is a normal result (exit code 0)."""
    with plain_errors(), _progress() as progress:
        config = FitConfig(
            target,
            confidence,
            features,
            assume,
            mode,
            seed,
            guard_budget=guard_budget,
            surrogates=tuple([name.strip() for name in surrogates.split(",")] + ["trees"] * trees),
            protect=tuple(protect or ()),
            latency_budget_us=latency_budget,
            engine=engine,
            jobs=jobs,
            neighbours=neighbours,
            merge_labels=merge_labels,
        )
        matrix = None if embeddings is None else read_embeddings(embeddings)
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
    with plain_errors(), _progress() as progress:
        matrix = None if embeddings is None else read_embeddings(embeddings)
        result = api.update(new_traces, policy, matrix, skip_bad=skip_bad, progress=progress)
    _show(result, as_json)


def _show(result: FitResult, as_json: bool) -> None:
    certificate = result.manifest.certificate
    if as_json:
        print_json(
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
                "assume": certificate.assume,
                "ruling": certificate.ruling,
                "n_effective": certificate.n_effective,
                "answers": result.manifest.answers.words,
                "inputs": inputs_in_words(result.manifest),
                "measurements": certificate.measurements,
                "notes": result.notes,
            }
        )
        return
    print_verdict(result.manifest)
    print_notes(result.notes)
    stdout.print(f"{result.artifact_dir}, {result.seconds:.1f} s")


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on a terminal, a line a step elsewhere; both on stderr."""
    if not stderr.is_terminal:
        seen: list[str] = []

        def line(step: str, done: float) -> None:
            if step not in seen:
                seen.append(step)
                stderr.print(f"{done:4.0%} {step}")

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("reading traces", total=1.0)
        yield lambda step, done: bar.update(task, description=step, completed=done)
