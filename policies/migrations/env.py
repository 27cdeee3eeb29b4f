"""Alembic runs this file. The caller hands over an open connection, inside a transaction and holding the lock."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="tracer_schema_version")
with context.begin_transaction():
    context.run_migrations()
