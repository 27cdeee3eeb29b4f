"""What a policy folder says of itself, for people."""

from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from policies.artifact import Manifest, read_file, read_manifest

_SHOWN_LABELS = 15


def read_report(folder: str | Path) -> dict[str, Any]:
    """Manifest, frontier and per-label report as one JSON-safe object. Raises PolicyMissing or PolicyDamaged."""
    manifest = read_manifest(folder)
    return {
        "manifest": orjson.loads(orjson.dumps(manifest)),
        "frontier": orjson.loads(read_file(folder, manifest, "frontier")),
        "report": orjson.loads(read_file(folder, manifest, "report")),
    }


def print_report(folder: str | Path, console: Console) -> None:
    """Certificate, frontier and the least handled labels. Raises PolicyMissing or PolicyDamaged."""
    manifest = read_manifest(folder)
    frontier = orjson.loads(read_file(folder, manifest, "frontier"))
    report = orjson.loads(read_file(folder, manifest, "report"))
    print_verdict(manifest, console)
    table = Table("target", "coverage", "agreement", "proved", title="Frontier: what each target would give")
    for row in frontier:
        cells: tuple[str, ...] = ("refused", "", "")
        if row["certified"]:
            cells = tuple(f"{row[key]:.3f}" for key in ("coverage", "teacher_agreement", "teacher_agreement_lower"))
        table.add_row(f"{row['target']:g}", *cells)
    console.print(table)
    labels = sorted(report["labels"], key=lambda row: row["handled_share"] or 0.0)
    shown = Table("label", "traces", "handled", "agreement when answered", title="Labels handled least")
    for row in labels[:_SHOWN_LABELS]:
        agreement = row["agreement_when_answered"]
        cells = (
            str(row["traces"]),
            f"{row['handled_share'] or 0.0:.2f}",
            "" if agreement is None else f"{agreement:.3f}",
        )
        shown.add_row(row["label"], *cells)
    if labels:
        console.print(shown)


def print_verdict(manifest: Manifest, console: Console) -> None:
    """The certificate in a few lines."""
    certificate = manifest.certificate
    console.print(f"policy {manifest.version}: {manifest.n_traces} traces, {manifest.n_labels} labels", highlight=False)
    if certificate.refused:
        console.print(f"[bold yellow]refused[/]: {certificate.reason}", highlight=False)
    else:
        console.print(
            f"[bold green]certified[/] ({certificate.method}): coverage {certificate.coverage:.3f}, agreement "
            f"{certificate.teacher_agreement:.4f}, proved {certificate.teacher_agreement_lower:.4f}",
            highlight=False,
        )
        console.print(certificate.statement, highlight=False)
    for note in certificate.notes:
        console.print(f"note: {note}", highlight=False)
