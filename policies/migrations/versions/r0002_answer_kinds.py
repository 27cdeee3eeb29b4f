"""What a teacher's answer is, and the arguments of a tool call."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("traces", sa.Column("kind", sa.Text, nullable=False, server_default="text"))
    op.add_column("traces", sa.Column("arguments", sa.Text))
