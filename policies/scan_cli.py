"""The command that looks before a fit: `tracer scan`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from policies.console import Json, SkipBad, plain_errors, print_json, reading_bar, stderr, stdout
from policies.errors import FitError
from policies.features import MAX_CHARS
from policies.learning import Progress as OnProgress
from policies.scan import RARE, Contents, Estimate, Price, Scan, TargetEstimate, scan
from policies.settings import FitConfig
from policies.traces import read_traces, storable

app = typer.Typer(no_args_is_help=True)

_DAY = 86_400
_EXAMPLE, _LABEL = 70, 40
# What is said only where it says something.
_WORTH_SHARE, _WORTH_AGREEMENT, _MAJORITY = 0.10, 0.02, 0.60


@app.command(name="scan")
def scan_command(
    traces: Annotated[Path, typer.Argument(help="JSONL file of traces.")],
    price: Annotated[float | None, typer.Option(help="What the LLM costs: US dollars per 1,000 calls.")] = None,
    calls_per_day: Annotated[float | None, typer.Option(help="How many such calls you make a day.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the folds.")] = 0,
    merge_labels: Annotated[
        bool, typer.Option("--merge-labels/--no-merge-labels", help="Take 'Refund' and 'refund.' for one label.")
    ] = True,
    embeddings: Annotated[Path | None, typer.Option(hidden=True)] = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Estimate in seconds what could be answered locally at which target, what it would save, and why not more.

    Measures a sample of TRACES and writes nothing. It is an estimate, not a certificate: `tracer fit` certifies.
    """
    with plain_errors():
        if embeddings is not None:
            raise FitError("scan reads the texts alone: leave --embeddings out, and give it to `tracer fit`")
        cost = Price(price, calls_per_day)
        with reading_bar(traces.name) as on_read:
            found = read_traces(traces, skip_bad=skip_bad, on_read=on_read)
        with _progress() as progress:
            result = scan(found, cost, seed, progress, merge_labels)
    if found.skipped:
        stderr.print(f"{found.skipped} bad lines skipped, the first: {found.problems[0]}")
    if as_json:
        print_json(to_json(result))
    else:
        _print_page(result, traces)


def to_json(result: Scan) -> dict[str, Any]:
    """The scan as one JSON object. No text of an input is in it, but for the end of a template that all share.

    - `refused`, `reason`: whether there is no estimate, and why
    - `n_traces`, `n_skipped`, `n_duplicate_ids`, `n_different_inputs`, `n_too_long`, `first_ts`, `last_ts` (seconds)
    - `labels`: `n`, `seen_once`, `rare` (fewer than 10 traces), `rare_share`, `majority`, `majority_share`
    - `teacher`: `contradicted_inputs`, and where 20 inputs repeat or more (else null) `agrees_with_itself`, `ceiling`
    - `price_per_1000_calls`, `calls_per_day`, `seed`, `confidence`, `seconds`
    - `notes`: what is taken for one label, and which part of the inputs is read, a sentence each

    and, null where refused:

    - `n_sample`, `n_unreadable` of it, `n_judged` (scored by a model that had not seen them), `agreement` of those with
      nothing deferred, `n_effective` (unrelated traces that would say as much)
    - `targets`: a row each with `target`, `possible`, `coverage`, `agreement`, `reason`, `traces_needed`,
      `handled_per_day`, `saved_per_1000_calls`, `saved_per_day`, `saved_per_month` (US dollars, 30 days)
    - `confusions`: rows of `labels` (two) and `count`, out of `disagreements`
    - `hard_labels`: rows of `label`, `traces`, `agreement`, `handled_share` (at the target `focus`)
    - `outside_guard`, `near_duplicates`: `share`, `agreement_with`, `agreement_without`
    """
    contents, estimate, ceiling = result.contents, result.estimate, result.contents.ceiling
    majority, most = contents.labels[0] if contents.labels else (None, 0)
    return {
        "refused": estimate is None,
        "reason": result.reason,
        "n_traces": contents.traces,
        "n_skipped": contents.skipped,
        "n_duplicate_ids": contents.duplicate_ids,
        "n_different_inputs": contents.different_inputs,
        "n_too_long": contents.too_long,
        "first_ts": contents.first,
        "last_ts": contents.last,
        "labels": {
            "n": len(contents.labels),
            "seen_once": contents.seen_once,
            "rare": contents.rare[0],
            "rare_share": contents.rare[1],
            "majority": majority,
            "majority_share": most / contents.traces,
        },
        "teacher": {
            "contradicted_inputs": contents.contradicted,
            "agrees_with_itself": None if ceiling is None else ceiling.agreeing,
            "ceiling": None if ceiling is None else ceiling.highest,
        },
        "price_per_1000_calls": result.price.per_1000_calls,
        "calls_per_day": result.price.calls_per_day,
        "seed": result.seed,
        "confidence": FitConfig().confidence,
        "seconds": round(result.seconds, 2),
        "notes": list(result.notes),
    } | _estimate_json(estimate)


def _estimate_json(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        keys = "n_sample n_judged n_effective agreement n_unreadable targets focus disagreements confusions hard_labels"
        return dict.fromkeys([*keys.split(), "outside_guard", "near_duplicates"])
    return {
        "n_sample": estimate.sample,
        "n_judged": estimate.judged,
        "n_effective": estimate.effective,
        "agreement": estimate.agreement,
        "n_unreadable": estimate.unreadable,
        "targets": [asdict(row) for row in estimate.targets],
        "focus": estimate.focus,
        "disagreements": estimate.disagreements,
        "confusions": [{"labels": row.labels, "count": row.count} for row in estimate.confusions],
        "hard_labels": [asdict(row) for row in estimate.hard_labels],
        "outside_guard": estimate.outside_guard,
        "near_duplicates": {
            "share": estimate.near_share,
            "agreement_with": estimate.agreement_near,
            "agreement_without": estimate.agreement_alone,
        },
    }


def _print_page(result: Scan, path: Path) -> None:
    contents, estimate = result.contents, result.estimate
    _print_contents(contents, path)
    for note in result.notes:
        stdout.print(f"  {note}")
    if estimate is None:
        stdout.print(f"\nNo estimate: {result.reason}.")
        return
    whole = estimate.sample == contents.traces
    of = "all traces" if whole else f"{estimate.sample:,} of the traces, drawn at random (seed {result.seed})"
    if estimate.judged < 0.9 * estimate.sample:
        of += f", {estimate.judged:,} of them held out"
    stdout.print(f"\nWhat could be answered locally: an estimate from {of}")
    _print_targets(estimate, result.price)
    stdout.print(
        "target: agreement with the LLM to prove; coverage: share of calls answered; agreement: seen on those."
    )
    if not whole:
        stdout.print("A fit learns from all traces and usually covers more than this sample can show.")
    stdout.print("An estimate promises nothing: `tracer fit` certifies, on the same test with all its checks.")
    stdout.print("\nWhy not more\n")
    for reason in [
        *_labels_apart(estimate),
        *_label_counts(contents),
        *_teacher(contents),
        *_inputs(contents, estimate),
    ]:
        stdout.print(f"  {reason}")
    target = "" if estimate.focus is None else f" --target {estimate.focus:g}"
    stdout.print(f"\nNext: tracer fit {path}{target}     ({result.seconds:.1f} s)")
    if path.with_suffix(".npy").is_file() or path.with_name(f"{path.stem}_embeddings.npy").is_file():
        stdout.print("Embeddings lie beside the file: fit would learn from them; this scan has read the texts alone.")


def _print_contents(contents: Contents, path: Path) -> None:
    counts = [count for _, count in contents.labels]
    usual = f", {median(counts):,.0f} traces each in the middle" if len(counts) > 1 else ""
    stdout.print(f"{path}: {contents.traces:,} traces, {_many(len(counts), 'label')}{usual}")
    repeats = contents.traces - contents.different_inputs
    stdout.print(
        f"  {_many(contents.different_inputs, 'different input')}, {_many(repeats, 'repeat')} of an earlier one"
    )
    if contents.duplicate_ids:
        stdout.print(f"  {_many(contents.duplicate_ids, 'line')} left out: an earlier line has the same id")
    if contents.first is not None and contents.last is not None:
        days = (contents.last - contents.first) / _DAY
        rate = f", about {contents.traces / days:,.0f} traces a day" if days >= 1 else ""
        stdout.print(f"  from {_moment(contents.first)} to {_moment(contents.last)}{rate}")


def _print_targets(estimate: Estimate, price: Price) -> None:
    headings = ["target", "coverage", "agreement"]
    if price.calls_per_day is not None:
        headings.append("calls a day")
    if price.per_1000_calls is not None:
        headings += ["saved of 1,000 calls"] if price.calls_per_day is None else ["saved a day", "saved a month"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in estimate.targets:
        table.add_row(f"{row.target:.2f}", *(_cells(row) if row.possible else ("none", "")))
    stdout.print(table)
    refused: dict[str, list[str]] = {}
    for row in estimate.targets:
        if row.reason is not None:
            same = row.reason.replace(f"proves {row.target:g}", "proves it")
            refused.setdefault(same, []).append(f"{row.target:.2f}")
    for reason, targets in refused.items():
        stdout.print(f"{', '.join(targets)}: {reason}.")


def _cells(row: TargetEstimate) -> list[str]:
    cells = [f"{row.coverage:.1%}", f"{row.agreement:.1%}"]
    if row.handled_per_day is not None:
        cells.append(f"{row.handled_per_day:,.0f}")
    if row.saved_per_day is not None and row.saved_per_month is not None:
        cells += [f"${row.saved_per_day:,.2f}", f"${row.saved_per_month:,.2f}"]
    elif row.saved_per_1000_calls is not None:
        cells.append(f"${row.saved_per_1000_calls:.4f}")
    return cells


def _labels_apart(estimate: Estimate) -> Iterator[str]:
    yield f"With nothing deferred, local answers agree with the teacher on {estimate.agreement:.1%} of the traces."
    if estimate.confusions:
        share = sum(row.count for row in estimate.confusions) / estimate.disagreements
        yield f"Labels most often taken for each other ({share:.0%} of all disagreements):"
    for row in estimate.confusions:
        yield f"  {row.count:5,} x {_short(row.labels[0], _LABEL)} / {_short(row.labels[1], _LABEL)}"
        yield f'          "{_short(row.example, _EXAMPLE)}": {_short(row.said, _LABEL)}'
    hard = [row for row in estimate.hard_labels if row.agreement < 1]
    if hard:
        yield "Labels that agree least:"
    for label in hard:
        handled = "" if label.handled_share is None else f", {label.handled_share:.0%} answered at {estimate.focus:.2f}"
        yield f"  {_short(label.label, _LABEL)}: {label.agreement:.0%} of {label.traces:,} traces agree{handled}"


def _label_counts(contents: Contents) -> Iterator[str]:
    rare, share = contents.rare
    if rare:
        once = f", {contents.seen_once:,} of them a single one, which cannot be learned" if contents.seen_once else ""
        yield f"{_many(rare, 'label')} with fewer than {RARE} traces ({share:.1%} of all){once}."
    label, count = contents.labels[0]
    if count / contents.traces >= _MAJORITY:
        most = f"'{_short(label, _LABEL)}' makes {count / contents.traces:.0%} of the traces"
        yield f"{most}: a policy must beat always saying it."


def _teacher(contents: Contents) -> Iterator[str]:
    if contents.contradicted:
        yield f"The teacher contradicts itself on {_many(contents.contradicted, 'repeated input')}."
    ceiling = contents.ceiling
    if ceiling is not None and ceiling.agreeing < 1:
        yield (
            f"It answers a repeated input the same way {ceiling.agreeing:.1%} of the time ({ceiling.pairs:,} inputs): "
            f"hardly any copy agrees with it more than {ceiling.highest:.1%} over all calls."
        )


def _inputs(contents: Contents, estimate: Estimate) -> Iterator[str]:
    if contents.too_long:
        yield f"{_many(contents.too_long, 'input')} over {MAX_CHARS:,} characters: such calls are deferred unread."
    if estimate.unreadable > contents.too_long:
        yield f"{_many(estimate.unreadable, 'input')} of the sample cannot be read."
    if estimate.outside_guard:
        yield f"{estimate.outside_guard:.1%} are least like the rest and deferred for that, as the guard is set."
    near, alone = estimate.agreement_near, estimate.agreement_alone
    if near is None or alone is None or estimate.near_share < _WORTH_SHARE or near - alone < _WORTH_AGREEMENT:
        return
    share = f"{estimate.near_share:.0%} of the traces"
    yield f"{share} have a near-duplicate and agree at {near:.1%}, the others at {alone:.1%}."
    if estimate.effective is not None:
        yield f"  Being alike, all together say about as much as {estimate.effective:,.0f} unrelated traces."
    yield "  Where live calls repeat the traces less, expect less: see what `tracer fit --assume grouped` certifies."


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):  # milliseconds, or no time at all
        return f"{seconds:g}"


def _short(text: str, most: int) -> str:
    """User's text on one line; a control character in it must not reach the terminal."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(storable(text).split()))
    return line if len(line) <= most else line[: most - 3] + "..."


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on a terminal's stderr, nothing elsewhere: a scan takes seconds."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("scan", total=1.0)
        yield lambda step, done: bar.update(task, description=step, completed=done)
