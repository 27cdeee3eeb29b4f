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
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from policies.artifact import MANIFEST, Manifest, StageEntry, read_file, read_manifest, write_version
from policies.encoders import Encoder
from policies.errors import ArtifactError, FitError, PolicyDamaged
from policies.features import MAX_CHARS, TextEncoder
from policies.forms import Forms
from policies.judging import Judged, judge
from policies.learning import Learned, Progress, learn, silent
from policies.policy import Policy, read_encoder
from policies.serving import combinations, export_stages, frontier_entries, probes_file, shared_files
from policies.settings import FeatureSpec, FitConfig
from policies.traces import merge, read_traces, to_line
from policies.types import Trace

Embeddings = NDArray[np.float32]

# A loss of coverage that is worth a word: smaller ones come and go with the draw.
_COVERAGE_DROP = 0.02
_TIMED = 300


@dataclass(frozen=True)
class FitResult:
    """What a fit came to. `manifest` is what the folder now holds, or what it would hold where `replaced` is False."""

    artifact_dir: str
    manifest: Manifest
    seconds: float
    replaced: bool = True
    notes: list[str] = field(default_factory=list)


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
        served = _served(folder)
        candidate = _candidate(traces, config or FitConfig(), embeddings, progress)
        manifest = write_version(folder, candidate.manifest, candidate.contents, candidate.shared)
    progress("written", 1.0)
    notes = list(manifest.certificate.notes)
    if served is not None and not served.certificate.refused and manifest.certificate.refused:
        notes.append(
            f"warning: this replaced version {served.version}, which was certified: nothing is answered from this "
            "folder now. `tracer update` would have left it"
        )
    return FitResult(str(folder), manifest, time.perf_counter() - started, notes=notes)


def _served(folder: str | Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except ArtifactError:
        return None


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
        # The policy's own encoder: the folder it was read from may be gone, or hold another by now.
        encoder = read_encoder(folder, served) if config is None else None
        candidate = _candidate(traces, config or _settings_of(served), embeddings, progress, encoder)
        replaced = served.certificate.refused or not candidate.manifest.certificate.refused
        manifest = candidate.manifest
        if replaced:
            manifest = write_version(folder, manifest, candidate.contents, candidate.shared)
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
    shared: dict[str, bytes]


@dataclass(frozen=True)
class _Option:
    """One feature spec, learned, judged and exported. `microseconds`: mean of a decision; None unless asked for."""

    manifest: Manifest
    learned: Learned
    judged: Judged
    graphs: dict[str, bytes]
    microseconds: float | None = None

    def row(self) -> dict[str, Any]:
        """For the report."""
        return {
            "features": self.manifest.features["spec"],
            "certified": not self.manifest.certificate.refused,
            "coverage": self.manifest.certificate.coverage,
            "microseconds": None if self.microseconds is None else round(self.microseconds, 1),
        }


def _candidate(
    traces: list[Trace],
    config: FitConfig,
    embeddings: Embeddings | None,
    progress: Progress,
    encoder: Encoder | None = None,
) -> _Candidate:
    if embeddings is not None:
        embeddings = _checked_embeddings(embeddings, len(traces))
    progress("forms", 0.0)
    forms = Forms.learn(traces, config.merge_labels, read_inputs=embeddings is None)
    specs = ["given"] if embeddings is not None else FeatureSpec.parse(config.features).options()
    options = [_option(forms, traces, config, (spec, len(specs)), embeddings, progress, encoder) for spec in specs]
    chosen = _best(options, config.latency_budget_us)
    judged, reading = chosen.judged, chosen.learned.reading
    if len(options) > 1:
        judged = replace(judged, report=judged.report | {"options": [option.row() for option in options]})
    contents = _records(traces, embeddings, judged)
    contents |= {role: (f"{role}.onnx", graph) for role, graph in chosen.graphs.items()}
    shared: dict[str, bytes] = {}
    if chosen.graphs and reading is not None:
        if reading.tokenizer_json is not None:
            contents["tokenizer"] = ("tokenizer.json", reading.tokenizer_json)
        contents["probes"] = ("probes.json", probes_file(_as_served(chosen), traces, chosen.learned))
        shared = shared_files(reading)
    return _Candidate(replace(chosen.manifest, version=_new_version(contents)), contents, shared)


def _option(
    forms: Forms,
    traces: list[Trace],
    config: FitConfig,
    option: tuple[str, int],
    embeddings: Embeddings | None,
    progress: Progress,
    encoder: Encoder | None,
) -> _Option:
    """`option` is the spec, and among how many; `traces` as they came."""
    spec, n_options = option
    named = forms.settings(config)
    # The solver's matrices are small: more BLAS threads than one only spin, and starve a gateway on the same machine.
    with threadpool_limits(1):
        learned = learn(forms.traces, named, spec, embeddings, progress, encoder, forms.answers.heads())
        learned = replace(learned, off_template=forms.off_template)
        progress("gate", 0.82)
        judged = _with_forms(judge(learned, named, n_options), forms, config)
        stages: list[tuple[StageEntry, dict[str, bytes]]] = []
        if judged.ruling is not None and not judged.certificate.refused:
            progress("export", 0.88)
            stages = export_stages(learned, judged, config)
    manifest = Manifest(
        version="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        features={"spec": spec} if learned.reading is None else learned.reading.identity,
        input_kind="text" if embeddings is None else "embedding",
        embedding_dim=None if embeddings is None else embeddings.shape[1],
        labels=learned.labels,
        threshold=stages[-1][0].threshold if stages else None,
        stages=[entry for entry, _ in stages],
        protected=judged.thresholds.named(learned.labels) if stages else {},
        frontier=frontier_entries(judged, len(stages)) if stages else [],
        combinations=combinations(learned, judged) if stages else [],
        max_chars=MAX_CHARS,
        n_traces=len(traces),
        n_labels=len(learned.teacher_counts),
        settings=asdict(config),
        certificate=judged.certificate,
        files={},
        answers=forms.answers.only(learned.labels),
        input_form=forms.input_form,
    )
    found = _Option(manifest, learned, judged, {role: graph for _, graphs in stages for role, graph in graphs.items()})
    return found if n_options == 1 else replace(found, microseconds=_mean_microseconds(found, traces))


def _with_forms(judged: Judged, forms: Forms, config: FitConfig) -> Judged:
    """The verdict, with what there is to say of the forms."""
    certificate = replace(judged.certificate, notes=[*judged.certificate.notes, *forms.notes(config)])
    return replace(judged, certificate=certificate, report=judged.report | {"merges": forms.answers.merges})


def _mean_microseconds(option: _Option, traces: list[Trace]) -> float | None:
    """Mean time of a decision; None where nothing would be served.

    How often the encoder is needed is taken from the out-of-fold scores: the traces themselves are too well known.
    """
    reading = option.learned.reading
    if not option.graphs or reading is None or reading.tokenizer_json is None:
        return None
    policy = _as_served(option)
    texts = [trace.input for trace in traces[:: max(1, len(traces) // _TIMED)]]
    quick = _mean_seconds(policy.decide_quickly, texts)
    if not policy.slow:
        return quick * 1e6
    undecided = [text for text in texts if policy.decide_quickly(text) is None] or texts[:1]
    answered_early = option.judged.report["handled_by_stage"][0] if len(option.manifest.stages) > 1 else 0.0
    return (quick + (1 - answered_early) * _mean_seconds(policy.decide, undecided)) * 1e6


def _as_served(option: _Option) -> Policy:
    """The policy of an option that was exported."""
    reading = option.learned.reading
    assert reading is not None  # noqa: S101 - graphs were made of it
    tokenizer = None if reading.tokenizer_json is None else TextEncoder(reading.tokenizer_json)
    return Policy(option.manifest, option.graphs, tokenizer, reading.encoder, reading.words)


def _mean_seconds(decide: Callable[[str], object], texts: list[str]) -> float:
    decide(texts[0])
    started = time.perf_counter()
    for text in texts:
        decide(text)
    return (time.perf_counter() - started) / len(texts)


def _best(options: list[_Option], budget: float) -> _Option:
    """The most coverage among certified options within the latency budget; else the quickest certified one.

    Where none is certified, the one whose surrogate agrees most, so that its reason is the one that counts.
    """
    certified = [option for option in options if option.graphs]
    if not certified:
        return max(options, key=lambda option: option.judged.report["out_of_fold_agreement"] or 0.0)
    able = [option for option in certified if (option.microseconds or 0.0) <= budget]
    if able:
        return max(able, key=lambda option: option.judged.certificate.coverage)
    return min(certified, key=lambda option: option.microseconds or 0.0)


def _records(traces: list[Trace], embeddings: Embeddings | None, judged: Judged) -> dict[str, tuple[str, bytes]]:
    indent = orjson.OPT_INDENT_2
    contents = {
        "certificate": ("certificate.json", orjson.dumps(judged.certificate, option=indent)),
        "frontier": ("frontier.json", orjson.dumps(judged.frontier, option=indent)),
        "report": ("report.json", orjson.dumps(judged.report, option=indent)),
        "traces": ("traces.jsonl", b"".join(map(to_line, traces))),
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
        lists = {name: tuple(served.settings[name]) for name in ("frontier_targets", "surrogates", "protect")}
        return FitConfig(**{**served.settings, **lists})
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
