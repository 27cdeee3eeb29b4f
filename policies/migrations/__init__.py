"""The store's schema, step by step. Alembic runs these; `policies.database` starts it when a store is opened."""
