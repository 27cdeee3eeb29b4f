"""The table of traces."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "traces",
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
    )
    op.create_index("traces_by_project_and_time", "traces", ["project", "ts", "id"])
