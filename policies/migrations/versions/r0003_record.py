"""The tables of projects, their moves, the comparisons of surrogate and teacher, and the store's secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "moves",
        sa.Column("seq", _SEQUENCE, primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("old", sa.Text),
        sa.Column("new", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("ts", sa.Double, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("moves_by_project", "moves", ["project", "seq"])
    op.create_table(
        "audits",
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
        sa.UniqueConstraint("project", "id", "version", "kind", name="audits_once"),
        sqlite_autoincrement=True,
    )
    op.create_index("audits_by_project_and_version", "audits", ["project", "version", "seq"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
