"""The tables of the store, as the newest step in `migrations` leaves them. A leaf: imports nothing internal.

They stand in one place because a new store is made with all of them, whoever opens it first, and for what.
"""

import sqlalchemy as sa

NEWEST = "0003"
"""The newest step in `migrations`: what METADATA describes."""
VERSION_TABLE = "tracer_schema_version"
MAX_KEY_CHARS = 255
"""Of an id and of a project's name: both stand in an index, whose entries PostgreSQL keeps below 2,704 bytes."""

METADATA = sa.MetaData()

TRACES = sa.Table(
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
    sa.Column("kind", sa.Text, nullable=False, server_default="text"),
    sa.Column("arguments", sa.Text),
    sa.Index("traces_by_project_and_time", "project", "ts", "id"),
)

PROJECTS = sa.Table(
    "projects",
    METADATA,
    sa.Column("project", sa.Text, primary_key=True),
    # Before the document, so that SQLite finds it without reading the document's pages.
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

# SQLite numbers rows by themselves only in a column that is an INTEGER by name.
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")

MOVES = sa.Table(
    "moves",
    METADATA,
    sa.Column("seq", _SEQUENCE, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("old", sa.Text),
    sa.Column("new", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("ts", sa.Double, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Index("moves_by_project", "project", "seq"),
    sqlite_autoincrement=True,
)

AUDITS = sa.Table(
    "audits",
    METADATA,
    sa.Column("seq", _SEQUENCE, primary_key=True),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("ts", sa.Double, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("teacher", sa.Text),
    sa.Column("wrong", sa.Boolean, nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("base", sa.Double, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    # The project first: who writes holds its row, so nobody ever waits here for another project's writer.
    sa.UniqueConstraint("project", "id", "version", "kind", name="audits_once"),
    sa.Index("audits_by_project_and_version", "project", "version", "seq"),
    sqlite_autoincrement=True,  # a number is not given again, not even after the newest row went
)

SECRETS = sa.Table(
    "secrets",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
