"""The journal: the daemon's database, its one writer and its numbered events."""

from __future__ import annotations

from flx_api.daemon.journal.journal import Journal
from flx_api.daemon.journal.rehearsal import Rehearsed, RowChange, rehearsing
from flx_api.daemon.journal.rows import Place, Prepared
from flx_api.daemon.journal.tail import EventRow
from flx_api.daemon.journal.writer import Tx
from flx_api.models.tenant import DEFAULT_TENANT

__all__ = ["DEFAULT_TENANT", "EventRow", "Journal", "Place", "Prepared", "Rehearsed", "RowChange", "Tx", "rehearsing"]
