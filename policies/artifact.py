"""The policy folder: versions side by side, and one manifest that says which of them is served.

    PATH/manifest.json                  names every file of the served version by path, size and SHA-256
    PATH/versions/<version>/...         model.onnx (and model_2.onnx of a cascade, model_field_2.onnx of an answer of
                                        several fields), tokenizer.json, certificate.json, frontier.json, report.json,
                                        traces.jsonl
    PATH/encoders/<sha256>/...          what the transformer or endpoint block needs; versions share it
    PATH/tables/<sha256>/words.npy      the word vectors; versions share them

A version is written whole, flushed to disk, and only then does one rename of `manifest.json` make it the served one: a
reader sees the old version or the new one, never a mixture. Nothing in the folder is executable: JSON, ONNX and plain
arrays.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from policies.answers import AnswerForms
from policies.conforming import misfit
from policies.errors import ArtifactError, PolicyDamaged, PolicyMissing
from policies.input_form import InputForm

SCHEMA_VERSION = 4
MANIFEST = "manifest.json"
_VERSIONS = "versions"
# What versions share, by the first part of its files' roles: it is large and seldom changes.
_SHARED = {"encoder": "encoders", "table": "tables"}
# Old versions stay for a rollback, and for a reader that is half way through one when the next is written.
_KEPT_VERSIONS = 5


@dataclass(frozen=True)
class Certificate:
    """The gate's written result.

    `coverage` and `teacher_agreement` are out-of-fold shares on the traces. What is promised is `target`;
    `teacher_agreement_lower`, the exact one-sided bound at the chosen threshold alone, is never below it. `refused`
    comes with a `reason`, and with `traces_needed` where more would help. `ruling` names the measurement that decided,
    `measurements` has what each of them says; `n_effective` is the number of unrelated traces that would say as much.
    """

    refused: bool
    reason: str | None
    target: float
    confidence: float
    method: str | None
    coverage: float
    teacher_agreement: float | None
    teacher_agreement_lower: float | None
    n_handled: int
    n_judged: int
    n_effective: float | None
    assume: str
    ruling: str | None
    mode: str
    statement: str
    traces_needed: int | None = None
    measurements: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    """One file of a version, relative to the policy folder."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class HeadEntry:
    """One field of the answer in a stage: the role of its graph, and the guard value to reach."""

    model: str
    guard_threshold: float


@dataclass(frozen=True)
class StageEntry:
    """One stage as it is served: its heads, one a field of the answer, and what their graphs are fed.

    `threshold` is the accept score to reach (None: nothing but protected labels is answered), the product of the
    heads'. `n_lexical_tokens` is the offset of the bigrams (None: no lexical block), `tokens`, `words` and `encoded`
    whether the graphs read token ids, the table of word vectors, and an encoder's vector.
    """

    heads: list[HeadEntry]
    threshold: float | None
    tokens: bool
    words: bool
    n_lexical_tokens: int | None
    encoded: bool


@dataclass(frozen=True)
class FrontierEntry:
    """What a call may ask for beyond the certificate: a `target`, and the accept scores that certify it.

    `thresholds` has one a stage, `protected` one for each protected label; None: not answered at this target.
    """

    target: float
    thresholds: list[float | None]
    protected: dict[str, float | None]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `stages`, cheapest first, are empty where nothing is certified.

    `threshold` is the last stage's, or None. `protected` maps labels that have a threshold of their own to it;
    None: never answered. `frontier` has the certified targets, lowest first; they hold jointly at the certificate's
    confidence. `combinations` has for each label its class in each head, nothing for a label that cannot be said; it is
    empty where one head says the label itself. `answers` has the teacher's answer for each label, `input_form`
    the template that messages are built from, None where they are read whole.
    """

    version: str
    created: str
    features: dict[str, Any]
    input_kind: str
    embedding_dim: int | None
    labels: list[str]
    threshold: float | None
    stages: list[StageEntry]
    protected: dict[str, float | None]
    frontier: list[FrontierEntry]
    combinations: list[list[int]]
    max_chars: int
    n_traces: int
    n_labels: int
    settings: dict[str, Any]
    certificate: Certificate
    files: dict[str, File]
    answers: AnswerForms = field(default_factory=AnswerForms)
    input_form: InputForm | None = None
    schema_version: int = SCHEMA_VERSION

    # The names code written for `tracer-llm` reads.
    @property
    def method(self) -> str | None:
        """The certified method; None where the gate refused."""
        return self.certificate.method

    selected_method = method

    @property
    def coverage_cal(self) -> float | None:
        """Certified coverage; None where the gate refused."""
        return None if self.certificate.refused else self.certificate.coverage

    @property
    def teacher_agreement_cal(self) -> float | None:
        """Out-of-fold teacher agreement on handled traces."""
        return self.certificate.teacher_agreement

    @property
    def label_space(self) -> list[str]:
        """The labels the surrogate can answer."""
        return self.labels

    @property
    def target_teacher_agreement(self) -> float:
        """The agreement the certificate is about."""
        return self.certificate.target


def read_version(path: str | Path) -> str | None:
    """The served version's name, from the manifest alone; None where there is no policy or it cannot be read."""
    try:
        found = orjson.loads((Path(path) / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    version = found.get("version") if isinstance(found, dict) else None
    return version if isinstance(version, str) else None


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a policy folder, its own checksum verified. Raises PolicyMissing or PolicyDamaged."""
    try:
        raw = (Path(path) / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise PolicyMissing(f"{path}: no {MANIFEST} there; `tracer fit TRACES --out {path}` makes one") from error
    except OSError as error:
        raise PolicyDamaged(f"{path}/{MANIFEST}: {error.strerror or error}") from error
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise PolicyDamaged(f"{path}/{MANIFEST}: not JSON ({error})") from error
    return _parse_manifest(found, f"{path}/{MANIFEST}")


def read_file(path: str | Path, manifest: Manifest, role: str) -> bytes:
    """The bytes of one file, size and checksum verified. Raises PolicyDamaged."""
    place, entry = _place(path, manifest, role)
    try:
        content = place.read_bytes()
    except OSError as error:
        raise PolicyDamaged(f"{path}/{entry.path}: {error.strerror or error}") from error
    _compare(path, entry, len(content), hashlib.sha256(content).hexdigest())
    return content


def check_file(path: str | Path, manifest: Manifest, role: str) -> tuple[Path, str]:
    """Where one file lies, and its SHA-256, verified as `read_file` does without holding it. Raises PolicyDamaged."""
    place, entry = _place(path, manifest, role)
    try:
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _compare(path, entry, file.tell(), digest)
    except OSError as error:
        raise PolicyDamaged(f"{path}/{entry.path}: {error.strerror or error}") from error
    return place, digest


def _place(path: str | Path, manifest: Manifest, role: str) -> tuple[Path, File]:
    entry = manifest.files.get(role)
    if entry is None:
        raise PolicyDamaged(f"{path}/{MANIFEST}: names no {role} file")
    root = Path(path).resolve()
    place = (root / entry.path).resolve()
    if not place.is_relative_to(root):
        raise PolicyDamaged(f"{path}/{MANIFEST}: {entry.path} lies outside the policy folder")
    return place, entry


def _compare(path: str | Path, entry: File, size: int, digest: str) -> None:
    if size != entry.bytes or digest != entry.sha256:
        raise PolicyDamaged(f"{path}/{entry.path}: checksum does not match the manifest")


def write_version(
    path: str | Path,
    manifest: Manifest,
    contents: Mapping[str, tuple[str, bytes]],
    shared: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Write a version and make it the served one. Returns the manifest as written, with its files.

    `contents` maps a role to (file name, bytes). `shared` maps roles to bytes: they are large and seldom change, so
    versions share them; such a role is `encoder/` or `table/`, and the file's name. Raises ArtifactError where the
    folder cannot be written; the version served before then stays served.
    """
    root = Path(path)
    relative = f"{_VERSIONS}/{manifest.version}"
    try:
        written = _write_shared(root, shared or {})
        _write_folder(root / relative, dict(contents.values()))
        written |= {role: _entry(f"{relative}/{name}", content) for role, (name, content) in contents.items()}
        complete = Manifest(**{**_shallow(manifest), "files": written})
        _write_manifest(root, complete)
        _drop_old(root / _VERSIONS, _KEPT_VERSIONS)
        for kind in _SHARED.values():
            # At most one a version; the one just written has touched its own.
            _drop_old(root / kind, _KEPT_VERSIONS)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot write the policy: {error.strerror or error}") from error
    return complete


def _write_shared(root: Path, shared: Mapping[str, bytes]) -> dict[str, File]:
    found: dict[str, File] = {}
    for part, kind in _SHARED.items():
        files = {role.partition("/")[2]: content for role, content in shared.items() if role.startswith(f"{part}/")}
        if files:
            folder = _write_once(root, kind, files)
            found |= {f"{part}/{name}": _entry(f"{folder}/{name}", content) for name, content in files.items()}
    return found


def _write_once(root: Path, kind: str, files: Mapping[str, bytes]) -> str:
    """The folder that has these files, named by what they hold."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(hashlib.sha256(files[name]).digest())
    folder = f"{kind}/{digest.hexdigest()[:16]}"
    if all(_same(root / folder / name, content) for name, content in files.items()):
        os.utime(root / folder)
    else:
        shutil.rmtree(root / folder, ignore_errors=True)
        _write_folder(root / folder, files)
    return folder


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """A folder that is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        staging.chmod(0o755)
        for name, content in files.items():
            _write_durably(staging / name, content)
        _flush_folder(staging)
        staging.rename(target)
        _flush_folder(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _same(place: Path, content: bytes) -> bool:
    try:
        return place.read_bytes() == content
    except OSError:
        return False


def _entry(relative: str, content: bytes) -> File:
    return File(relative, hashlib.sha256(content).hexdigest(), len(content))


def _shallow(manifest: Manifest) -> dict[str, Any]:
    return {item.name: getattr(manifest, item.name) for item in fields(manifest)}


def as_json(manifest: Manifest) -> dict[str, Any]:
    """What stands in `manifest.json`, but for the checksum."""
    return asdict(replace(manifest, answers=AnswerForms())) | {"answers": manifest.answers.to_dict()}


def _write_manifest(root: Path, manifest: Manifest) -> None:
    body = as_json(manifest)
    body["checksum"] = _checksum(body)
    temporary = root / f".{MANIFEST}.{os.getpid()}"
    _write_durably(temporary, orjson.dumps(body, option=orjson.OPT_INDENT_2))
    temporary.replace(root / MANIFEST)
    _flush_folder(root)


def _checksum(body: Mapping[str, Any]) -> str:
    bare = {key: value for key, value in body.items() if key != "checksum"}
    return hashlib.sha256(orjson.dumps(bare, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _parse_manifest(found: object, where: str) -> Manifest:
    if not isinstance(found, dict):
        raise PolicyDamaged(f"{where}: not a manifest")
    if found.get("schema_version") != SCHEMA_VERSION:
        known, seen = SCHEMA_VERSION, found.get("schema_version")
        raise PolicyDamaged(
            f"{where}: schema version {seen!r}, this program reads {known}; fit again or use the matching version"
        )
    if found.get("checksum") != _checksum(found):
        raise PolicyDamaged(f"{where}: altered after it was written (its own checksum does not match)")
    body = {key: value for key, value in found.items() if key != "checksum"}
    try:
        body["certificate"] = Certificate(**body["certificate"])
        body["stages"] = [
            StageEntry(**entry | {"heads": [HeadEntry(**head) for head in entry["heads"]]}) for entry in body["stages"]
        ]
        body["frontier"] = [FrontierEntry(**entry) for entry in body["frontier"]]
        body["files"] = {role: File(**entry) for role, entry in body["files"].items()}
        body["answers"] = AnswerForms.from_dict(body["answers"])
        body["input_form"] = None if body["input_form"] is None else InputForm(**body["input_form"])
        manifest = Manifest(**body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PolicyDamaged(f"{where}: {error}") from error
    problem = misfit(manifest, Manifest, "manifest") or _check(manifest)
    if problem is not None:
        raise PolicyDamaged(f"{where}: {problem}")
    return manifest


def _check(manifest: Manifest) -> str | None:
    """What does not hold together in a manifest whose types are right; None where all does."""
    labels, stages, answers = set(manifest.labels), manifest.stages, manifest.answers
    limits = [manifest.protected, *(row.protected for row in manifest.frontier)]
    targets = [row.target for row in manifest.frontier]
    heads = {len(stage.heads) for stage in stages}
    rows = [tuple(row) for row in manifest.combinations if row]
    checks = {
        "certified and without a model, or refused with one": manifest.certificate.refused == bool(stages),
        "a label stands twice": len(labels) != len(manifest.labels),
        "not an answer for every label": answers.answers.keys() != labels or set(answers.keys.values()) != labels,
        "a threshold of a label that is none": any(not limited.keys() <= labels for limited in limits),
        "a frontier out of order": any(low >= high for low, high in pairwise(targets)),
        "a frontier without a threshold for each stage": any(
            len(row.thresholds) != len(stages) for row in manifest.frontier
        ),
        "stages with different heads, or none": bool(stages) and (len(heads) != 1 or 0 in heads),
        "combinations that are not its labels'": bool(manifest.combinations)
        and (len(manifest.combinations) != len(manifest.labels) or {len(row) for row in rows} != heads),
        "several heads and no combinations": not manifest.combinations and not heads <= {1},
        "two labels of one combination": len(set(rows)) != len(rows) or min(map(min, rows), default=0) < 0,
        "an input kind that is none": manifest.input_kind not in ("text", "embedding"),
        "embeddings of no dimension": manifest.input_kind == "embedding" and not manifest.embedding_dim,
    }
    return next((problem for problem, found in checks.items() if found), None)


def _write_durably(place: Path, content: bytes) -> None:
    with place.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _drop_old(folder: Path, kept: int) -> None:
    if not folder.is_dir():
        return
    entries = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime, reverse=True)[kept:]:
        shutil.rmtree(entry, ignore_errors=True)
    # Left behind by a writer that was killed; the lock says that no other is at work.
    for leftover in folder.glob(".new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
