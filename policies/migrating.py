"""Older schemas of the trace store brought up to date, by Alembic. Loaded only where a store needs it."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

_MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(connection: sa.Connection, version_table: str) -> None:
    """Run the steps that the schema still lacks, in the caller's transaction.

    Raises SQLAlchemyError where it is newer than any step here.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=version_table)
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise sa.exc.SQLAlchemyError(str(error)) from error
