"""The database under the store, SQLite or PostgreSQL: its URL, its transactions, its schema, its errors."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from policies.errors import StoreError
from policies.schema import METADATA, NEWEST, VERSION_TABLE

LOCK_SECONDS = 10.0
"""How long a write waits for another process's."""

_VERSION = sa.Table(
    VERSION_TABLE,
    sa.MetaData(),
    # As Alembic itself would make it: a later step is its work.
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)
_LOCK_KEY = 0x7472616365  # "trace": the advisory lock under which PostgreSQL is migrated
_CONNECT_SECONDS = 5


class Database:
    """Transactions on an open database. Safe to share between threads; several processes may hold it open.

    `name` is its URL without any password.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        # By its name: the other one's modules are megabytes.
        self._dialect = import_module(f"sqlalchemy.dialects.{engine.dialect.name}")

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> "Database":
        """Open `sqlite:///path/to.db` or `postgresql://user:password@host/database`, made ready for use.

        The folder, the file and the tables are created where they are missing; an older schema is brought up to date.
        Without `create`, a SQLite file must be there already.

        Raises:
            StoreError: unknown kind of URL, not there, unreachable, not writable, damaged, or of a newer program.
        """
        parsed = _parse(url)
        name = _name(parsed)
        sqlite = parsed.get_backend_name() == "sqlite"
        if not create and sqlite and not Path(parsed.database or "").exists():
            raise StoreError(f"{name}: there is no such store")
        with as_store_error(name):
            try:
                engine = _sqlite_engine(parsed) if sqlite else _postgresql_engine(parsed)
            except OSError as error:
                raise StoreError(f"{name}: {error.strerror or error}") from error
        try:
            with as_store_error(name):
                _migrate(engine)
        except StoreError:
            engine.dispose()
            raise
        return cls(engine, name)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that reads. Raises StoreError for what the database refuses."""
        with as_store_error(self.name), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes, durable when this ends. Raises StoreError, and then nothing is written.

        In SQLite it is the only one that does. Where PostgreSQL is lost in the middle of the commit nobody can say
        whether it was written: what is done here should do no harm when it is done again.
        """
        with as_store_error(self.name), _writing(self.engine) as connection:
            yield connection

    def insert_new(self, table: sa.Table) -> Any:
        """An INSERT that leaves rows alone whose keys are there already."""
        return self._dialect.insert(table).on_conflict_do_nothing()

    def close(self) -> None:
        """Give the connections back. Closing twice is harmless."""
        self.engine.dispose()


@contextlib.contextmanager
def as_store_error(name: str) -> Iterator[None]:
    """What the database raises, as a StoreError that starts with `name` and quotes no row."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        # Only the driver's first line: what follows may quote the row.
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_DIRECTORY:
            text += ": SQLite has to make files beside it, even to read, and its folder is read-only"
        raise StoreError(f"{name}: {text}") from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"{name}: {error}") from error


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


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    path = Path(url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = {} if "timeout" in url.query else {"timeout": LOCK_SECONDS}
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
    with contextlib.suppress(OSError):  # SQLite, which then cannot open it either, says what is wrong
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    # A server that vanished without a word is given up on after half a minute, not the kernel's quarter of an hour.
    arguments = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": 30_000}
    arguments = {key: value for key, value in arguments.items() if key not in url.query}
    # Named, because a lock that was waited for is to show what the other one wrote, whatever the server's default is.
    return sa.create_engine(
        url, connect_args=arguments, hide_parameters=True, pool_pre_ping=True, isolation_level="READ COMMITTED"
    )


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
    """The step the schema is at; None where there is none yet. Raises SQLAlchemyError where it is a later one."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    step = connection.execute(sa.select(_VERSION.c.version_num)).scalar_one_or_none()
    if step is not None and step > NEWEST:
        raise sa.exc.SQLAlchemyError(f"made by a newer program (schema {step}; this one knows {NEWEST} at most)")
    return step


def _use_wal(engine: sa.Engine) -> None:
    """Readers and the writer then do not wait for each other. The file remembers it."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                return  # whoever only reads can do without
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
