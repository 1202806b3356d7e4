"""Meltano's own states, as they were before a run: so that the ledger knows a first run and a state that moved.

Rules:
- Reads only, SQLite only: the usual system database. Another database or a state backend elsewhere means that nothing
  is known, which the ledger says truthfully; it never means that there was no state.
- The table is Meltano's: a shape that is not expected is the same as nothing known. A file or table that does not exist
  yet is known: no run has ended.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from flx_api.daemon.executions.accounts import States

_BUSY_TIMEOUT_S = 1.0


class _Held(msgspec.Struct):
    """What Meltano keeps in a row, as far as it matters here."""

    singer_state: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Held).decode


def read_states(path: str | None, state_ids: tuple[str, ...]) -> States | None:
    """The Singer states of those ids that have one; None when that cannot be known.

    Args:
        path: Meltano's SQLite file, None when its states are kept elsewhere.
        state_ids: of the run.
    """
    if path is None or not state_ids:
        return None if path is None else {}
    try:
        return {
            state_id: state
            for state_id, text in _rows(path, state_ids)
            if (state := _decode(text or b"{}").singer_state) is not None
        }
    except (OSError, sqlite3.Error, msgspec.MsgspecError, TypeError):
        return None


def _rows(path: str, state_ids: tuple[str, ...]) -> list[tuple[str, str | None]]:
    places = ",".join("?" * len(state_ids))
    query = f"SELECT state_id, completed_state FROM state WHERE state_id IN ({places})"  # noqa: S608
    if not Path(path).exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            return connection.execute(query, state_ids).fetchall()
    except sqlite3.OperationalError as error:
        if str(error).startswith("no such table"):
            return []
        raise
