"""The store's schema, step by step. Alembic runs these; `policies.store` starts it when a store is opened."""
