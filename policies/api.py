"""Fit and update from files: what `tracer.fit` and `tracer.update` are, and what the commands call."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.embeddings import read_embeddings
from policies.fitting import FitResult, fit_policy, update_policy
from policies.learning import Progress, silent
from policies.settings import FitConfig
from policies.traces import TraceFile, read_traces


def fit(
    trace_path: str | Path,
    artifact_dir: str | Path = ".tracer",
    embeddings: ArrayLike | None = None,
    config: FitConfig | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> FitResult:
    """Fit a policy from a JSONL file of traces.

    `embeddings` has shape (n_traces, d), one row a trace. Without it, `TRACES.npy` or `TRACES_embeddings.npy` beside
    the file is used where there is one; else the features are read off the texts. Raises TraceError, FitError,
    ExportError or ArtifactError.
    """
    found = read_traces(trace_path, skip_bad=skip_bad, on_read=lambda share: progress("reading traces", 0.02 * share))
    result = fit_policy(found.traces, artifact_dir, config, _embeddings(trace_path, embeddings), progress)
    return _with_skipped(result, found)


def update(
    new_trace_path: str | Path,
    artifact_dir: str | Path = ".tracer",
    new_embeddings: ArrayLike | None = None,
    config: FitConfig | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> FitResult:
    """Refit a policy on its own traces and those of the file; a refused candidate leaves the served version in place.

    Raises what `fit` raises, and PolicyMissing or PolicyDamaged.
    """
    found = read_traces(
        new_trace_path, skip_bad=skip_bad, on_read=lambda share: progress("reading traces", 0.02 * share)
    )
    result = update_policy(found.traces, artifact_dir, config, _embeddings(new_trace_path, new_embeddings), progress)
    return _with_skipped(result, found)


def _with_skipped(result: FitResult, found: TraceFile) -> FitResult:
    notes = list(result.notes)
    if found.skipped:
        notes.append(f"{found.skipped} bad lines were skipped, the first: {found.problems[0]}")
    if found.duplicates:
        notes.append(f"{found.duplicates} traces repeated an id: the first of each counts")
    return replace(result, notes=notes)


def _embeddings(trace_path: str | Path, given: ArrayLike | None) -> NDArray[np.float32] | None:
    if given is not None:
        return np.asarray(given, np.float32)
    path = Path(trace_path)
    for beside in (path.with_suffix(".npy"), path.with_name(f"{path.stem}_embeddings.npy")):
        if beside.is_file():
            return read_embeddings(beside)
    return None
