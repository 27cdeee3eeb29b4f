"""The trace store, on SQLite and on PostgreSQL: every promise is tested on both."""

import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from policies.errors import StoreError
from policies.schema import METADATA, NEWEST, VERSION_TABLE
from policies.store import Store, flaw
from policies.types import AnswerKind, StoredTrace
from tests.postgres import PASSWORD, Postgres

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


def trace(number: int, project: str = "bank") -> StoredTrace:
    return StoredTrace(id=f"id-{number:05}", project=project, input=f"message {number}", teacher="x", ts=float(number))


FULL = StoredTrace(
    id="id",
    project="bank",
    input="Où est ma carte ? 🙂\n",
    teacher="card_arrival",
    ts=1767323045.123456,
    upstream="openai",
    teacher_model="gpt",
    prompt_fingerprint="abc",
    policy_version="v1",
    reason="uncertain",
    sampling_probability=0.05,
    training_allowed=True,
    kind=AnswerKind.TOOL,
    arguments='{"card":  "ü"}',
)


def test_round_trip(store: Store) -> None:
    """Every field comes back as it was stored, to the last digit of its time."""
    assert store.append([FULL, trace(1)]) == 2
    assert list(store.traces()) == [trace(1), FULL]


def test_same_id_is_stored_once(store: Store) -> None:
    """A trace whose id is known is left as it was, within one call and between calls, and is not counted as new."""
    assert store.append([trace(1), trace(2), replace(trace(1), teacher="changed")]) == 2
    assert store.append([trace(2), trace(3)]) == 1
    assert store.append([]) == 0
    assert [stored.teacher for stored in store.traces()] == ["x", "x", "x"]
    assert store.count() == 3


def test_order_and_filters(store: Store) -> None:
    """Traces come by time, then id; project, start and permission to learn narrow them; count counts all."""
    store.append([trace(3), trace(1), replace(trace(2), ts=1.0), trace(4, "shop")])
    store.append([replace(trace(5), training_allowed=False)])
    assert [stored.id for stored in store.traces("bank")] == ["id-00001", "id-00002", "id-00003"]
    assert [stored.id for stored in store.traces(since=3.0)] == ["id-00003", "id-00004"]
    assert [stored.id for stored in store.traces("bank", training_only=False)][-1] == "id-00005"
    assert (store.count(), store.count("bank"), store.count("shop"), store.count("none")) == (5, 4, 1, 0)


def test_all_or_nothing(store: Store) -> None:
    """One trace that breaks the rules stops its whole batch with an error that names it."""
    with pytest.raises(ValueError, match="trace 'id-00002': ts must be finite"):
        store.append([trace(1), replace(trace(2), ts=float("nan"))])
    assert store.count() == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "x" * 256),
        ("project", ""),
        ("project", "x" * 256),
        ("ts", float("inf")),
        ("sampling_probability", 0.0),
        ("sampling_probability", 1.1),
        ("sampling_probability", float("nan")),
    ],
)
def test_rules(field: str, value: object) -> None:
    """Keys have 1 to 255 characters, times are finite and probabilities in (0, 1]: `flaw` names what breaks this."""
    assert flaw(FULL) is None
    assert str(flaw(replace(FULL, **{field: value}))).startswith(field)  # type: ignore[arg-type]


def test_longest_keys(store: Store) -> None:
    """The longest allowed keys fit the indexes even where every character takes four bytes."""
    long = replace(FULL, id="🙂" * 255, project="😀" * 255)
    assert store.append([long]) == 1
    assert list(store.traces("😀" * 255)) == [long]


def test_unstorable_characters(store: Store) -> None:
    """NUL and lone surrogates become U+FFFD in every text, the same in both databases."""
    store.append([replace(FULL, id="a\x00", input="b\x00c\ud83dd", teacher="\udc00", policy_version="\x00")])
    replaced = replace(FULL, id="a\ufffd", input="b\ufffdc\ufffdd", teacher="\ufffd", policy_version="\ufffd")
    assert list(store.traces()) == [replaced]


def test_large_inputs_stream(store: Store) -> None:
    """Inputs of a megabyte are stored whole, and reading may stop early without harm to the next write."""
    large = [replace(trace(number), input=f"{number} " + "é" * 500_000) for number in range(5)]
    store.append(large)
    reading = store.traces()
    assert next(reading) == large[0]
    store.append([trace(9)])
    del reading
    assert store.count() == 6


def test_reading_sees_one_moment(store: Store) -> None:
    """Traces stored while others are being read do not show up half-way."""
    store.append([trace(number) for number in range(250)])
    reading = store.traces()
    next(reading)
    store.append([trace(number) for number in range(250, 300)])
    assert len(list(reading)) == 249


def test_reopening(url: str) -> None:
    """A store that is opened again has its traces, and nothing is migrated twice."""
    for number in range(3):
        store = Store.open(url)
        store.append([trace(number)])
        store.close()
        store.close()
        assert store.count() == number + 1
        store.close()


def _migrate(connection: sa.Connection, step: str) -> None:
    """Bring an empty database to a step, as a gateway of that time did."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "policies" / "migrations"))
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    command.upgrade(config, step)


@pytest.mark.parametrize("made_by", ["a new store", "the migrations"])
def test_migrations_give_the_declared_schema(url: str, made_by: str) -> None:
    """The migrations, the tables as declared in the code, and what a new store has agree."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir()
    if made_by == "the migrations":
        with engine.begin() as connection:
            _migrate(connection, "head")
    store = Store.open(url)
    store.append([FULL])
    store.close()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_heads() == (NEWEST,)
        found = sa.inspect(connection)
        assert found.get_pk_constraint(VERSION_TABLE)["constrained_columns"] == ["version_num"]
        assert found.get_columns("traces")[12]["default"] is not None
    engine.dispose()


def test_the_newest_step_is_the_last_migration() -> None:
    """A step that is added is noticed by the store."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "policies" / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [NEWEST]


def test_older_store_is_upgraded(url: str) -> None:
    """One from before there were kinds: its traces are texts, and an older program may go on writing to it."""
    old = {"id": "1", "project": "bank", "input": "a", "teacher": "x", "ts": 1.0, "upstream": "", "teacher_model": ""}
    old |= {"prompt_fingerprint": "", "reason": "", "sampling_probability": 1.0, "training_allowed": True}
    insert = sa.text(f"INSERT INTO traces ({', '.join(old)}) VALUES ({', '.join(f':{key}' for key in old)})")
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        _migrate(connection, "0001")
        connection.execute(insert, old)
    store = Store.open(url)
    with engine.begin() as connection:
        connection.execute(insert, old | {"id": "2"})
    engine.dispose()
    store.append([replace(FULL, ts=3.0)])
    first, second, third = store.traces()
    store.close()
    assert first == StoredTrace(id="1", project="bank", input="a", teacher="x", ts=1.0) == replace(second, id="1")
    assert third == replace(FULL, ts=3.0)
    assert [type(found.kind) for found in (first, third)] == [AnswerKind, AnswerKind]


def test_a_kind_of_a_later_version_is_no_label(url: str, store: Store) -> None:
    """What this version does not understand it does not learn from."""
    store.append([FULL])
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE traces SET kind = 'hologram'"))
    engine.dispose()
    assert [found.kind for found in store.traces()] == [AnswerKind.OTHER]


def test_newer_schema(url: str) -> None:
    """A store written by a newer program is refused, not touched."""
    Store.open(url).close()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE tracer_schema_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="9999"):
        Store.open(url)


APPENDER = """
import sys
from policies.store import Store
from policies.types import StoredTrace
url, name, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store.open(url)
for batch in range(batches):
    ids = [f"{name}-{batch}-{n}" for n in range(10)]
    store.append([StoredTrace(id=i, project="bank", input="text " * 50, teacher="x", ts=float(batch)) for i in ids])
    print(*ids, flush=True)
"""


def appender(url: str, name: str, batches: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDER, url, name, str(batches)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_at_once(url: str) -> None:
    """Processes that open a new store at the same moment, and append at once, all succeed."""
    workers = [appender(url, f"worker{number}", 20) for number in range(4)]
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    store = Store.open(url)
    assert {stored.id for stored in store.traces()} == set(" ".join(outputs).split())
    assert store.count() == 800
    store.close()


def test_kill_during_appends(url: str) -> None:
    """After kill -9 in the middle of appending, the store opens and holds whole batches, every acknowledged one."""
    acknowledged: set[str] = set()
    for attempt in range(3):
        worker = appender(url, f"worker{attempt}", 1_000_000)
        assert worker.stdout is not None
        for _ in range(20 + attempt):
            acknowledged.update(worker.stdout.readline().split())
        worker.send_signal(signal.SIGKILL)
        acknowledged.update(" ".join(line for line in worker.stdout if line.endswith("\n")).split())
        worker.wait()
        worker.stdout.close()
    store = Store.open(url)
    kept = {stored.id for stored in store.traces()}
    assert len(acknowledged) >= 600
    assert acknowledged <= kept
    assert store.count() % 10 == 0
    store.close()
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


def test_sqlite_is_durable(tmp_path: Path) -> None:
    """SQLite is used with a write-ahead log and waits for the disk on every commit."""
    store = Store.open(f"sqlite:///{tmp_path}/traces.db")
    with store._database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
    store.close()


def test_locked_sqlite(tmp_path: Path) -> None:
    """A writer waits its turn, and gives up with an error when it does not come."""
    path = tmp_path / "traces.db"
    store = Store.open(f"sqlite:///{path}?timeout=0.05")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked"):
        store.append([trace(1)])
    other.execute("ROLLBACK")
    assert store.append([trace(1)]) == 1
    other.close()
    store.close()


def test_deleted_sqlite(tmp_path: Path) -> None:
    """A store whose file was deleted says so instead of writing where nobody will look; opened again it is new."""
    path = tmp_path / "folder" / "traces.db"
    url = f"sqlite:///{path}"
    store = Store.open(url)
    store.append([trace(1)])
    shutil.rmtree(path.parent)
    with pytest.raises(StoreError, match="unable to open database file"):
        store.append([trace(2)])
    path.parent.mkdir()
    with pytest.raises(StoreError, match="no such table: traces"):
        store.append([trace(2)])
    store.close()
    store = Store.open(url)
    assert store.append([trace(2)]) == 1
    store.close()


def test_full_disk(tmp_path: Path) -> None:
    """A disk that is full is an error; what was stored before stays, and space gained is used."""
    path = tmp_path / "traces.db"
    store = Store.open(f"sqlite:///{path}")
    store.append([trace(1)])
    with store._database.engine.connect() as connection:  # the pool hands this one connection out again
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    large = replace(trace(2), input="x" * 1_000_000)
    with pytest.raises(StoreError, match="database or disk is full"):
        store.append([large])
    with store._database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.append([large]) == 1
    assert store.count() == 2
    store.close()


def test_damaged_sqlite(tmp_path: Path) -> None:
    """A file that is no database, and a database whose pages are overwritten, are errors that name the file."""
    path = tmp_path / "traces.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(StoreError, match=r"traces\.db: file is not a database"):
        Store.open(f"sqlite:///{path}")
    path.unlink()
    store = Store.open(f"sqlite:///{path}")
    store.append([trace(number) for number in range(1000)])
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    store = Store.open(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=r"traces\.db: database disk image is malformed"):
        list(store.traces())
    store.close()


def test_impossible_sqlite_path(tmp_path: Path) -> None:
    """A folder that cannot be made, or a folder in place of the file, is an error that names the path."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/traces\.db: (File exists|Not a directory)"):
        Store.open(f"sqlite:///{tmp_path}/file/traces.db")
    with pytest.raises(StoreError, match=f"{tmp_path}: unable to open database file"):
        Store.open(f"sqlite:///{tmp_path}")


def test_read_only_folder() -> None:
    """A folder without permission to write is an error that names the path."""
    folder = Path(tempfile.mkdtemp(prefix="tracer-store-"))
    try:
        folder.chmod(0o555)
        program = "import sys; from policies.store import Store; Store.open(sys.argv[1])"
        if os.geteuid() == 0:  # root may write everywhere: become someone who may not
            program = f"import os; import policies.store; os.setuid({pwd.getpwnam('nobody').pw_uid}); {program}"
        command = [sys.executable, "-c", program, f"sqlite:///{folder}/traces.db"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"StoreError: sqlite:///{folder}/traces.db: unable to open database file" in done.stderr
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://me:secret@host/db", "unknown kind of store 'mysql': use sqlite:///PATH or postgresql://"),
        ("traces.db", "not a store URL: use sqlite:///PATH"),
        ("", "not a store URL"),
        ("postgresql://me:secret@host:secret/db", "not a store URL"),
        ("sqlite://", "a SQLite store needs a path"),
        ("sqlite:///:memory:", "a SQLite store needs a path"),
        ("sqlite://relative/traces.db", "a SQLite store needs a path"),
    ],
)
def test_url_that_cannot_be_used(url: str, message: str) -> None:
    """A URL of another kind, or that cannot be read, is an error that says what would be valid."""
    with pytest.raises(StoreError) as error:
        Store.open(url)
    assert message in str(error.value)
    assert "secret" not in "".join(traceback.format_exception(error.value))


def test_password_is_never_shown(postgres: Postgres) -> None:
    """The password stands neither in the representation nor in any error, its whole traceback included."""
    url = postgres.new_database()
    store = Store.open(url)
    assert PASSWORD not in repr(store)
    store.close()
    for broken in (
        url.replace(PASSWORD, "another-secret"),
        url.replace(f":{PASSWORD}", "") + "?password=another-secret",
        url.replace(PASSWORD, "another-secret").replace(str(postgres.port), "1"),
        url.replace(PASSWORD, "another-secret") + "?unknown_option=1",
    ):
        with pytest.raises(StoreError) as error:
            Store.open(broken)
        assert "secret" not in "".join(traceback.format_exception(error.value))
        assert "postgresql://tracer@127.0.0.1:" in str(error.value)


def test_errors_do_not_quote_inputs(url: str, store: Store) -> None:
    """An error from the database does not repeat what users wrote, its whole traceback included."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE traces RENAME COLUMN teacher TO renamed"))
    engine.dispose()
    private = replace(FULL, input="quite private".upper())
    with pytest.raises(StoreError) as error:
        store.append([private])
    assert "QUITE" not in "".join(traceback.format_exception(error.value))


def test_postgresql_that_restarts(postgres: Postgres) -> None:
    """While the server is away an append is an error; when it is back the same store goes on."""
    store = Store.open(postgres.new_database())
    store.append([trace(1)])
    postgres.stop()
    try:
        with pytest.raises(StoreError, match=r"postgresql://tracer@127\.0\.0\.1"):
            store.append([trace(2)])
    finally:
        postgres.start()
    assert store.append([trace(1), trace(2)]) == 1
    assert store.count() == 2
    store.close()


def test_postgresql_url_spellings(postgres: Postgres) -> None:
    """The short scheme `postgres://` and SQLAlchemy's long one mean the same store."""
    url = postgres.new_database()
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        Store.open(url.replace("postgresql", scheme, 1)).close()


def test_postgresql_encoding(postgres: Postgres) -> None:
    """A database that cannot hold every language is refused when it is opened, not at the first emoji."""
    url = postgres.new_database("ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreError, match="encoding is LATIN1"):
        Store.open(url)
