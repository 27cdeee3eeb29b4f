"""The trace store: one schema in SQLite or PostgreSQL.

What `append` returned for is durable. Text is stored as given except that NUL and lone surrogates become U+FFFD, in
both databases alike, because PostgreSQL cannot hold them. An id that is already there is left as it is.
"""

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from policies.errors import StoreError
from policies.traces import storable
from policies.types import AnswerKind, StoredTrace

METADATA = sa.MetaData()
_TRACES = sa.Table(
    "traces",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("ts", sa.Double, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("teacher", sa.Text, nullable=False),
    sa.Column("upstream", sa.Text, nullable=False),
    sa.Column("teacher_model", sa.Text, nullable=False),
    sa.Column("prompt_fingerprint", sa.Text, nullable=False),
    sa.Column("policy_version", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("sampling_probability", sa.Double, nullable=False),
    sa.Column("training_allowed", sa.Boolean, nullable=False),
    # The default is for rows, and for programs, from before there were kinds.
    sa.Column("kind", sa.Text, nullable=False, server_default=AnswerKind.TEXT.value),
    sa.Column("arguments", sa.Text),
    sa.Index("traces_by_project_and_time", "project", "ts", "id"),
)
_FIELDS = tuple(field.name for field in fields(StoredTrace))
_KINDS = {kind.value: kind for kind in AnswerKind}
VERSION_TABLE = "tracer_schema_version"
NEWEST = "0002"
"""The newest step in `migrations`: what METADATA describes."""
_VERSION = sa.Table(
    VERSION_TABLE,
    sa.MetaData(),
    # As Alembic itself would make it: a later step is its work.
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)

MAX_KEY_CHARS = 255
"""Of an id and of a project's name: both stand in an index, whose entries PostgreSQL keeps below 2,704 bytes."""

_LOCK_KEY = 0x7472616365  # "trace": the advisory lock under which PostgreSQL is migrated
_LOCK_SECONDS = 10.0  # how long a write waits for another process's
_CONNECT_SECONDS = 5
_ROWS_AT_ONCE = 100  # rows may hold a megabyte each


class Store:
    """The record of decisions. Safe to share between threads; several processes may hold the same store open."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        # By its name: the other one's modules are megabytes.
        dialect = import_module(f"sqlalchemy.dialects.{engine.dialect.name}")
        self._insert = dialect.insert(_TRACES).on_conflict_do_nothing()

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> "Store":
        """Open the store at `sqlite:///path/to.db` or `postgresql://user:password@host/database`, made ready for use.

        The folder, the file and the tables are created where they are missing; an older schema is brought up to date.
        Without `create`, a SQLite file must be there already.

        Raises:
            StoreError: unknown kind of URL, not there, unreachable, not writable, damaged, or of a newer program.
        """
        parsed = _parse(url)
        name = _name(parsed)
        if not create and parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
            raise StoreError(f"{name}: there is no such store")
        with _as_store_error(name):
            engine = _sqlite_engine(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql_engine(parsed)
        try:
            with _as_store_error(name):
                _migrate(engine)
        except StoreError:
            engine.dispose()
            raise
        return cls(engine, name)

    def __repr__(self) -> str:
        return f"Store({self._name!r})"

    def append(self, traces: Sequence[StoredTrace]) -> int:
        """Store traces in one transaction, durable when this returns; the number of them that were not there yet.

        Raises:
            ValueError: a trace breaks the rules of `flaw`; nothing is stored.
            StoreError: nothing is stored.
        """
        for trace in traces:
            if problem := flaw(trace):
                raise ValueError(f"trace {trace.id[:64]!r}: {problem}")
        if not traces:
            return 0
        # In the order of ids: two writers of the same ids then wait for each other instead of deadlocking.
        rows = [to_row(trace) for trace in sorted(traces, key=lambda trace: trace.id)]
        with _as_store_error(self._name), _writing(self._engine) as connection:
            return connection.execute(self._insert, rows, execution_options={"preserve_rowcount": True}).rowcount

    def traces(
        self, project: str | None = None, *, since: float | None = None, training_only: bool = True
    ) -> Iterator[StoredTrace]:
        """Stream traces in the order of their time, then id, as they stood when the first was read.

        `since` is in seconds since the epoch and included. `training_only` leaves out what must not be learned from.

        Raises:
            StoreError: while iterating.
        """
        query = sa.select(_TRACES).order_by(_TRACES.c.ts, _TRACES.c.id)
        if project is not None:
            query = query.where(_TRACES.c.project == storable(project))
        if since is not None:
            query = query.where(_TRACES.c.ts >= since)
        if training_only:
            query = query.where(_TRACES.c.training_allowed)
        at_once = {"yield_per": _ROWS_AT_ONCE}
        with (
            _as_store_error(self._name),
            self._engine.connect() as connection,
            connection.execute(query, execution_options=at_once) as rows,
        ):
            for row in rows:
                yield from_row(dict(row._mapping))

    def count(self, project: str | None = None) -> int:
        """How many traces are stored, those that must not be learned from included.

        Raises:
            StoreError: the store cannot be read.
        """
        query = sa.select(sa.func.count()).select_from(_TRACES)
        if project is not None:
            query = query.where(_TRACES.c.project == storable(project))
        with _as_store_error(self._name), self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def close(self) -> None:
        """Give the connections back. Closing twice is harmless."""
        self._engine.dispose()


def flaw(trace: StoredTrace) -> str | None:
    """What keeps a trace from being stored, or None.

    Its id and project have 1 to 255 characters, its time is finite and its sampling probability is in (0, 1].
    """
    for key, value in (("id", trace.id), ("project", trace.project)):
        if not 1 <= len(value) <= MAX_KEY_CHARS:
            return f"{key} must have 1 to {MAX_KEY_CHARS} characters"
    if not math.isfinite(trace.ts):
        return "ts must be finite"
    if not 0 < trace.sampling_probability <= 1:
        return "sampling_probability must be above 0 and at most 1"
    return None


def to_row(trace: StoredTrace) -> dict[str, Any]:
    """The trace's fields by name, with every text as the store keeps it."""
    row: dict[str, Any] = {
        name: storable(value) if type(value := getattr(trace, name)) is str else value for name in _FIELDS
    }
    row["kind"] = trace.kind.value
    return row


def from_row(row: dict[str, Any]) -> StoredTrace:
    """The trace of which `to_row` made `row`, or an older version did, which knew no kinds. Raises TypeError.

    A kind that only a later version knows is an answer that this one does not understand: `other`.
    """
    kind = row.get("kind", AnswerKind.TEXT)
    if isinstance(kind, str):
        row = row | {"kind": _KINDS.get(kind, AnswerKind.OTHER)}
    return StoredTrace(**row)


def _parse(url: str) -> sa.URL:
    # Nothing of a URL that cannot be read is repeated: any part of it may be the password.
    expected = "use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreError(f"not a store URL: {expected}") from None
    kind = parsed.drivername
    if kind in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise StoreError(f"unknown kind of store {kind!r}: {expected}")
    if parsed.host or not parsed.database or parsed.database == ":memory:":
        raise StoreError("a SQLite store needs a path: sqlite:///relative.db or sqlite:////absolute.db")
    return parsed


def _name(url: sa.URL) -> str:
    """The URL without its password and its query, which may hold one too."""
    plain = sa.URL.create(url.get_backend_name(), url.username, None, url.host, url.port, url.database)
    return plain.render_as_string()


@contextlib.contextmanager
def _as_store_error(name: str) -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        # Only the driver's first line: what follows may quote the row.
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        text = str(cause).strip() or type(cause).__name__
        raise StoreError(f"{name}: {text.splitlines()[0]}") from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"{name}: {error}") from error
    except OSError as error:
        raise StoreError(f"{name}: {error.strerror or error}") from error


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    path = Path(url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = {} if "timeout" in url.query else {"timeout": _LOCK_SECONDS}
    engine = sa.create_engine(url, connect_args=arguments, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, record: sa.pool.ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own, too late and too weak
        connection.execute("PRAGMA synchronous = FULL")
        record.info["file"] = _identity(path)

    @sa.event.listens_for(engine, "checkout")
    def _check(_connection: object, record: sa.pool.ConnectionPoolEntry, _proxy: object) -> None:
        # SQLite goes on writing into a file that was deleted or replaced, and nobody would find those traces again.
        if record.info["file"] != _identity(path):
            raise sa.exc.DisconnectionError

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    # A server that vanished without a word is given up on after half a minute, not the kernel's quarter of an hour.
    arguments = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": 30_000}
    arguments = {key: value for key, value in arguments.items() if key not in url.query}
    return sa.create_engine(url, connect_args=arguments, hide_parameters=True, pool_pre_ping=True)


@contextlib.contextmanager
def _writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        yield connection


def _migrate(engine: sa.Engine) -> None:
    """Bring the schema to the newest step; several processes may do this at once."""
    if engine.dialect.name == "sqlite":
        _use_wal(engine)
    with engine.connect() as connection:
        _require_utf8(connection)
        if _step(connection) == NEWEST:
            return
    with _writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
        # Another process may have been quicker.
        step = _step(connection)
        if step is None:
            _VERSION.create(connection, checkfirst=True)
            METADATA.create_all(connection, checkfirst=False)
            connection.execute(sa.insert(_VERSION).values(version_num=NEWEST))
        elif step != NEWEST:
            # Once in the life of a store: every gateway would carry Alembic's 11 MB all its life.
            import_module("policies.migrating").upgrade(connection, VERSION_TABLE)


def _step(connection: sa.Connection) -> str | None:
    """The step the schema is at; None where there is none yet."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.select(_VERSION.c.version_num)).scalar_one_or_none()


def _use_wal(engine: sa.Engine) -> None:
    """Readers and the writer then do not wait for each other. The file remembers it."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # Another process switching the same new file makes this fail at once: SQLite does not wait here.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        finally:
            connection.close()


def _require_utf8(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise StoreError(f"the database's encoding is {encoding}; text of every language needs UTF8")
