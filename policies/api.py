"""Fit and update from files: what `tracer.fit` and `tracer.update` are, and what the commands call."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.errors import FitError
from policies.fitting import FitResult, Progress, fit_policy, silent, update_policy
from policies.settings import FitConfig
from policies.traces import read_traces


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
    found = read_traces(trace_path, skip_bad=skip_bad)
    return fit_policy(found.traces, artifact_dir, config, _embeddings(trace_path, embeddings), progress)


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
    found = read_traces(new_trace_path, skip_bad=skip_bad)
    return update_policy(found.traces, artifact_dir, config, _embeddings(new_trace_path, new_embeddings), progress)


def read_embeddings(path: str | Path) -> NDArray[np.float32]:
    """A matrix of embeddings from a .npy file; never unpickles. Raises FitError."""
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError) as error:
        raise FitError(f"{path}: not a .npy matrix of numbers ({error})") from error


def _embeddings(trace_path: str | Path, given: ArrayLike | None) -> NDArray[np.float32] | None:
    if given is not None:
        return np.asarray(given, np.float32)
    path = Path(trace_path)
    for beside in (path.with_suffix(".npy"), path.with_name(f"{path.stem}_embeddings.npy")):
        if beside.is_file():
            return read_embeddings(beside)
    return None
