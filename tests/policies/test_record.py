"""What the store keeps of projects, on SQLite and on PostgreSQL: every promise is tested on both."""

import contextlib
import math
import os
import pwd
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from policies.errors import StoreError
from policies.record import Earlier, Record, flaw
from policies.store import Store
from policies.types import Comparison, Move, StoredTrace
from tests.postgres import PASSWORD, Postgres

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]


@pytest.fixture
def record(url: str) -> Iterator[Record]:
    opened = Record.open(url)
    yield opened
    opened.close()


def comparison(number: int, version: str = "v1", kind: str = "audit", project: str = "bank") -> Comparison:
    return Comparison(f"id-{number:05}", project, version, kind, float(number), "x", "x", False, 0.5, 0.25)


FULL = Comparison(
    id="id",
    project="bank",
    version="v1",
    kind="shadow",
    ts=1767323045.123456,
    label="Où est ma carte ? 🙂",
    teacher=None,
    wrong=True,
    probability=0.1 + 0.2,
    base=1 / 7,
    prompt="abc",
    detail='{"field": "ü"}',
)
MOVE = Move("bank", "v1", None, "shadow", "certified", "gate", 1767323045.123456, {"n": 700, "lower": 1 / 3})


def keep(document: Document, _new: Sequence[Comparison], _earlier: Earlier) -> tuple[Document, list[Move]]:
    """A step that changes nothing."""
    return document, []


def count(document: Document, new: Sequence[Comparison], _earlier: Earlier) -> tuple[Document, list[Move]]:
    """A step that counts what is new."""
    return document | {"n": document.get("n", 0) + len(new)}, []


def put(**values: Any) -> Any:
    """A step that sets the document's values."""
    return lambda document, _new, _earlier: (document | values, [])


def move(*moves: Move) -> Any:
    """A step that only moves."""
    return lambda document, _new, _earlier: (document, moves)


def sql(url: str, *statements: str) -> None:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


def test_documents_and_revisions(record: Record) -> None:
    """A project's document is {} at first, and has the next revision whenever it changed."""
    assert (record.revisions(), record.documents(), record.document("bank")) == ({}, {}, None)
    assert record.change("bank", [], keep) == (0, {})
    assert record.change("bank", [], put(state="shadow")) == (1, {"state": "shadow"})
    assert record.change("bank", [], put(state="shadow")) == (1, {"state": "shadow"})
    assert record.change("shop", [], put(state="live")) == (1, {"state": "live"})
    assert record.change("bank", [], put(wealth=1.5)) == (2, {"state": "shadow", "wealth": 1.5})
    assert record.revisions() == {"bank": 2, "shop": 1}
    assert record.document("bank") == (2, {"state": "shadow", "wealth": 1.5})
    assert record.documents() == {"bank": record.document("bank"), "shop": record.document("shop")}


def test_a_document_changed_in_place_is_changed(record: Record) -> None:
    """A step may work on the document that it is given."""

    def step(document: Document, _new: Sequence[Comparison], _earlier: Earlier) -> tuple[Document, list[Move]]:
        document.setdefault("list", []).append(1)
        return document, []

    assert record.change("bank", [], step)[0] == 1
    assert record.change("bank", [], step) == (2, {"list": [1, 1]}) == record.document("bank")


def test_documents_come_back_exactly(record: Record) -> None:
    """Floats to the last digit, infinities, and any text, what the databases cannot hold included."""
    rng = random.Random(0)
    floats = [rng.uniform(-1, 1) * 10.0 ** rng.randrange(-300, 300) for _ in range(1000)]
    floats += [0.1 + 0.2, -0.0, 5e-324, sys.float_info.max, math.inf, -math.inf]
    document = {"floats": floats, "text": 'a\x00\ud83d\n"ü🙂', "ü\x00": {"n": 2**70, "yes": True, "none": None}}
    assert record.change("bank", [], put(**document)) == (1, document)
    _, found = record.document("bank") or (0, {})
    assert found == document
    assert [value.hex() for value in found["floats"]] == [value.hex() for value in floats]
    record.change("bank", [], put(nan=math.nan))
    assert record.change("bank", [], keep)[0] == 2  # and nothing seems to change where NaN is not equal to itself


def test_comparisons_round_trip(record: Record) -> None:
    """Every field comes back as it was handed in, to the last digit."""
    record.change("bank", [comparison(1), FULL], keep)
    assert record.comparisons("bank") == [comparison(1), FULL]
    assert [type(found.wrong) for found in record.comparisons("bank")] == [bool, bool]


def test_the_same_comparison_counts_once(record: Record) -> None:
    """Handed in twice, in one batch or in two, it is new once; another version, kind or project is another one."""
    changed = replace(comparison(1), wrong=True)
    assert record.change("bank", [comparison(1), comparison(2), changed], count) == (1, {"n": 2})
    assert record.change("bank", [comparison(2), comparison(3), comparison(1)], count) == (2, {"n": 3})
    assert record.change("bank", [comparison(1)], count) == (2, {"n": 3})
    others = [comparison(1, "v2"), comparison(1, kind="shadow")]
    assert record.change("bank", others, count)[1] == {"n": 5}
    assert record.change("shop", [comparison(1, project="shop")], count)[1] == {"n": 1}
    assert record.comparisons("bank") == [comparison(1), comparison(2), comparison(3), *others]
    many = [comparison(number) for number in range(2000)]
    assert record.change("bank", many, count)[1] == {"n": 2002}
    assert record.change("bank", many, count)[1] == {"n": 2002}


def test_steps_see_what_is_new_and_what_was(record: Record) -> None:
    """The new comparisons in their order, and earlier ones by version and kind, newest last, the new ones included."""
    seen: list[Any] = []

    def step(document: Document, new: Sequence[Comparison], earlier: Earlier) -> tuple[Document, list[Move]]:
        seen.extend([list(new), earlier("v1", "audit", 3), earlier("v2", "audit", limit=9), earlier("v1", "shadow", 9)])
        return document, []

    record.change("bank", [comparison(5), comparison(3), comparison(4, "v2")], keep)
    record.change("bank", [comparison(3), comparison(9), comparison(1)], step)
    assert seen == [
        [comparison(9), comparison(1)],
        [comparison(3), comparison(9), comparison(1)],
        [comparison(4, "v2")],
        [],
    ]


def test_comparisons_are_narrowed(record: Record) -> None:
    """Project, version and kind narrow them, and the limit keeps the newest."""
    bank = [comparison(1), comparison(2, "v2"), comparison(3, kind="shadow"), comparison(4)]
    record.change("bank", bank, keep)
    record.change("shop", [comparison(5, project="shop")], keep)
    assert record.comparisons("bank", limit=2) == bank[2:]
    assert record.comparisons("bank", "v1") == [bank[0], bank[2], bank[3]]
    assert record.comparisons("bank", "v1", "audit", limit=1) == [bank[3]]
    assert record.comparisons("bank", kind="shadow") == [bank[2]]
    assert record.comparisons("none") == []


def test_moves(record: Record) -> None:
    """Moves are kept in the order in which they were made, with their evidence, and numbered."""
    second, third = replace(MOVE, old="shadow", new="live"), replace(MOVE, project="shop", version=None, evidence={})
    record.change("bank", [], move(MOVE, second))
    record.change("shop", [], move(third))
    numbers = [number for number, _ in record.moves()]
    assert [found for _, found in record.moves()] == [MOVE, second, third]
    assert numbers == sorted(set(numbers))
    assert record.moves("bank", limit=1) == [(numbers[1], second)]
    assert record.moves(limit=2) == [(numbers[1], second), (numbers[2], third)]
    assert record.revisions() == {"bank": 0, "shop": 0}


@pytest.mark.parametrize("error", [OSError("no"), ValueError("no"), StoreError("no"), KeyboardInterrupt("no")])
def test_a_step_that_raises_changes_nothing(record: Record, error: BaseException) -> None:
    """Its error comes through as it is; document, comparisons and moves are as before, and the project goes on."""

    def step(_document: Document, new: Sequence[Comparison], _earlier: Earlier) -> tuple[Document, list[Move]]:
        assert new == [comparison(1)]
        raise error

    for _ in range(2):
        with pytest.raises(type(error), match=r"^no$"):
            record.change("bank", [comparison(1)], step)
    assert (record.documents(), record.comparisons("bank"), record.moves()) == ({}, [], [])
    assert record.change("bank", [comparison(1)], count) == (1, {"n": 1})


def test_results_that_cannot_be_kept_change_nothing(record: Record) -> None:
    """A document that is no JSON, and a move of another project, are the step's mistakes."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        record.change("bank", [comparison(1)], put(value=object()))
    with pytest.raises(ValueError, match="a move of project 'shop' in a change of 'bank'"):
        record.change("bank", [comparison(1)], move(MOVE, replace(MOVE, project="shop")))
    with pytest.raises(StoreError, match="no JSON object"):
        record.change("bank", [comparison(1)], lambda *_: (["a list"], []))  # type: ignore[arg-type]
    assert (record.documents(), record.comparisons("bank"), record.moves()) == ({}, [], [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "x" * 256),
        ("project", ""),
        ("version", ""),
        ("version", "x" * 101),
        ("kind", "guess"),
        ("ts", math.nan),
        ("base", 0.0),
        ("base", 0.4),
        ("base", math.nan),
    ],
)
def test_rules(field: str, value: object) -> None:
    """Keys are bounded, times finite, kinds known, and 0 < base <= probability <= 1: `flaw` names what breaks this."""
    assert flaw(FULL) is None
    assert str(flaw(replace(FULL, **{field: value}))).startswith(field)  # type: ignore[arg-type]
    assert str(flaw(replace(FULL, probability=1.1))).startswith("base must be above 0 and at most probability")


def test_one_bad_comparison_stops_the_batch(record: Record) -> None:
    """It is named, and nothing is changed; neither is a project whose name is too long."""
    with pytest.raises(ValueError, match="comparison 'id-00002': ts must be finite"):
        record.change("bank", [comparison(1), replace(comparison(2), ts=math.inf)], count)
    with pytest.raises(ValueError, match="it is of project 'shop', not of 'bank'"):
        record.change("bank", [comparison(1), comparison(2, project="shop")], count)
    for name in ("", "x" * 256):
        with pytest.raises(ValueError, match="a project's name must have 1 to 255 characters"):
            record.change(name, [], count)
    assert record.documents() == {}


def test_longest_keys(record: Record) -> None:
    """The longest allowed keys fit the indexes even where every character takes four bytes and none repeats."""
    rng = random.Random(0)
    name, number, version = ("".join(chr(rng.randrange(0x10000, 0x30000)) for _ in range(n)) for n in (255, 255, 100))
    long = replace(FULL, id=number, project=name, version=version)
    assert record.change(name, [long], count) == (1, {"n": 1})
    assert record.change(name, [long], count) == (1, {"n": 1})
    assert record.comparisons(name, version) == [long]


def test_unstorable_characters(record: Record) -> None:
    """NUL and lone surrogates become U+FFFD, before comparisons are told apart; evidence keeps them."""
    project = "b\x00"
    odd = replace(FULL, id="a\x00", project=project, version="\ud83d", label="\x00", teacher="\udc00", detail="\x00")
    mended = replace(FULL, id="a\ufffd", project="b\ufffd", version="\ufffd", label="\ufffd", teacher="\ufffd")
    mended = replace(mended, detail="\ufffd")
    odd_move = replace(MOVE, project=project, cause="\x00", evidence={"\x00": "\ud83d"})

    def step(document: Document, new: Sequence[Comparison], earlier: Earlier) -> tuple[Document, list[Move]]:
        assert list(new) == [mended] == earlier("\ud83d", "shadow", 9)
        return document, [odd_move]

    record.change(project, [odd, mended], step)
    assert record.comparisons(project) == [mended] == record.comparisons("b\ufffd", "\ud83d")
    assert record.moves(project)[0][1] == replace(odd_move, project="b\ufffd", cause="\ufffd")
    assert record.document(project) == record.document("b\ufffd") == (0, {})


def test_pruning(record: Record) -> None:
    """The newest comparisons of a project stay, another project's all; what comes later is still newest."""
    record.change("bank", [comparison(number) for number in range(10)], count)
    record.change("shop", [comparison(1, project="shop")], count)
    record.prune("bank", 20)
    assert len(record.comparisons("bank")) == 10
    record.prune("bank", 3)
    assert record.comparisons("bank") == [comparison(7), comparison(8), comparison(9)]
    record.prune("bank", 0)
    record.prune("none", 5)
    assert record.comparisons("bank") == []
    record.change("bank", [comparison(11), comparison(3)], count)
    assert record.comparisons("bank") == [comparison(11), comparison(3)]
    assert record.comparisons("shop") == [comparison(1, project="shop")]
    assert record.document("bank") == (2, {"n": 12})
    assert record.document("none") is None


def test_threads_share_one_record(record: Record) -> None:
    """Threads that change and read the same projects at once count everything once."""
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 20):
                record.change("bank", [comparison(number), comparison(number + 1)], count)
                record.change("shop", [comparison(number, project="shop")], count)
                assert record.revisions().keys() <= {"bank", "shop"}
                assert len(record.secret("key")) == 32
        except BaseException as error:  # noqa: BLE001 - to be shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert record.document("bank") == (record.revisions()["bank"], {"n": 51})
    assert {found.id for found in record.comparisons("bank")} == {comparison(number).id for number in range(51)}
    assert record.document("shop") == (50, {"n": 50})


WORKER = """
import sys, time
from policies.record import Record
from policies.types import Comparison, Move

url, name, changes = sys.argv[1], sys.argv[2], int(sys.argv[3])
record = Record.open(url)
print(record.secret("audit").hex(), flush=True)

def step(document, new, earlier):
    if document.get("hang") == name:
        print("hanging", flush=True)
        time.sleep(3600)
    order = document.setdefault("order", [])
    order.extend(comparison.id for comparison in new)
    assert [found.id for found in earlier("v1", "audit", len(new) + 1)] == order[-len(new) - 1 :]
    return document, [Move("bank", "v1", None, "x", "", name, 0.0, {"n": len(order)})] if new else []

for number in range(changes):
    ids = [f"shared-{number}", f"{name}-{number}", f"shared-{number + 1}"]
    record.change("bank", [Comparison(i, "bank", "v1", "audit", 0.0, "x", "x", False, 1.0, 1.0) for i in ids], step)
    print(*ids, flush=True)
"""


def worker(url: str, name: str, changes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, url, name, str(changes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def hanging(url: str, record: Record) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a change of `bank`, which has revision 1 and no comparisons; killed afterwards."""
    assert record.change("bank", [], put(hang="worker")) == (1, {"hang": "worker"})
    process = worker(url, "worker", 1)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert process.stdout.readline() == "hanging\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def one_sequence(record: Record) -> list[str]:
    """The ids that were counted, in order, after a look at whether document, comparisons and moves tell one story."""
    revision, document = record.document("bank") or (0, {})
    order: list[str] = document.get("order", [])
    counted = [found.id for found in record.comparisons("bank", limit=10**6)]
    assert counted == order
    assert len(set(order)) == len(order)
    lengths = [found.evidence["n"] for _, found in record.moves("bank", limit=10**6)]
    assert lengths == sorted(set(lengths))
    assert len(lengths) == revision
    assert lengths[-1] == len(order)
    return order


def test_processes_make_one_sequence(url: str) -> None:
    """Processes that open a new store and change one project at once count each comparison once, in turn."""
    workers = [worker(url, f"worker{number}", 40) for number in range(4)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in workers]
    assert [process.returncode for process in workers] == [0] * 4
    assert len({output[0] for output in outputs}) == 1, "they have different secrets"
    record = Record.open(url)
    assert set(one_sequence(record)) == {name for output in outputs for line in output[1:] for name in line.split()}
    assert len(one_sequence(record)) == 4 * 40 + 41
    assert record.secret("audit").hex() == outputs[0][0]
    assert record.secret("other") != record.secret("audit")
    record.close()


def test_kill_in_the_middle_of_a_change(url: str, record: Record) -> None:
    """A process that is killed between reading and writing leaves nothing, and holds nobody up."""
    with hanging(url, record) as process:
        assert (record.revisions(), record.comparisons("bank"), record.moves()) == ({"bank": 1}, [], [])
        process.send_signal(signal.SIGKILL)
    started = time.monotonic()
    assert record.change("bank", [comparison(1)], count) == (2, {"hang": "worker", "n": 1})
    assert time.monotonic() - started < 3
    assert (record.comparisons("bank"), record.moves()) == ([comparison(1)], [])


def test_kill_at_any_moment(url: str) -> None:
    """After kill -9 whenever it may be, what was acknowledged is there, whole, and another process goes on."""
    acknowledged: set[str] = set()
    for attempt in range(3):
        # The other one goes on: both hand in the same ids of `shared`.
        process, other = worker(url, f"killed{attempt}", 1_000_000), worker(url, f"other{attempt}", 60)
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(20 + 7 * attempt):
            acknowledged.update(process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        acknowledged.update(" ".join(line for line in process.stdout if line.endswith("\n")).split())
        process.wait()
        process.stdout.close()
        acknowledged.update(" ".join(other.communicate(timeout=60)[0].splitlines()[1:]).split())
        assert other.returncode == 0
    record = Record.open(url)
    assert len(acknowledged) > 200
    assert acknowledged <= set(one_sequence(record))
    record.close()


def test_reading_while_another_writes(url: str, record: Record) -> None:
    """A process in the middle of a change keeps nobody from opening the store and reading what stood before."""
    record.change("shop", [comparison(1, project="shop")], keep)
    with hanging(url, record):
        started = time.monotonic()
        reader = Record.open(url, create=False)
        assert reader.documents() == {"bank": (1, {"hang": "worker"}), "shop": (0, {})}
        assert reader.revisions() == {"bank": 1, "shop": 0}
        assert reader.comparisons("shop") == [comparison(1, project="shop")]
        assert time.monotonic() - started < 3
        reader.close()


def test_asking_for_revisions_writes_nothing(tmp_path: Path) -> None:
    """Processes ask four times a second: neither the database nor its log is touched."""
    path = tmp_path / "traces.db"
    record = Record.open(f"sqlite:///{path}")
    record.change("bank", [], put(state="live"))
    files = [path, tmp_path / "traces.db-wal"]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert [record.revisions() for _ in range(100)] == [{"bank": 1}] * 100
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    record.close()


def test_a_change_waits_its_turn(tmp_path: Path) -> None:
    """It gives up with an error where the turn does not come, and is none the worse for it."""
    path = tmp_path / "traces.db"
    record = Record.open(f"sqlite:///{path}?timeout=0.05")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked"):
        record.change("bank", [comparison(1)], count)
    other.execute("ROLLBACK")
    other.close()
    assert record.change("bank", [comparison(1)], count) == (1, {"n": 1})
    record.close()


def test_a_process_that_stops_in_a_change_loses_it(postgres: Postgres) -> None:
    """PostgreSQL gives its project to the others before they give up, though its connection stands."""
    url = postgres.new_database()
    record = Record.open(url)
    with hanging(url, record) as process:
        process.send_signal(signal.SIGSTOP)
        assert record.change("bank", [comparison(1)], count) == (2, {"hang": "worker", "n": 1})
    record.close()


def test_postgresql_that_restarts_in_a_change(postgres: Postgres) -> None:
    """A server lost in the middle of a change is an error; handed in again, everything counts once."""
    record = Record.open(postgres.new_database())
    record.change("bank", [comparison(1)], count)

    def step(document: Document, new: Sequence[Comparison], earlier: Earlier) -> tuple[Document, list[Move]]:
        postgres.stop()
        return count(document, new, earlier)

    try:
        with pytest.raises(StoreError, match=r"postgresql://tracer@127\.0\.0\.1"):
            record.change("bank", [comparison(1), comparison(2)], step)
        with pytest.raises(StoreError, match=r"postgresql://tracer@127\.0\.0\.1"):
            record.revisions()
    finally:
        postgres.start()
    assert record.revisions() == {"bank": 1}
    assert record.change("bank", [comparison(1), comparison(2)], count) == (2, {"n": 2})
    record.close()


READ_ONLY = """
import os, sys
from policies.record import Record
import sqlalchemy.dialects.sqlite
if os.geteuid() == 0:  # root may write everywhere: become someone who may not
    os.setuid(int(sys.argv[2]))
record = Record.open(sys.argv[1], create=False)
print(record.revisions(), record.document("bank"), len(record.comparisons("bank")), record.secret("key").hex())
try:
    record.change("bank", [], lambda document, new, earlier: ({}, []))
finally:
    print(record.document("bank"))
"""


def read_only(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", READ_ONLY, url, str(pwd.getpwnam("nobody").pw_uid)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_read_only_store() -> None:
    """Beside a process that has it open a read-only file is read; a change is a clear error, and nothing has changed.

    With nobody there SQLite could not even read it in a folder without permission to write, and says so.
    """
    with tempfile.TemporaryDirectory(prefix="tracer-record-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder}/traces.db"
        record = Record.open(url)
        record.change("bank", [comparison(1)], put(state="live"))
        key = record.secret("key").hex()
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        done = read_only(url)
        assert done.stdout.splitlines() == [f"{{'bank': 1}} (1, {{'state': 'live'}}) 1 {key}", "(1, {'state': 'live'})"]
        assert f"StoreError: {url}: attempt to write a readonly database" in done.stderr
        record.close()
        done = read_only(url)
        assert done.stdout == ""
        assert f"StoreError: {url}: attempt to write a readonly database: SQLite has to make files" in done.stderr
        assert sorted(folder.iterdir()) == [folder / "traces.db"]
        # A copy that needs no log beside it is read all the same.
        folder.chmod(0o755)
        (folder / "traces.db").chmod(0o644)
        connection = sqlite3.connect(folder / "traces.db")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()
        (folder / "traces.db").chmod(0o444)
        folder.chmod(0o555)
        done = read_only(url)
        assert done.stdout.splitlines()[-1] == "(1, {'state': 'live'})"
        assert f"StoreError: {url}: attempt to write a readonly database" in done.stderr
        folder.chmod(0o755)


def test_read_only_postgresql(postgres: Postgres) -> None:
    """A database that allows no writing is opened and read; a change is a clear error, and nothing has changed."""
    url = postgres.new_database()
    record = Record.open(url)
    record.change("bank", [comparison(1)], put(state="live"))
    record.close()
    sql(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    record = Record.open(url, create=False)
    with pytest.raises(StoreError, match="in a read-only transaction"):
        record.change("bank", [comparison(2)], put(state="demoted"))
    assert record.documents() == {"bank": (1, {"state": "live"})}
    assert record.comparisons("bank") == [comparison(1)]
    record.close()


def test_missing_store(tmp_path: Path) -> None:
    """Without `create` a store that is not there is an error, and is not made."""
    with pytest.raises(StoreError, match=r"traces\.db: there is no such store"):
        Record.open(f"sqlite:///{tmp_path}/traces.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_newer_schema(url: str) -> None:
    """A store made by a newer program is refused, not touched."""
    Record.open(url).close()
    sql(url, "UPDATE tracer_schema_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"made by a newer program \(schema 9999; this one knows 0003 at most\)"):
        Record.open(url)


def test_damaged_sqlite(tmp_path: Path) -> None:
    """A file that is no database, and one whose pages are overwritten, are errors that name the file."""
    path = tmp_path / "traces.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(StoreError, match=r"traces\.db: file is not a database"):
        Record.open(f"sqlite:///{path}", create=False)
    path.unlink()
    record = Record.open(f"sqlite:///{path}")
    record.change("bank", [comparison(number) for number in range(1000)], count)
    record.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StoreError, match=r"traces\.db: database disk image is malformed"):
        Record.open(f"sqlite:///{path}", create=False)


@pytest.mark.parametrize("damage", ['{"state": ', "[]"])
def test_damaged_document(url: str, record: Record, damage: str) -> None:
    """A document that somebody spoilt is an error that names the project; nothing is built upon it."""
    record.change("bank", [], put(state="live"))
    record.change("shop", [], put(state="live"))
    sql(url, f"UPDATE projects SET document = '{damage}' WHERE project = 'bank'")
    with pytest.raises(StoreError, match="what is kept of project 'bank' is damaged"):
        record.document("bank")
    with pytest.raises(StoreError, match="what is kept of project 'bank' is damaged"):
        record.change("bank", [comparison(1)], put(state="demoted"))
    assert record.comparisons("bank") == []
    assert record.document("shop") == (1, {"state": "live"})


def test_older_store_is_upgraded(url: str) -> None:
    """A store from before there were projects keeps its traces and gets what it lacks."""
    store = Store.open(url)
    store.append([StoredTrace("1", "bank", "a", "x", 1.0)])
    store.close()
    tables = [f"DROP TABLE {table}" for table in ("projects", "moves", "audits", "secrets")]
    sql(url, *tables, "UPDATE tracer_schema_version SET version_num = '0002'")
    record = Record.open(url, create=False)
    assert record.change("bank", [comparison(1), comparison(1)], count) == (1, {"n": 1})
    record.prune("bank", 0)
    assert record.change("bank", [comparison(2)], move(MOVE)) == (1, {"n": 1})
    record.close()
    store = Store.open(url)
    assert [trace.id for trace in store.traces()] == ["1"]
    store.close()


def test_errors_show_neither_password_nor_what_users_wrote(url: str, record: Record) -> None:
    """Neither the representation nor any error does, its whole traceback included."""
    sql(url, "ALTER TABLE audits RENAME COLUMN teacher TO renamed")
    with pytest.raises(StoreError) as error:
        record.change("bank", [replace(FULL, label="quite private".upper())], count)
    shown = repr(record) + "".join(traceback.format_exception(error.value))
    assert "QUITE" not in shown
    assert PASSWORD not in shown
    assert os.fspath(url.rpartition("/")[2]) in repr(record)
