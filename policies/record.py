"""What the store keeps of projects: one document each, its moves, and the comparisons of surrogate and teacher.

All processes on one store see one sequence. Whoever changes a project holds its row from reading the document to
writing it, and comparisons are counted in that same transaction: nothing is lost between two processes, nothing is
counted twice, and a process that is killed leaves what it had begun as it was before.

Documents and evidence are JSON, floats to the last digit (infinities and NaN too). Other text is kept as the trace
store keeps it: NUL and lone surrogates become U+FFFD.
"""

import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Protocol

import sqlalchemy as sa

from policies.database import LOCK_SECONDS, Database
from policies.errors import DocumentDamaged
from policies.schema import AUDITS, MAX_KEY_CHARS, MOVES, PROJECTS, SECRETS
from policies.traces import storable
from policies.types import Comparison, Move

KINDS = ("shadow", "audit")
MAX_VERSION_CHARS = 100
"""Of a policy version's name: it stands in an index beside a project and an id."""

_COMPARISON_FIELDS = tuple(field.name for field in fields(Comparison))
_COMPARISON = [AUDITS.c[name] for name in _COMPARISON_FIELDS]
_MOVE_FIELDS = tuple(field.name for field in fields(Move))
_MOVE = [MOVES.c[name] for name in ("seq", *_MOVE_FIELDS)]
_REVISIONS = sa.select(PROJECTS.c.project, PROJECTS.c.revision)
_PROJECT = sa.select(PROJECTS.c.revision, PROJECTS.c.document).where(PROJECTS.c.project == sa.bindparam("project"))
_IDS_AT_ONCE = 500  # older builds of SQLite take 999 parameters
# PostgreSQL: as long as in SQLite one waits for another's change, and a gateway that stops in the middle of one, or
# whose machine is gone, has lost it before the others give up.
_BOUNDS = sa.select(
    sa.func.set_config("lock_timeout", f"{LOCK_SECONDS:.0f}s", True),
    sa.func.set_config("idle_in_transaction_session_timeout", f"{LOCK_SECONDS / 2:.0f}s", True),
)


class Earlier(Protocol):
    """Reads comparisons that a project has, newest last, those that are just being counted included."""

    def __call__(self, version: str, kind: str, limit: int) -> list[Comparison]: ...


class Step(Protocol):
    """From a project's document and the comparisons new to it: the document it is to have, and what moved.

    It may change the document it is given. It should be quick, because other processes that want to write wait for it
    and give up after ten seconds, and must not write to the store itself: it would wait for its own end.
    """

    def __call__(
        self, document: dict[str, Any], comparisons: Sequence[Comparison], earlier: Earlier, /
    ) -> tuple[dict[str, Any], Sequence[Move]]: ...


class Record:
    """The projects of a store. Safe to share between threads; several processes may hold the same store open."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> "Record":
        """Open the record in the store at `url`, as `Store.open` does. Raises StoreError."""
        return cls(Database.open(url, create=create))

    def __repr__(self) -> str:
        return f"Record({self._database.name!r})"

    def revisions(self) -> dict[str, int]:
        """Every project's revision: who asks often finds out cheaply whose document has changed. Raises StoreError."""
        with self._database.reading() as connection:
            return {row.project: row.revision for row in connection.execute(_REVISIONS)}

    def document(self, project: str) -> tuple[int, dict[str, Any]] | None:
        """A project's revision and document; None where it has none yet. Raises StoreError."""
        with self._database.reading() as connection:
            row = connection.execute(_PROJECT, {"project": storable(project)}).one_or_none()
            return None if row is None else (row.revision, self._parsed(row.document, project))

    def documents(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Every project's revision and document, as they stood at one moment. Raises StoreError."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(PROJECTS).order_by(PROJECTS.c.project))
            return {row.project: (row.revision, self._parsed(row.document, row.project)) for row in rows}

    def change(self, project: str, comparisons: Sequence[Comparison], step: Step) -> tuple[int, dict[str, Any]]:
        """Count comparisons and change the project's document by them, in one transaction that is durable afterwards.

        A project without a document has the document {} at revision 0. Comparisons that were counted before are left
        out, so what failed, or may have, can be handed in again. `step` gets the document, the comparisons that are
        new, in their order, and a way to read earlier ones; the document it returns is written, with the next revision
        where it differs, and its moves are appended.

        Returns the revision and the document as every process now reads them.

        Raises:
            ValueError: a comparison breaks the rules of `flaw`, or a move is another project's.
            StoreError: the store refuses.
            Exception: what `step` raised. In each case nothing is changed.
        """
        project = storable(project)
        handed_in = _storable(project, comparisons)
        with self._database.writing() as connection:
            revision, text = self._locked(connection, project)
            new = _append(connection, project, handed_in)
            # Again: the driver's way with batches leaves PostgreSQL's clock standing until the next statement.
            _bound(connection)
            document, moves = step(self._parsed(text, project), new, partial(_newest, connection, project))
            written = _json(document)
            if written != text:
                revision += 1
                values = {"revision": revision, "document": written}
                connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(values))
            if moves:
                connection.execute(sa.insert(MOVES), [_move_row(project, move) for move in moves])
            kept = self._parsed(written, project)
        return revision, kept

    def moves(self, project: str | None = None, limit: int = 100) -> list[tuple[int, Move]]:
        """The newest moves, of one project or of all, each with its number, the newest last. Raises StoreError."""
        query = sa.select(*_MOVE).order_by(MOVES.c.seq.desc()).limit(limit)
        if project is not None:
            query = query.where(MOVES.c.project == storable(project))
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [(row.seq, self._move(row)) for row in reversed(rows)]

    def comparisons(
        self, project: str, version: str | None = None, kind: str | None = None, limit: int = 1000
    ) -> list[Comparison]:
        """A project's newest comparisons, the newest last, as they were counted. Raises StoreError."""
        with self._database.reading() as connection:
            return _newest(connection, storable(project), version, kind, limit)

    def prune(self, project: str, keep: int) -> None:
        """Forget all comparisons of a project but the newest `keep`. What is forgotten would be counted again.

        Raises:
            StoreError: nothing is forgotten.
        """
        project = storable(project)
        of_project = AUDITS.c.project == project
        to_go = sa.select(AUDITS.c.seq).where(of_project).order_by(AUDITS.c.seq.desc()).offset(keep).limit(1)
        with self._database.writing() as connection:
            newest = connection.execute(to_go).scalar_one_or_none()
            if newest is not None:
                self._locked(connection, project)
                connection.execute(sa.delete(AUDITS).where(of_project, AUDITS.c.seq <= newest))

    def secret(self, name: str) -> bytes:
        """32 random bytes, made by whoever asks first, the same for every process from then on. Raises StoreError."""
        name = storable(name)
        query = sa.select(SECRETS.c.value).where(SECRETS.c.name == name)
        with self._database.reading() as connection:
            value = connection.execute(query).scalar_one_or_none()
        if value is None:
            with self._database.writing() as connection:
                made = {"name": name, "value": secrets.token_hex(32)}
                connection.execute(self._database.insert_new(SECRETS), made)
                value = connection.execute(query).scalar_one()
        return bytes.fromhex(value)

    def close(self) -> None:
        """Give the connections back. Closing twice is harmless."""
        self._database.close()

    def _locked(self, connection: sa.Connection, project: str) -> tuple[int, str]:
        """The project's revision and document, its row made where there is none and held until the transaction ends."""
        _bound(connection)
        query = _PROJECT.with_for_update()
        row = connection.execute(query, {"project": project}).one_or_none()
        if row is None:
            blank = {"project": project, "revision": 0, "document": "{}"}
            connection.execute(self._database.insert_new(PROJECTS), blank)
            row = connection.execute(query, {"project": project}).one()
        return row.revision, row.document

    def _move(self, row: sa.Row[Any]) -> Move:
        values = {name: row._mapping[name] for name in _MOVE_FIELDS}
        return Move(**values | {"evidence": self._parsed(row.evidence, row.project)})

    def _parsed(self, text: str, project: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DocumentDamaged(
                f"{self._database.name}: what is kept of project {project!r} is damaged: no JSON object"
            )
        return found


def flaw(comparison: Comparison) -> str | None:
    """What keeps a comparison from being counted, or None.

    Its id and project have 1 to 255 characters, its version 1 to 100; it is a shadow or an audit; its time is finite;
    0 < base <= probability <= 1.
    """
    for key, limit in (("id", MAX_KEY_CHARS), ("project", MAX_KEY_CHARS), ("version", MAX_VERSION_CHARS)):
        if not 1 <= len(getattr(comparison, key)) <= limit:
            return f"{key} must have 1 to {limit} characters"
    if comparison.kind not in KINDS:
        return f"kind must be one of {', '.join(KINDS)}"
    if not math.isfinite(comparison.ts):
        return "ts must be finite"
    if not 0 < comparison.base <= comparison.probability <= 1:
        return "base must be above 0 and at most probability, which is at most 1"
    return None


def _bound(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(_BOUNDS)


def _storable(project: str, comparisons: Sequence[Comparison]) -> dict[tuple[str, str, str], Comparison]:
    """The comparisons as the store keeps them, each once. Raises ValueError where one cannot be counted."""
    if not 1 <= len(project) <= MAX_KEY_CHARS:
        raise ValueError(f"a project's name must have 1 to {MAX_KEY_CHARS} characters")
    handed_in: dict[tuple[str, str, str], Comparison] = {}
    for given in comparisons:
        changed: dict[str, Any] = {key: text for key, value in _texts(given) if (text := storable(value)) != value}
        comparison = replace(given, **changed) if changed else given
        problem = flaw(comparison)
        if comparison.project != project:
            problem = f"it is of project {comparison.project[:64]!r}, not of {project[:64]!r}"
        if problem:
            raise ValueError(f"comparison {comparison.id[:64]!r}: {problem}")
        handed_in.setdefault((comparison.id, comparison.version, comparison.kind), comparison)
    return handed_in


def _append(
    connection: sa.Connection, project: str, handed_in: dict[tuple[str, str, str], Comparison]
) -> list[Comparison]:
    """Store the comparisons that are not there yet, and return them. The project's row is held by the caller."""
    ids = list({comparison.id for comparison in handed_in.values()})
    counted: set[tuple[str, str, str]] = set()
    for start in range(0, len(ids), _IDS_AT_ONCE):
        query = sa.select(AUDITS.c.id, AUDITS.c.version, AUDITS.c.kind)
        query = query.where(AUDITS.c.project == project, AUDITS.c.id.in_(ids[start : start + _IDS_AT_ONCE]))
        counted.update((id_, version, kind) for id_, version, kind in connection.execute(query))
    new = [comparison for key, comparison in handed_in.items() if key not in counted]
    if new:
        rows = [{name: getattr(comparison, name) for name in _COMPARISON_FIELDS} for comparison in new]
        connection.execute(sa.insert(AUDITS), rows)
    return new


def _newest(
    connection: sa.Connection, project: str, version: str | None, kind: str | None, limit: int
) -> list[Comparison]:
    query = sa.select(*_COMPARISON).where(AUDITS.c.project == project).order_by(AUDITS.c.seq.desc()).limit(limit)
    if version is not None:
        query = query.where(AUDITS.c.version == storable(version))
    if kind is not None:
        query = query.where(AUDITS.c.kind == kind)
    return [Comparison(*row) for row in reversed(connection.execute(query).all())]


def _move_row(project: str, move: Move) -> dict[str, Any]:
    row = {name: getattr(move, name) for name in _MOVE_FIELDS}
    row |= {key: storable(value) for key, value in _texts(move)} | {"evidence": _json(move.evidence)}
    if row["project"] != project:
        raise ValueError(f"a move of project {move.project[:64]!r} in a change of {project[:64]!r}")
    return row


def _texts(value: Comparison | Move) -> list[tuple[str, str]]:
    names = (field.name for field in fields(value))
    return [(name, text) for name in names if isinstance(text := getattr(value, name), str)]


def _json(value: dict[str, Any]) -> str:
    # All ASCII: what PostgreSQL cannot hold is escaped, and comes back as it was.
    return json.dumps(value, separators=(",", ":"))
