"""Alembic runs this file. The caller hands over an open connection, inside a transaction and holding the lock."""

from alembic import context

context.configure(**context.config.attributes)
with context.begin_transaction():
    context.run_migrations()
