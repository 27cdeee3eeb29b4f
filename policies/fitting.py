"""Fit and update: from traces to a judged policy in its folder.

    traces -> features -> surrogate, out of fold -> acceptor -> guard -> export to ONNX -> gate -> artifact

Refusal is a normal result: the folder then holds a manifest with a refused certificate and no model.
"""

import fcntl
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from policies.artifact import MANIFEST, Manifest, read_file, read_manifest, write_version
from policies.errors import ArtifactError, FitError, PolicyDamaged
from policies.export import build_graph, check_graph
from policies.features import MAX_CHARS
from policies.judging import Judged, judge
from policies.learning import learn
from policies.settings import FitConfig
from policies.traces import merge, read_traces, to_line
from policies.types import Trace

Embeddings = NDArray[np.float32]
Progress = Callable[[str, float], None]

# A loss of coverage that is worth a word: smaller ones come and go with the draw.
_COVERAGE_DROP = 0.02


@dataclass(frozen=True)
class FitResult:
    """What a fit came to. `manifest` is what the folder now holds, or what it would hold where `replaced` is False."""

    artifact_dir: str
    manifest: Manifest
    seconds: float
    replaced: bool = True
    notes: list[str] = field(default_factory=list)


def silent(step: str, done: float) -> None:
    """A progress callback that shows nothing."""


def fit_policy(
    traces: list[Trace],
    folder: str | Path,
    config: FitConfig | None = None,
    embeddings: Embeddings | None = None,
    progress: Progress = silent,
) -> FitResult:
    """Fit, judge and write a policy; the folder's served version is replaced, by a refused one too.

    `embeddings` has shape (len(traces), d); without it the features are read off the texts. Raises FitError,
    ExportError or ArtifactError; the folder is then as it was.
    """
    started = time.perf_counter()
    with _locked(Path(folder)):
        candidate = _candidate(traces, config or FitConfig(), embeddings, progress)
        manifest = write_version(folder, candidate.manifest, candidate.contents)
    progress("written", 1.0)
    return FitResult(str(folder), manifest, time.perf_counter() - started, notes=manifest.certificate.notes)


def update_policy(
    new_traces: list[Trace],
    folder: str | Path,
    config: FitConfig | None = None,
    new_embeddings: Embeddings | None = None,
    progress: Progress = silent,
) -> FitResult:
    """Fit on the policy's own traces and `new_traces`; replace the served version only by a certified one.

    The settings are those of the served version unless `config` is given. Where the candidate is refused, the folder
    stays as it was: a file of bad traces leaves nothing behind. Raises PolicyMissing, PolicyDamaged, FitError,
    ExportError or ArtifactError.
    """
    started = time.perf_counter()
    with _locked(Path(folder)):
        served = read_manifest(folder)
        old = _kept_traces(Path(folder), served)
        traces = merge(old, new_traces)
        embeddings = _merged_embeddings(Path(folder), served, (old, new_traces, traces), new_embeddings)
        candidate = _candidate(traces, config or _settings_of(served), embeddings, progress)
        replaced = served.certificate.refused or not candidate.manifest.certificate.refused
        manifest = candidate.manifest
        if replaced:
            manifest = write_version(folder, manifest, candidate.contents)
    progress("written" if replaced else "refused", 1.0)
    notes = [*manifest.certificate.notes, *_change(served, manifest, replaced, len(traces) - len(old))]
    return FitResult(str(folder), manifest, time.perf_counter() - started, replaced, notes)


def _change(served: Manifest, candidate: Manifest, replaced: bool, n_new: int) -> list[str]:
    """What an update did, next to what was there before."""
    notes = [f"{n_new} new traces; those the policy already had were not added again"]
    if not replaced:
        notes.append("nothing was changed: the version served before stays, and the new traces were not added to it")
    elif not served.certificate.refused:
        before, after = served.certificate.coverage, candidate.certificate.coverage
        lower = " (lower: look at the new traces)" if after < before - _COVERAGE_DROP else ""
        notes.append(f"certified coverage {before:.3f} -> {after:.3f}{lower}")
    return notes


@dataclass(frozen=True)
class _Candidate:
    manifest: Manifest
    contents: dict[str, tuple[str, bytes]]


def _candidate(traces: list[Trace], config: FitConfig, embeddings: Embeddings | None, progress: Progress) -> _Candidate:
    if embeddings is not None:
        embeddings = _checked_embeddings(embeddings, len(traces))
    # The solver's matrices are small: more BLAS threads than one only spin, and starve a gateway on the same machine.
    with threadpool_limits(1):
        learned = learn(traces, config, embeddings, progress)
        judged = judge(learned, config)
    certificate = judged.certificate
    contents = _records(traces, embeddings, judged)
    threshold = guard_threshold = None
    if learned.fitted is not None and not certificate.refused:
        progress("export", 0.85)
        threshold, guard_threshold = judged.threshold, learned.fitted.guard.threshold
        graph = build_graph(learned.fitted)
        check_graph(graph, learned.graph_inputs(), learned.fitted, learned.served_scores(), threshold)
        contents["model"] = ("model.onnx", graph)
        if learned.tokenizer_json is not None:
            contents["tokenizer"] = ("tokenizer.json", learned.tokenizer_json)
    manifest = Manifest(
        version=_new_version(contents),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        features=learned.identity,
        input_kind="text" if embeddings is None else "embedding",
        embedding_dim=None if embeddings is None else embeddings.shape[1],
        labels=learned.labels,
        threshold=threshold,
        guard_threshold=guard_threshold,
        max_chars=MAX_CHARS,
        n_traces=len(traces),
        n_labels=len({trace.teacher for trace in traces}),
        settings=asdict(config),
        certificate=certificate,
        files={},
    )
    return _Candidate(manifest, contents)


def _records(traces: list[Trace], embeddings: Embeddings | None, judged: Judged) -> dict[str, tuple[str, bytes]]:
    indent = orjson.OPT_INDENT_2
    contents = {
        "certificate": ("certificate.json", orjson.dumps(judged.certificate, option=indent)),
        "frontier": ("frontier.json", orjson.dumps(judged.frontier, option=indent)),
        "report": ("report.json", orjson.dumps(judged.report, option=indent)),
        "traces": ("traces.jsonl", b"".join(to_line(trace) for trace in traces)),
    }
    if embeddings is not None:
        buffer = io.BytesIO()
        np.save(buffer, embeddings, allow_pickle=False)
        contents["embeddings"] = ("embeddings.npy", buffer.getvalue())
    return contents


def _new_version(contents: dict[str, tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for role in sorted(contents):
        digest.update(contents[role][1])
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    return f"{now}-{digest.hexdigest()[:8]}"


def _kept_traces(folder: Path, served: Manifest) -> list[Trace]:
    read_file(folder, served, "traces")  # verifies the checksum
    return read_traces(folder / served.files["traces"].path).traces


def _checked_embeddings(embeddings: Embeddings, n: int) -> Embeddings:
    matrix = np.asarray(embeddings)
    if matrix.ndim != 2 or len(matrix) != n or matrix.shape[1] == 0:
        raise FitError(f"embeddings must have shape ({n}, dimensions), one row a trace, got {matrix.shape}")
    if matrix.dtype.kind not in "fiu" or not np.isfinite(matrix).all():
        raise FitError("embeddings must be finite numbers")
    return np.ascontiguousarray(matrix, dtype=np.float32)


def _merged_embeddings(
    folder: Path, served: Manifest, traces: tuple[list[Trace], list[Trace], list[Trace]], new: Embeddings | None
) -> Embeddings | None:
    old_traces, new_traces, merged = traces
    if served.input_kind != "embedding":
        if new is not None:
            raise FitError("this policy reads text: update it without embeddings, or fit it anew with them")
        return None
    if new is None:
        raise FitError("this policy reads embeddings: give the new traces' embeddings too")
    new = _checked_embeddings(new, len(new_traces))
    old = np.load(io.BytesIO(read_file(folder, served, "embeddings")), allow_pickle=False)
    if len(old) != len(old_traces):
        raise PolicyDamaged(f"{folder}: {len(old_traces)} traces, but {len(old)} embeddings")
    if old.shape[1] != new.shape[1]:
        raise FitError(f"embedding dimension mismatch: the policy has {old.shape[1]}, the new traces {new.shape[1]}")
    # merge() hands on the traces it keeps, so identity finds their rows.
    row_of = {id(trace): i for i, trace in enumerate([*old_traces, *new_traces])}
    both = np.concatenate([old, new])
    return np.asarray(both[[row_of[id(trace)] for trace in merged]], np.float32)


def _settings_of(served: Manifest) -> FitConfig:
    try:
        return FitConfig(**{**served.settings, "frontier_targets": tuple(served.settings["frontier_targets"])})
    except (KeyError, TypeError, FitError) as error:
        raise PolicyDamaged(f"{MANIFEST}: settings: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer a folder at a time: a second one would lose the first one's traces."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written: {error.strerror or error}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(f"{folder}: another fit or update is writing there") from error
        yield
