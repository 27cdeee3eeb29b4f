"""Keys of ours: what they look like, what their file holds, and how one is known again."""

import hashlib
import hmac
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway import keys
from gateway.keys import KeyRecord, KeysError

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def _record(secret: str, expires: datetime | None = None) -> KeyRecord:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return KeyRecord(sha256=digest, projects=frozenset({"a"}), created=NOW, expires=expires)


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    """`trc_<id>_<secret>`, with a secret of at least 192 bits; the file is its owner's alone."""
    file = tmp_path / "deep" / "keys.json"
    key_id, key = keys.create(file, frozenset({"a"}), "ci", None)
    prefix, found_id, secret = key.split("_", 2)
    assert (prefix, found_id) == ("trc", key_id)
    assert len(secret) * 6 >= 192
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert keys.find(key, keys.read_keys(file), NOW) == (key_id, keys.read_keys(file)[key_id])
    assert json.loads(file.read_bytes())["keys"][key_id]["name"] == "ci"


def test_only_the_right_unexpired_key_is_known() -> None:
    """Whole and exact."""
    known = {"id1": _record("s_e-c"), "id2": _record("x", NOW)}
    assert keys.find("trc_id1_s_e-c", known, NOW) == ("id1", known["id1"])
    for wrong in (
        "trc_id1_",
        "trc_id1_s_e-C",
        "trc_id1_s_e-c ",
        "trc_id2_s_e-c",
        "sk_id1_s_e-c",
        "trc__s_e-c",
        "trc",
        "",
    ):
        assert keys.find(wrong, known, NOW) is None
    assert keys.find("trc_id2_x", known, NOW) is None
    assert keys.find("trc_id2_x", known, NOW - timedelta(seconds=1)) is not None


def test_every_key_costs_one_hash_and_one_constant_time_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of digests of one length, whether the id is known, the secret wrong, or the key no key at all."""
    compared: list[tuple[str, str]] = []
    true_compare = hmac.compare_digest

    def compare(left: str, right: str) -> bool:
        compared.append((left, right))
        return true_compare(left, right)

    monkeypatch.setattr(keys, "compare_digest", compare)
    known = {"id1": _record("secret")}
    given = ["trc_id1_secret", "trc_id1_wrong", "trc_id2_secret", "sk-1", "", "trc_id1_\u00ff"]
    found = [keys.find(key, known, NOW) is not None for key in given]
    assert found == [True, False, False, False, False, False]
    assert len(compared) == len(given)
    assert {len(text) for pair in compared for text in pair} == {64}


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    """The file is locked while it is changed, and replaced whole."""
    file = tmp_path / "keys.json"
    threads = [threading.Thread(target=keys.create, args=(file, "*", str(number), None)) for number in range(16)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        keys.read_keys(file)  # raises where it ever reads half a file
    assert {record.name for record in keys.read_keys(file).values()} == {str(number) for number in range(16)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_revoked_key_is_gone(tmp_path: Path) -> None:
    """And the others stay."""
    file = tmp_path / "keys.json"
    first, _ = keys.create(file, "*", "", None)
    second, key = keys.create(file, "*", "", None)
    assert keys.revoke(file, first)
    assert not keys.revoke(file, first)
    assert list(keys.read_keys(file)) == [second]
    assert keys.find(key, keys.read_keys(file), NOW) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"\xff",
        b'{"version": 2, "keys": {}}',
        b'{"version": 1, "keys": {"a": {"sha256": "x"}}}',
    ],
)
def test_a_file_of_another_kind_is_an_error_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    """Nothing of its content is repeated, and no command writes over it."""
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(KeysError, match=r"keys\.json: not a keys file"):
        keys.read_keys(file)
    with pytest.raises(KeysError):
        keys.create(file, "*", "", None)
    assert file.read_bytes() == content


def test_a_file_that_is_not_there_holds_no_keys(tmp_path: Path) -> None:
    """A folder in its place, as container engines make of a missing mount, is an error."""
    assert keys.read_keys(tmp_path / "absent") == {}
    with pytest.raises(KeysError, match="cannot be read: Is a directory"):
        keys.read_keys(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no half-written one beside it."""
    file = tmp_path / "keys.json"
    keys.create(file, "*", "", None)
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeysError, match="cannot be written: No space left on device"):
        keys.create(file, "*", "", None)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_changed_file_keeps_its_mode_and_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key revoked by root leaves a file that the gateway can still read."""
    file = tmp_path / "keys.json"
    first, _ = keys.create(file, "*", "", None)
    file.chmod(0o640)
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _, user, group: owners.append((user, group)))
    keys.revoke(file, first)
    assert file.stat().st_mode & 0o777 == 0o640
    assert set(owners) == {(file.stat().st_uid, file.stat().st_gid)}


def test_what_was_for_one_group_is_not_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system lets nobody give files away, the file becomes its owner's alone."""
    file = tmp_path / "keys.json"
    first, _ = keys.create(file, "*", "", None)
    file.chmod(0o640)

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    keys.revoke(file, first)
    assert file.stat().st_mode & 0o777 == 0o600
