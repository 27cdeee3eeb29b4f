"""The policy folder: versions side by side, and one manifest that says which of them is served.

    PATH/manifest.json                  names every file of the served version by path, size and SHA-256
    PATH/versions/<version>/...         manifest.json (its own, the same while it is served), model.onnx (and
                                        model_2.onnx of a cascade, model_field_2.onnx of an answer of several fields),
                                        tokenizer.json, probes.json, certificate.json, frontier.json, report.json,
                                        traces.jsonl
    PATH/encoders/<sha256>/...          what the transformer or endpoint block needs; versions share it
    PATH/tables/<sha256>/words.npy      the word vectors; versions share them

A version is written whole, flushed to disk, and only then does one rename of `manifest.json` make it the served one: a
reader sees the old version or the new one, never a mixture. Every kept version can be loaded by its name. Nothing in
the folder is executable: JSON, ONNX and plain arrays.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from policies.answers import AnswerForms
from policies.conforming import misfit
from policies.durable import drop_folders, folders, replace_file, write_folder
from policies.errors import ArtifactError, PolicyDamaged, PolicyMissing
from policies.input_form import InputForm

SCHEMA_VERSION = 5
MANIFEST = "manifest.json"
_VERSIONS = "versions"
# What versions share, by the first part of its files' roles: it is large and seldom changes.
_SHARED = {"encoder": "encoders", "table": "tables"}
# Old versions stay for a rollback, and for a reader that is half way through one when the next is written.
_KEPT_VERSIONS = 10
# Names of versions come from outside, too: one cannot lead out of the folder.
_VERSION_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


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


def read_manifest(path: str | Path, version: str | None = None) -> Manifest:
    """The manifest of the served version of a policy folder, or of any `version` that it keeps.

    Its own checksum is verified. Raises PolicyMissing where there is no policy or no such version, and PolicyDamaged.
    """
    if version is not None:
        return _read_kept(Path(path), version)
    try:
        raw = (Path(path) / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise PolicyMissing(f"{path}: no {MANIFEST} there; `tracer fit TRACES --out {path}` makes one") from error
    except OSError as error:
        raise PolicyDamaged(f"{path}/{MANIFEST}: {error.strerror or error}") from error
    return _parse_manifest(raw, f"{path}/{MANIFEST}")


def kept_versions(path: str | Path) -> list[str]:
    """Names of the versions that can be loaded, oldest first, refused ones included; none where there is no policy.

    A version counts whose manifest is sound and whose files are there in their sizes; what they hold is compared when
    it is loaded. Raises PolicyDamaged where the folder cannot be read.
    """
    root, found = Path(path), []
    try:
        names = [folder.name for folder in folders(root / _VERSIONS)]
    except OSError as error:
        raise PolicyDamaged(f"{path}/{_VERSIONS}: {error.strerror or error}") from error
    for name in names:
        try:
            manifest = read_manifest(path, name)
        except ArtifactError:
            continue
        if all(_size(root / entry.path) == entry.bytes for entry in manifest.files.values()):
            found.append((manifest.created, name))
    return [name for _, name in sorted(found)]


def touch_version(path: str | Path, version: str) -> None:
    """Count a kept version as used now: where there are too many, those written or used longest ago are dropped.

    For an old version that is served again. Raises PolicyMissing or PolicyDamaged, and ArtifactError where the folder
    cannot be written.
    """
    read_manifest(path, version)
    try:
        os.utime(Path(path) / _VERSIONS / version)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error


def _read_kept(root: Path, version: str) -> Manifest:
    folder = root / _VERSIONS / version
    if not _VERSION_NAME.fullmatch(version) or not folder.is_dir():
        raise PolicyMissing(f"{root}: keeps no version {version!r}")
    where = f"{root}/{_VERSIONS}/{version}/{MANIFEST}"
    if not folder.resolve().is_relative_to(root.resolve()):
        raise PolicyDamaged(f"{where}: lies outside the policy folder")
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise PolicyDamaged(f"{where}: {error.strerror or error}") from error
    manifest = _parse_manifest(raw, where)
    if manifest.version != version:
        raise PolicyDamaged(f"{where}: it is that of version {manifest.version}")
    return manifest


def _size(place: Path) -> int | None:
    try:
        return place.stat().st_size
    except OSError:
        return None


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
        written |= {role: _entry(f"{relative}/{name}", content) for role, (name, content) in contents.items()}
        complete = replace(manifest, files=written)
        body = _serialised(complete)
        write_folder(root / relative, dict(contents.values()) | {MANIFEST: body})
        replace_file(root / MANIFEST, body)
        _drop_old(root, manifest.version)
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
    if not all(_same(root / folder / name, content) for name, content in files.items()):
        shutil.rmtree(root / folder, ignore_errors=True)
        write_folder(root / folder, files)
    return folder


def _same(place: Path, content: bytes) -> bool:
    try:
        return place.read_bytes() == content
    except OSError:
        return False


def _entry(relative: str, content: bytes) -> File:
    return File(relative, hashlib.sha256(content).hexdigest(), len(content))


def as_json(manifest: Manifest) -> dict[str, Any]:
    """What stands in `manifest.json`, but for the checksum."""
    return asdict(replace(manifest, answers=AnswerForms())) | {"answers": manifest.answers.to_dict()}


def _serialised(manifest: Manifest) -> bytes:
    body = as_json(manifest)
    body["checksum"] = _checksum(body)
    return orjson.dumps(body, option=orjson.OPT_INDENT_2)


def _checksum(body: Mapping[str, Any]) -> str:
    bare = {key: value for key, value in body.items() if key != "checksum"}
    return hashlib.sha256(orjson.dumps(bare, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _parse_manifest(raw: bytes, where: str) -> Manifest:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise PolicyDamaged(f"{where}: not JSON ({error})") from error
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


def _drop_old(root: Path, served: str) -> None:
    """Leave the served version and those written or used last, and of what versions share what these name."""
    versions = [entry for entry in folders(root / _VERSIONS) if entry.name != served]
    versions.sort(key=lambda entry: (entry.stat().st_mtime, entry.name), reverse=True)
    kept = [served, *(entry.name for entry in versions[: _KEPT_VERSIONS - 1])]
    drop_folders(root / _VERSIONS, kept)
    used: set[str] = set()
    for version in kept:
        named = _folders_named(root / _VERSIONS / version / MANIFEST)
        if named is None:
            # It may need any of them. Some day it is dropped itself, and then they can be.
            return
        used |= named
    for kind in _SHARED.values():
        drop_folders(root / kind, {folder.rpartition("/")[2] for folder in used if folder.startswith(f"{kind}/")})


def _folders_named(manifest: Path) -> set[str] | None:
    """The folders of a version's files; None where its manifest cannot be read.

    Versions that have none were written before each had its own, and nobody can load them. One of another schema still
    names its files.
    """
    try:
        found = orjson.loads(manifest.read_bytes())
        return {entry["path"].rpartition("/")[0] for entry in found["files"].values()}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
