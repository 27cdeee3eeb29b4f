"""A policy folder is loaded strictly and replaced atomically."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.artifact import read_manifest, read_version
from policies.errors import ArtifactError, PolicyDamaged, PolicyMissing
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from tests.traces_maker import make_traces


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified policy, not to be touched."""
    folder = tmp_path_factory.mktemp("pristine") / "policy"
    fit_policy(make_traces(500), folder, FitConfig(0.85))
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "policy"))


@pytest.mark.parametrize("role", ["model", "tokenizer", "table/words.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_is_refused(folder: Path, role: str, damage: str) -> None:
    """One flipped byte, a missing tail or a missing file stops the load, and the message names the file."""
    path = folder / read_manifest(folder).files[role].path
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content[:-10] if damage == "cut" else content))
    with pytest.raises(PolicyDamaged, match=path.name):
        Policy.load(folder)


def test_an_edited_threshold_is_noticed(folder: Path) -> None:
    """The manifest carries its own checksum, so nobody lowers a threshold unseen."""
    path = folder / "manifest.json"
    body = orjson.loads(path.read_bytes())
    body["threshold"] = 0.0
    path.write_bytes(orjson.dumps(body))
    with pytest.raises(PolicyDamaged, match="altered"):
        Policy.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("answers", {}), ("answers", None), ("input_form", {"prefix": "x"}), ("answers", "drop one")],
)
def test_forms_that_are_none_are_refused(folder: Path, key: str, value: object) -> None:
    """A manifest with a right checksum and without an answer for every label is damaged all the same."""
    path = folder / "manifest.json"
    body = orjson.loads(path.read_bytes())
    if value == "drop one":
        body["answers"]["answers"].popitem()
    else:
        body[key] = value
    bare = {name: item for name, item in body.items() if name != "checksum"}
    body["checksum"] = hashlib.sha256(orjson.dumps(bare, option=orjson.OPT_SORT_KEYS)).hexdigest()
    path.write_bytes(orjson.dumps(body))
    with pytest.raises(PolicyDamaged):
        Policy.load(folder)


def _every(key: str, **changes: object) -> Callable[[dict[str, Any]], None]:
    """Changes all entries of a list in the manifest."""

    def change(body: dict[str, Any]) -> None:
        for entry in body[key]:
            entry.update(changes)

    return change


def _forms(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["answers"].update(changes)


def _answer(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["answers"]["answers"]["loan"].update(changes)


def _set(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update(changes)


TAMPERED: dict[str, Callable[[dict[str, Any]], None]] = {
    "frontier without thresholds": _every("frontier", thresholds=[]),
    "frontier of too many thresholds": _every("frontier", thresholds=[0.9, 0.9]),
    "frontier of words": _every("frontier", thresholds=["x"]),
    "frontier thresholds none": _every("frontier", thresholds=None),
    "frontier target a word": _every("frontier", target="x"),
    "frontier target true": _every("frontier", target=True),
    "frontier backwards": lambda body: body["frontier"].reverse(),
    "frontier twice": lambda body: body.update(frontier=[*body["frontier"], *body["frontier"]]),
    "frontier protects a list": _every("frontier", protected=[]),
    "frontier protects no label": _every("frontier", protected={"nobody": 0.5}),
    "frontier protects by words": _every("frontier", protected={"loan": "x"}),
    "frontier a number": _set(frontier=[1]),
    "protected a list": _set(protected=["loan"]),
    "protected no label": _set(protected={"nobody": None}),
    "protected by words": _set(protected={"loan": "0.5"}),
    "input form of numbers": _set(input_form={"prefix": 5, "suffix": ""}),
    "input form a list": _set(input_form=[1]),
    "apart of numbers": _forms(apart=[5]),
    "apart a word": _forms(apart="abc"),
    "no apart": lambda body: body["answers"].pop("apart"),
    "keys of no label": _forms(keys={"text foo": "nobody"}),
    "keys a list": _forms(keys=[]),
    "keys of numbers": _forms(keys={"text loan": 1}),
    "merging a word": _forms(merging="yes"),
    "words a number": _forms(words=1),
    "fields a word": _forms(fields="intent"),
    "answers a list": _forms(answers=[1]),
    "answer's text a number": _answer(text=5),
    "answer's arguments an object": _answer(arguments={}),
    "answer's kind none": _answer(kind="song"),
    "open tools a word": _forms(open_tools="abc"),
    "open tools null": _forms(open_tools=None),
    "a label twice": lambda body: body.update(labels=[*body["labels"][:-1], "loan"]),
    "a label less": lambda body: body.update(labels=body["labels"][:-1]),
    "labels of numbers": lambda body: body.update(labels=[*body["labels"][:-1], 1]),
    "threshold a word": _set(threshold="0.5"),
    "stage's threshold a word": _every("stages", threshold="x"),
    "stage without heads": _every("stages", heads=[]),
    "stage of two heads": lambda body: body["stages"][0]["heads"].append(body["stages"][0]["heads"][0]),
    "guard a word": lambda body: body["stages"][0]["heads"][0].update(guard_threshold="x"),
    "no stage": _set(stages=[]),
    "refused with a model": lambda body: body["certificate"].update(refused=True),
    "combinations too few": _set(combinations=[[0]]),
    "combinations of one class": lambda body: body.update(combinations=[[0] for _ in body["labels"]]),
    "combinations below nothing": lambda body: body.update(combinations=[[-i] for i, _ in enumerate(body["labels"])]),
    "combinations of two heads": lambda body: body.update(combinations=[[i, i] for i, _ in enumerate(body["labels"])]),
    "combinations of words": lambda body: body.update(combinations=[["x"] for _ in body["labels"]]),
    "characters a word": _set(max_chars="x"),
    "input kind none": _set(input_kind="sound"),
    "embeddings without a dimension": _set(input_kind="embedding"),
    "coverage a word": lambda body: body["certificate"].update(coverage="all"),
    "stage without word vectors": _every("stages", words=False),
    "word vectors a number": _every("stages", words=1),
    "no table": lambda body: body["files"].pop("table/words.npy"),
    "file of no size": lambda body: body["files"]["model"].update(bytes="many"),
    "settings null": _set(settings=None),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_manifest_is_damaged_at_once(folder: Path, tamper: Callable[[dict[str, Any]], None]) -> None:
    """With a right checksum, too: what would fail at some later call fails when it is loaded."""
    path = folder / "manifest.json"
    body = orjson.loads(path.read_bytes())
    assert len(body["frontier"]) > 1
    tamper(body)
    bare = {name: item for name, item in body.items() if name != "checksum"}
    body["checksum"] = hashlib.sha256(orjson.dumps(bare, option=orjson.OPT_SORT_KEYS)).hexdigest()
    path.write_bytes(orjson.dumps(body))
    with pytest.raises(PolicyDamaged, match=r"manifest\.json"):
        Policy.load(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"schema_version": 99}', b'{"schema_version": 1}', b'{"schema_version": 3}'],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    """Half a file, another type, another schema version: damaged, and never a crash."""
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(PolicyDamaged):
        Policy.load(folder)


def test_a_path_outside_the_folder_is_refused(folder: Path) -> None:
    """A manifest cannot make the loader read elsewhere."""
    manifest = read_manifest(folder)
    (folder.parent / "elsewhere.onnx").write_bytes((folder / manifest.files["model"].path).read_bytes())
    body = orjson.loads((folder / "manifest.json").read_bytes())
    body["files"]["model"]["path"] = "../elsewhere.onnx"
    del body["checksum"]
    body["checksum"] = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
    (folder / "manifest.json").write_bytes(orjson.dumps(body))
    with pytest.raises(PolicyDamaged, match="outside"):
        Policy.load(folder)


def test_no_policy_is_said_as_such(tmp_path: Path) -> None:
    """An empty folder and a missing one are both 'missing', with the command that makes a policy."""
    assert read_version(tmp_path / "none") is None
    with pytest.raises(PolicyMissing, match="tracer fit"):
        Policy.load(tmp_path / "none")


def test_a_fit_that_fails_leaves_the_served_version(folder: Path) -> None:
    """A folder that cannot be written keeps what it served."""
    before = read_version(folder)
    versions = folder / "versions"
    moved = folder / "moved"
    versions.rename(moved)
    versions.write_text("in the way")
    with pytest.raises(ArtifactError):
        fit_policy(make_traces(300), folder, FitConfig(0.8))
    versions.unlink()
    moved.rename(versions)
    assert Policy.load(folder).version == before


def test_versions_pile_up_only_so_far(folder: Path) -> None:
    """Old versions stay for a rollback, but not for ever."""
    for _ in range(6):
        fit_policy(make_traces(60), folder, FitConfig(0.6))
    assert len(list((folder / "versions").iterdir())) == 5
    assert (folder / "versions" / str(read_version(folder))).is_dir()
