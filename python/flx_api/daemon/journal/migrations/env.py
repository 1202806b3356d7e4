"""Alembic's environment: runs on the connection the journal gives it, inside the journal's transaction."""

from alembic import context

from flx_api.daemon.journal.tables import metadata

connection = context.config.attributes["connection"]
# Batch mode: SQLite cannot alter a column in place.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
