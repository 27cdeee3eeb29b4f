"""The trace store: one schema in SQLite or PostgreSQL.

What `append` returned for is durable. Text is stored as given except that NUL and lone surrogates become U+FFFD, in
both databases alike, because PostgreSQL cannot hold them. An id that is already there is left as it is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from policies.database import Database
from policies.schema import MAX_KEY_CHARS, TRACES
from policies.traces import storable
from policies.types import AnswerKind, StoredTrace

_FIELDS = tuple(field.name for field in fields(StoredTrace))
_KINDS = {kind.value: kind for kind in AnswerKind}
_ROWS_AT_ONCE = 100  # rows may hold a megabyte each


class Store:
    """The record of decisions. Safe to share between threads; several processes may hold the same store open."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = database.insert_new(TRACES)

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> "Store":
        """Open the store at `sqlite:///path/to.db` or `postgresql://user:password@host/database`, made ready for use.

        The folder, the file and the tables are created where they are missing; an older schema is brought up to date.
        Without `create`, a SQLite file must be there already.

        Raises:
            StoreError: unknown kind of URL, not there, unreachable, not writable, damaged, or of a newer program.
        """
        return cls(Database.open(url, create=create))

    def __repr__(self) -> str:
        return f"Store({self._database.name!r})"

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
        with self._database.writing() as connection:
            return connection.execute(self._insert, rows, execution_options={"preserve_rowcount": True}).rowcount

    def traces(
        self, project: str | None = None, *, since: float | None = None, training_only: bool = True
    ) -> Iterator[StoredTrace]:
        """Stream traces in the order of their time, then id, as they stood when the first was read.

        `since` is in seconds since the epoch and included. `training_only` leaves out what must not be learned from.

        Raises:
            StoreError: while iterating.
        """
        query = sa.select(TRACES).order_by(TRACES.c.ts, TRACES.c.id)
        if project is not None:
            query = query.where(TRACES.c.project == storable(project))
        if since is not None:
            query = query.where(TRACES.c.ts >= since)
        if training_only:
            query = query.where(TRACES.c.training_allowed)
        at_once = {"yield_per": _ROWS_AT_ONCE}
        with (
            self._database.reading() as connection,
            connection.execute(query, execution_options=at_once) as rows,
        ):
            for row in rows:
                yield from_row(dict(row._mapping))

    def count(self, project: str | None = None) -> int:
        """How many traces are stored, those that must not be learned from included.

        Raises:
            StoreError: the store cannot be read.
        """
        query = sa.select(sa.func.count()).select_from(TRACES)
        if project is not None:
            query = query.where(TRACES.c.project == storable(project))
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def close(self) -> None:
        """Give the connections back. Closing twice is harmless."""
        self._database.close()


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
