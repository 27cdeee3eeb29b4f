"""The table of word vectors: one copy for all who read it, which no change to a policy folder can take away."""

import gc
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import orjson
import pytest
from safetensors.numpy import save_file

from policies.artifact import read_manifest
from policies.errors import PolicyDamaged
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.static_table import load_static_table
from policies.word_table import ROLE, load_words, to_file
from tests.encoder_maker import make_encoder
from tests.process_memory import linux, n_mappings, of_mapping
from tests.serving import ROOT
from tests.traces_maker import make_traces

TEXTS = [trace.input for trace in make_traces(60, seed=3)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, where no process has put a table yet."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    # Other tests may have it open from elsewhere.
    monkeypatch.setattr("policies.word_table._OPEN", WeakValueDictionary())
    return folder


@pytest.fixture
def folder(policy_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(policy_folder, tmp_path / "policy"))


def _copies(place: Path) -> list[Path]:
    return list(place.glob("tracer-*/*"))


def _decided(policy: Policy) -> list[object]:
    return [policy.decide(text) for text in TEXTS]


@linux
def test_policies_and_stages_share_one_table(place: Path, policy_folder: Path, tmp_path: Path) -> None:
    """Of two policies with three graphs that read it there is one mapping, and it goes with the last of them."""
    encoder = make_encoder(tmp_path / "encoder")
    config = FitConfig(0.85, features=f"lexical,static,transformer:{encoder}")
    fit_policy(make_traces(700, blur=0.3), tmp_path / "cascade", config)
    policies = [Policy.load(policy_folder), Policy.load(tmp_path / "cascade")]
    assert len(policies[1].manifest.stages) == 2
    for policy in policies:
        _decided(policy)
    assert n_mappings(os.getpid(), str(place)) == 1
    assert len(_copies(place)) == 1


@linux
def test_a_table_no_policy_uses_is_closed(place: Path, policy_folder: Path) -> None:
    """A policy that is replaced by one of another table takes its own with it."""
    policy = Policy.load(policy_folder)
    assert n_mappings(os.getpid(), str(place)) == 1
    del policy
    gc.collect()
    assert n_mappings(os.getpid(), str(place)) == 0


def test_a_table_cannot_be_written_to(policy_folder: Path) -> None:
    """Who has it has everybody's."""
    table = load_words(policy_folder, read_manifest(policy_folder))
    assert table.dtype == np.float16
    assert not table.flags.writeable


WORKER = """
import sys
from policies.policy import Policy
policy = Policy.load(sys.argv[1])
for text in sys.argv[2:]:
    policy.decide(text)
print("ready", flush=True)
sys.stdin.read()
"""


@linux
def test_processes_share_one_table(place: Path, policy_folder: Path) -> None:
    """Two that start at the same moment, before there is a copy: of its pages each has half."""
    command = [sys.executable, "-c", WORKER, str(policy_folder), *TEXTS]
    pipe = subprocess.PIPE
    workers = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        shares = [of_mapping(worker.pid, str(place)) for worker in workers]
    finally:
        for worker in workers:
            worker.communicate()
    assert len(_copies(place)) == 1
    for whole, share in shares:
        assert whole > 0.5
        assert share < 0.6 * whole


def test_a_copied_folder_decides_the_same(place: Path, policy_folder: Path, folder: Path) -> None:
    """It needs neither the first folder nor what a process has put beside it, and may be read-only."""
    expected = _decided(Policy.load(policy_folder))
    shutil.rmtree(place)
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert _decided(Policy.load(folder)) == expected


@pytest.mark.parametrize("harm", ["truncate", "overwrite", "remove"])
def test_a_file_that_changes_under_a_policy_does_it_no_harm(place: Path, folder: Path, harm: str) -> None:
    """A file truncated in place would kill a process that has it mapped; the policy goes on deciding as before."""
    assert place.is_dir()
    policy = Policy.load(folder)
    expected = _decided(policy)
    table = folder / read_manifest(folder).files[ROLE].path
    if harm == "truncate":
        os.truncate(table, 0)
    elif harm == "overwrite":
        table.write_bytes(b"\xff" * table.stat().st_size)
    else:
        shutil.rmtree(folder)
    assert _decided(policy) == expected


def test_a_damaged_copy_is_made_anew(place: Path, folder: Path) -> None:
    """What lies in the folder for temporary files is checked before it is used."""
    expected = _decided(Policy.load(folder))
    (copy,) = _copies(place)
    content = bytearray(copy.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    copy.unlink()
    copy.write_bytes(content)
    assert _decided(Policy.load(folder)) == expected
    assert _copies(place) == [copy]
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == copy.stem
    assert copy.stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("obstacle", ["open to others", "a link", "a file"])
def test_no_safe_place_means_a_copy_of_its_own(place: Path, folder: Path, tmp_path: Path, obstacle: str) -> None:
    """A folder that others may write to is not used: the table is read into memory."""
    own = place / f"tracer-{os.geteuid()}"
    if obstacle == "open to others":
        own.mkdir()
        own.chmod(0o777)
    elif obstacle == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "elsewhere")
    else:
        own.touch()
    policy = Policy.load(folder)
    assert any(policy.decide(text).handled for text in TEXTS)
    assert _copies(place) == []


def test_versions_share_their_table_and_keep_the_ones_in_use(tmp_path: Path) -> None:
    """However many fits, one table is one file; of different tables those of the versions that are kept stay."""
    folder, traces = tmp_path / "policy", make_traces(60)
    for _ in range(2):
        fit_policy(traces, folder, FitConfig(0.6))
    assert len(list(folder.glob("tables/*/words.npy"))) == 1
    tables = []
    for number in range(12):
        tables.append(_own_table(tmp_path / f"table{number}", number))
        fit_policy(traces, folder, FitConfig(0.6, features=f"lexical,static:{tables[-1]}"))
    assert len(list(folder.glob("tables/*/words.npy"))) == 10
    fit_policy(traces, folder, FitConfig(0.6, features=f"lexical,static:{tables[2]}"))
    assert len(list(folder.glob("tables/*/words.npy"))) == 10
    shutil.rmtree(tables[2])
    assert Policy.load(folder).decide(traces[0].input).guess is not None


def test_a_policy_without_word_vectors_keeps_none(tmp_path: Path) -> None:
    """The table is in the folder only where a graph reads it."""
    manifest = fit_policy(make_traces(300), tmp_path / "policy", FitConfig(0.6, features="lexical")).manifest
    assert not manifest.certificate.refused
    assert ROLE not in manifest.files
    assert Policy.load(tmp_path / "policy").decide(TEXTS[0]).guess is not None


@pytest.mark.parametrize(
    "vectors", [np.zeros((7, 256), np.float16), np.zeros((32_000, 256), np.float32), np.zeros(9, np.float16)]
)
def test_another_table_is_damage(folder: Path, vectors: np.ndarray) -> None:
    """With right checksums, too: what would fail at some later call fails when it is loaded."""
    _replace(folder, to_file(vectors)[ROLE])
    with pytest.raises(PolicyDamaged):
        Policy.load(folder)


def test_a_file_that_is_no_table_is_damage(folder: Path) -> None:
    """Nor is anything in it ever unpickled."""
    _replace(folder, b"no table at all")
    with pytest.raises(PolicyDamaged, match="not a table"):
        Policy.load(folder)


def _own_table(folder: Path, number: int) -> Path:
    """The default table but for one number in it."""
    table = load_static_table()
    vectors = table.vectors.copy()
    vectors[5, 5] = number
    folder.mkdir()
    save_file({"embedding": vectors}, folder / "table.safetensors")
    (folder / "tokenizer.json").write_bytes(table.tokenizer_json)
    return folder


def _replace(folder: Path, content: bytes) -> None:
    """Put another table into a policy folder, as someone does who knows how checksums are made."""
    body = orjson.loads((folder / "manifest.json").read_bytes())
    entry = body["files"][ROLE]
    (folder / entry["path"]).write_bytes(content)
    entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    del body["checksum"]
    body["checksum"] = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
    (folder / "manifest.json").write_bytes(orjson.dumps(body))
