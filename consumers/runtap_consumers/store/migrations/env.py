"""Alembic's entry: runs the migrations on the connection that `store.engine` hands over."""

from alembic import context

from runtap_consumers.store import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables.metadata)
context.run_migrations()
