"""Alembic's entry point: the schema of gradwarden_server.store.tables."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import NullPool, create_engine

from gradwarden_server.store.tables import metadata

url = context.config.attributes.get("url") or os.environ["GRADWARDEN_DB"]

with create_engine(url, poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
