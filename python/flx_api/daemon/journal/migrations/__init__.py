"""Migrations of the journal, run by `flx_api.daemon.journal.database`."""
