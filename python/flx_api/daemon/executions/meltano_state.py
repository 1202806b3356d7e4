"""Meltano's own states, as they were before a run: so that the ledger knows a first run and a state that moved.

Rules:
- Reads only, SQLite only: the usual system database. Another database or a state backend elsewhere means that nothing
  is known, which the ledger says truthfully; it never means that there was no state.
- The table is Meltano's: a shape that is not expected is the same as nothing known.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from flx_api.daemon.executions.accounts import States

_BUSY_TIMEOUT_S = 1.0


def read_states(path: str | None, state_ids: tuple[str, ...]) -> States:
    """The Singer states of those ids that have one.

    Args:
        path: Meltano's SQLite file, None when it is no SQLite.
        state_ids: of the run.
    """
    if path is None or not state_ids:
        return {}
    places = ",".join("?" * len(state_ids))
    query = f"SELECT state_id, completed_state FROM state WHERE state_id IN ({places})"  # noqa: S608
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            rows = connection.execute(query, state_ids).fetchall()
    except sqlite3.Error:
        return {}
    states: States = {}
    for state_id, text in rows:
        try:
            held = msgspec.json.decode(text or "{}")
        except (msgspec.DecodeError, TypeError):
            continue
        state = held.get("singer_state") if isinstance(held, dict) else None
        if isinstance(state, dict):
            states[state_id] = state
    return states
