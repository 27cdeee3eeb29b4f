"""What a policy folder says of itself, for people."""

from pathlib import Path
from typing import Any

import orjson
from rich.table import Table
from rich.text import Text

from policies.artifact import Manifest, read_file, read_manifest
from policies.console import stdout
from policies.plot import draw_frontier

_SHOWN_LABELS = 15
_MANNERS = {"iid": "random folds", "grouped": "near-duplicates apart", "newest": "newest traces"}


def read_report(folder: str | Path) -> dict[str, Any]:
    """Manifest, frontier and per-label report as one JSON-safe object. Raises PolicyMissing or PolicyDamaged."""
    manifest = read_manifest(folder)
    return {
        "manifest": orjson.loads(orjson.dumps(manifest, default=sorted)) | {"answers": manifest.answers.to_dict()},
        "frontier": orjson.loads(read_file(folder, manifest, "frontier")),
        "report": orjson.loads(read_file(folder, manifest, "report")),
    }


def plot_report(folder: str | Path, path: Path) -> None:
    """Draw the frontier. Raises PolicyMissing, PolicyDamaged, or PolicyError where it cannot be drawn."""
    manifest = read_manifest(folder)
    frontier = orjson.loads(read_file(folder, manifest, "frontier"))
    size = f"{manifest.n_traces:,} traces, {manifest.n_labels} labels"
    title = f"{size}, confidence {manifest.certificate.confidence:g} for all targets at once"
    draw_frontier(frontier, path, title=title, target=manifest.certificate.target)


def print_report(folder: str | Path) -> None:
    """Certificate, how it was measured, frontier, candidates and labels. Raises PolicyMissing or PolicyDamaged."""
    manifest = read_manifest(folder)
    frontier = orjson.loads(read_file(folder, manifest, "frontier"))
    report = orjson.loads(read_file(folder, manifest, "report"))
    print_verdict(manifest)
    print_notes(manifest.certificate.notes)
    _print_measurements(manifest)
    _print_frontier(frontier)
    _print_options(report)
    _print_labels(report["labels"])


def _print_measurements(manifest: Manifest) -> None:
    certificate = manifest.certificate
    if not certificate.measurements:
        return
    table = Table("measured on", "traces", "agreement", "certifies", "as served", title="Three ways to measure")
    for row in certificate.measurements:
        seen = row["at_served_threshold"] or {}
        name = _MANNERS[row["name"]] + (" (rules)" if row["name"] == certificate.ruling else "")
        certified = f"{row['coverage']:.3f} at {row['teacher_agreement']:.4f}" if row["certified"] else "refused"
        served = ""
        if seen.get("teacher_agreement") is not None:
            served = f"{seen['coverage']:.3f} at {seen['teacher_agreement']:.4f}"
        table.add_row(name, str(row["n"]), _number(row["agreement"], 3), certified, served)
    stdout.print(table)
    if certificate.n_effective is not None:
        stdout.print(
            f"{certificate.n_judged} traces count; near-duplicates among them agree alike, so that they say about as "
            f"much as {certificate.n_effective:.0f} unrelated ones"
        )


def _print_frontier(frontier: list[dict[str, Any]]) -> None:
    table = Table("target", "coverage", "agreement", title="Frontier: what each target would give, all at once")
    for row in frontier:
        cells: tuple[str, ...] = ("refused", "")
        if row["certified"]:
            cells = (f"{row['coverage']:.3f}", f"{row['teacher_agreement']:.3f}")
        table.add_row(f"{row['target']:g}", *cells)
    stdout.print(table)


def _print_options(report: dict[str, Any]) -> None:
    if len(report.get("candidates", [])) > 1:
        table = Table("surrogate", "agreement", "seconds", title="Candidates, out of fold")
        for row in report["candidates"]:
            table.add_row(row["name"], _number(row["agreement"], 4), _number(row["seconds"], 1))
        stdout.print(table)
    if report.get("options"):
        table = Table("features", "coverage", "microseconds a decision", title="Features that were tried")
        for row in report["options"]:
            coverage = f"{row['coverage']:.3f}" if row["certified"] else "refused"
            table.add_row(Text(row["features"]), coverage, _number(row["microseconds"], 0))
        stdout.print(table)


def _print_labels(labels: list[dict[str, Any]]) -> None:
    if not labels:
        return
    table = Table("label", "traces", "handled", "agreement when answered", "at least", title="Labels handled least")
    for row in sorted(labels, key=lambda row: row["handled_share"] or 0.0)[:_SHOWN_LABELS]:
        name = row["label"] + (" (protected)" if row["protected"] else "")
        shares = _number(row["handled_share"], 2), _number(row["agreement_when_answered"], 3)
        table.add_row(Text(name), str(row["traces"]), *shares, _number(row["agreement_lower"], 3))
    stdout.print(table)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def print_verdict(manifest: Manifest) -> None:
    """The certificate in a few lines."""
    certificate = manifest.certificate
    stdout.print(f"policy {manifest.version}: {manifest.n_traces} traces, {manifest.n_labels} labels")
    if certificate.refused:
        stdout.print(f"refused: {certificate.reason}")
    else:
        stdout.print(
            f"certified ({certificate.method}): coverage {certificate.coverage:.3f}, agreement "
            f"{certificate.teacher_agreement:.4f} (at least {certificate.target:g} proved)",
        )
        stdout.print(certificate.statement)
    stdout.print(f"answers: {manifest.answers.words}", highlight=False, markup=False)
    stdout.print(f"inputs: {inputs_in_words(manifest)}", highlight=False, markup=False)


def inputs_in_words(manifest: Manifest) -> str:
    """What of an input the policy reads."""
    if manifest.input_kind == "embedding":
        return "embeddings"
    return "read whole" if manifest.input_form is None else manifest.input_form.words


def print_notes(notes: list[str]) -> None:
    """What goes with a verdict, a line each."""
    for note in notes:
        stdout.print(note if note.startswith("warning:") else f"note: {note}")
