"""The books of a run: plan, meter records and history in, ledger out, and what to remember for the next run.

Strategy: the pure ledger (`flx_api.daemon.ledger`) wants to know what earlier runs of a state id did; this module turns
rows of `stream_history` into that and back. A row without a stream's name says that the state id has succeeded once.

Rules:
- Only full counts are remembered; an incremental run's count says nothing about the next.
- A state id that Meltano knows a state of is no first run, whoever ran it before; when Meltano's states are not known,
  nothing is said to be one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from flx_api.daemon.ledger import PlannedBlock, StreamHistory, build_ledger, history_after
from flx_api.daemon.meter_records import read_invocations
from flx_api.daemon.project.blocks import SingerBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from sqlalchemy import RowMapping

    from flx_api.daemon.executions.store import Plan
    from flx_api.daemon.ledger import History
    from flx_api.models.ledger import Ledger

# The row that stands for the state id itself.
_ITSELF = ""

States = dict[str, dict[str, Any]]
"""Singer states by state id, as Meltano had them before the run. Where it may be unknown: None, never an empty one."""


class Account(NamedTuple):
    """The ledger of a run, and the rows of `stream_history` to write if it succeeded."""

    ledger: Ledger
    remember: tuple[dict[str, Any], ...]


class Accounts(NamedTuple):
    """What is known besides the meter's records when a run's books are closed."""

    plan: Plan
    full_refresh: bool
    history: Mapping[str, History]
    known_state_ids: frozenset[str]
    states: States | None

    @classmethod
    def of(cls, plan: Plan, *, full_refresh: bool, rows: Iterable[RowMapping], states: States | None) -> Accounts:
        """From rows of `stream_history` and Meltano's states before the run, None when nobody knows them."""
        history: dict[str, History] = {}
        known = set(states or ())
        for row in rows:
            known.add(row["state_id"])
            if row["stream"] != _ITSELF:
                history.setdefault(row["state_id"], {})[row["stream"]] = StreamHistory(row["records"])
        return cls(plan, full_refresh, history, frozenset(known), states)

    def close(self, meter_folder: Path, exit_code: int | None, execution_id: str, now_us: int) -> Account:
        """Read the meter's records and settle the account. Reads files: call it in a thread."""
        planned = self._planned()
        ledger = build_ledger(planned, read_invocations(meter_folder), exit_code=exit_code, history=self.history)
        rows: list[dict[str, Any]] = []
        for block, result in zip(planned, ledger.blocks, strict=True):
            if block.state_id is None:
                continue
            common = {"state_id": block.state_id, "execution_id": execution_id, "at_us": now_us}
            rows.append({**common, "stream": _ITSELF, "records": 0, "full_refresh": block.full_refresh})
            past = self.history.get(block.state_id, {})
            rows += (
                {**common, "stream": stream, "records": seen.full_records, "full_refresh": True}
                for stream, seen in history_after(block, result, past).items()
                if seen.full_records is not None and seen is not past.get(stream)
            )
        # One state id may occur twice in a plan; its last block has the last word.
        unique = {(row["state_id"], row["stream"]): row for row in rows}
        return Account(ledger, tuple(unique.values()))

    def _planned(self) -> list[PlannedBlock]:
        states = self.states
        return [
            PlannedBlock(
                extractor=block.extractor,
                loader=block.loader,
                mappers=block.mappers,
                state_id=block.state_id,
                first_run=states is not None
                and block.state_id is not None
                and block.state_id not in self.known_state_ids,
                full_refresh=self.full_refresh,
                state_before=None if states is None or block.state_id is None else states.get(block.state_id, {}),
            )
            for block in self.plan.blocks
            if isinstance(block, SingerBlock)
        ]
