"""What a policy folder says of itself, for people."""

from pathlib import Path
from typing import Any

import orjson
from rich.table import Table
from rich.text import Text

from policies.artifact import Manifest, read_file, read_manifest
from policies.console import stdout

_SHOWN_LABELS = 15


def read_report(folder: str | Path) -> dict[str, Any]:
    """Manifest, frontier and per-label report as one JSON-safe object. Raises PolicyMissing or PolicyDamaged."""
    manifest = read_manifest(folder)
    return {
        "manifest": orjson.loads(orjson.dumps(manifest)),
        "frontier": orjson.loads(read_file(folder, manifest, "frontier")),
        "report": orjson.loads(read_file(folder, manifest, "report")),
    }


def print_report(folder: str | Path) -> None:
    """Certificate, frontier and the least handled labels. Raises PolicyMissing or PolicyDamaged."""
    manifest = read_manifest(folder)
    frontier = orjson.loads(read_file(folder, manifest, "frontier"))
    report = orjson.loads(read_file(folder, manifest, "report"))
    print_verdict(manifest)
    print_notes(manifest.certificate.notes)
    table = Table("target", "coverage", "agreement", title="Frontier: what each target would give")
    for row in frontier:
        cells: tuple[str, ...] = ("refused", "")
        if row["certified"]:
            cells = tuple(f"{row[key]:.3f}" for key in ("coverage", "teacher_agreement"))
        table.add_row(f"{row['target']:g}", *cells)
    stdout.print(table)
    labels = sorted(report["labels"], key=lambda row: row["handled_share"] or 0.0)
    shown = Table("label", "traces", "handled", "agreement when answered", title="Labels handled least")
    for row in labels[:_SHOWN_LABELS]:
        agreement = row["agreement_when_answered"]
        cells = (
            str(row["traces"]),
            f"{row['handled_share'] or 0.0:.2f}",
            "" if agreement is None else f"{agreement:.3f}",
        )
        shown.add_row(Text(row["label"]), *cells)
    if labels:
        stdout.print(shown)


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


def print_notes(notes: list[str]) -> None:
    """What goes with a verdict, a line each."""
    for note in notes:
        stdout.print(f"note: {note}")
