"""A policy folder is loaded strictly and replaced atomically."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.artifact import Manifest, kept_versions, read_manifest, read_version, touch_version, write_version
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


@pytest.mark.parametrize("role", ["model", "tokenizer", "table/words.npy", "probes"])
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
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"schema_version": 99}',
        b'{"schema_version": 1}',
        b'{"schema_version": 3}',
        b'{"schema_version": 4}',
    ],
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
    for _ in range(11):
        fit_policy(make_traces(60), folder, FitConfig(0.6))
    assert len(list((folder / "versions").iterdir())) == 10
    assert (folder / "versions" / str(read_version(folder))).is_dir()
    assert len(kept_versions(folder)) == 10


def test_any_kept_version_is_what_it_was_when_it_was_served(folder: Path) -> None:
    """By its name, with the bytes of the manifest of then, and the decisions of then; None is the served one."""
    texts = [trace.input for trace in make_traces(100, seed=3)]
    manifests, decided = {}, {}
    for seed in range(3):
        if seed:
            fit_policy(make_traces(500, seed=seed), folder, FitConfig(0.85))
        version = str(read_version(folder))
        manifests[version] = (folder / "manifest.json").read_bytes()
        decided[version] = Policy.load(folder).decide_many(texts)
    assert kept_versions(folder) == list(manifests)
    for version, raw in manifests.items():
        assert (folder / "versions" / version / "manifest.json").read_bytes() == raw
        assert read_manifest(folder, version).version == version
        policy = Policy.load(folder, version)
        assert (policy.version, policy.decide_many(texts)) == (version, decided[version])
    assert Policy.load(folder).version == list(manifests)[-1]
    assert len({tuple(found) for found in decided.values()}) == 3


@pytest.mark.parametrize(
    "version",
    [
        "",
        ".",
        "..",
        "../policy",
        "../versions/VERSION",
        "VERSION/",
        "/etc",
        "a\x00b",
        ".new-x",
        "none",
        "x" * 5_000,
        "\ud800",
    ],
)
def test_a_version_that_is_not_kept_is_missing(folder: Path, version: str) -> None:
    """Whatever its name says: a name cannot lead out of the folder, nor in by another way."""
    (folder / "versions" / ".new-x").mkdir()
    name = version.replace("VERSION", str(read_version(folder)))
    for ask in (read_manifest, Policy.load, touch_version):
        with pytest.raises(PolicyMissing):
            ask(folder, name)


def test_a_version_that_leads_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    """A link among the versions is none of them."""
    version = str(read_version(folder))
    (folder / "versions" / version).rename(tmp_path / "elsewhere")
    (folder / "versions" / version).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyDamaged, match="outside"):
        Policy.load(folder, version)
    assert kept_versions(folder) == []


@pytest.mark.parametrize("damage", ["gone", "half", "altered", "of another", "of an older program"])
def test_a_kept_version_without_its_own_manifest_is_damaged(folder: Path, damage: str) -> None:
    """The served one is not touched by it, and it is not among the kept."""
    old = str(read_version(folder))
    new = fit_policy(make_traces(60), folder, FitConfig(0.6)).manifest.version
    place, other = (folder / "versions" / version / "manifest.json" for version in (old, new))
    body = orjson.loads(place.read_bytes())
    contents = {
        "half": place.read_bytes()[:500],
        "altered": orjson.dumps(body | {"threshold": 0.0}),
        "of another": other.read_bytes(),
        "of an older program": orjson.dumps(body | {"schema_version": 4}),
    }
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes(contents[damage])
    for ask in (read_manifest, Policy.load):
        with pytest.raises(PolicyDamaged, match=rf"{old}.manifest\.json"):
            ask(folder, old)
    assert kept_versions(folder) == [new]
    assert Policy.load(folder).version == new


def test_only_whole_versions_are_kept_ones(folder: Path, tmp_path: Path) -> None:
    """A file that is missing or cut, a shared one too, takes a version off the list; a folder of nothing has none."""
    version = str(read_version(folder))
    assert kept_versions(folder) == [version]
    for role in ("traces", "table/words.npy"):
        place = folder / read_manifest(folder).files[role].path
        content = place.read_bytes()
        place.write_bytes(content[:-1])
        assert kept_versions(folder) == []
        place.write_bytes(content)
    assert kept_versions(folder) == [version]
    assert kept_versions(tmp_path / "none") == []


def _write(folder: Path, like: Manifest, number: int, encoder: bytes) -> str:
    """A version in its folder, of no use but to be kept; later numbers are newer."""
    name = f"v{number:02}"
    made = replace(like, version=name, created=name)
    write_version(folder, made, {"report": ("report.json", b"{}")}, {"encoder/model.onnx": encoder})
    os.utime(folder / "versions" / name, (number, number))
    return name


def _encoders(folder: Path) -> set[bytes]:
    return {place.read_bytes() for place in (folder / "encoders").glob("*/model.onnx")}


def test_what_a_kept_version_shares_stays_and_goes_with_it(pristine: Path, tmp_path: Path) -> None:
    """However long ago it was written: an old version may be served again while others come."""
    like = read_manifest(pristine)
    for number in range(1, 11):
        _write(tmp_path, like, number, b"old" if number == 1 else b"%d" % (number % 3))
    assert _encoders(tmp_path) == {b"old", b"0", b"1", b"2"}
    _write(tmp_path, like, 11, b"2")
    assert kept_versions(tmp_path) == [f"v{number:02}" for number in range(2, 12)]
    assert _encoders(tmp_path) == {b"0", b"1", b"2"}


def test_a_version_that_was_used_outlives_newer_ones(pristine: Path, tmp_path: Path) -> None:
    """`touch_version` counts as use: what was used longest ago is dropped."""
    like = read_manifest(pristine)
    first = _write(tmp_path, like, 1, b"first")
    for number in range(2, 11):
        _write(tmp_path, like, number, b"other")
    touch_version(tmp_path, first)
    for number in range(11, 20):
        _write(tmp_path, like, number, b"other")
    assert kept_versions(tmp_path) == [first, *(f"v{number:02}" for number in range(11, 20))]
    assert _encoders(tmp_path) == {b"first", b"other"}


def test_the_served_version_stays_though_the_clock_went_back(pristine: Path, tmp_path: Path) -> None:
    """Ten versions that seem to be newer do not push it out."""
    like = read_manifest(pristine)
    for number in range(1, 11):
        os.utime(tmp_path / "versions" / _write(tmp_path, like, number, b"x"), (2**33, 2**33))
    served = _write(tmp_path, like, 0, b"served")
    assert served in kept_versions(tmp_path)
    assert read_version(tmp_path) == served
    assert len(kept_versions(tmp_path)) == 10
    assert _encoders(tmp_path) == {b"x", b"served"}


def test_nothing_shared_goes_while_a_version_does_not_say_what_it_needs(pristine: Path, tmp_path: Path) -> None:
    """A damaged manifest may be mended; its encoder could not."""
    like = read_manifest(pristine)
    first = _write(tmp_path, like, 1, b"first")
    manifest = tmp_path / "versions" / first / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:300])
    _write(tmp_path, like, 2, b"second")
    assert _encoders(tmp_path) == {b"first", b"second"}
    manifest.write_bytes(whole)
    assert kept_versions(tmp_path) == ["v01", "v02"]
