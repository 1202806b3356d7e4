"""The row ledger of a run: what each stream extracted, what reached the loader, what the destination holds.

Strategy: a ledger is a tree of plain values: run, blocks in order, streams by name. It says what was counted and how,
never more: `verified` means that the destination was counted by us and holds every row the extractor emitted.

Rules:
- A number that was not counted is None, never 0.
- A verdict other than `verified` carries a reason, a sentence for people without paths of this machine or secrets.
- Warnings turn `succeeded` into `succeeded_with_warnings`; their codes are fixed, their sentences are not.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["verified", "mismatch", "unverified"]
WarningCode = Literal[
    "mismatch",
    "cut_off",
    "nothing_selected",
    "no_rows",
    "input_missing",
    "malformed",
    "stream_fell",
    "state_not_confirmed",
]


class Warning_(msgspec.Struct, frozen=True):  # noqa: N801 (the builtin has the name)
    """Why a run that exited 0 is not simply a success. `stream` is None when it concerns the whole block."""

    code: WarningCode
    detail: str
    stream: str | None = None


class StreamLedger(msgspec.Struct, frozen=True):
    """One stream of one block, from the extractor to the destination.

    `extracted` are the records the extractor emitted, `piped` those the last producer before the loader passed on (they
    differ when a mapper drops or adds). `counted_by` says how the destination was counted: `rows` compares the rows
    after the run minus those before with `piped`; `replaced` compares all rows with `piped` (the loader starts afresh);
    `keys` compares the distinct keys that are present with the distinct keys piped (upserts). `expected` and
    `loaded_found` are the two numbers of that comparison.
    """

    stream: str
    extracted: int | None
    piped: int | None
    expected: int | None
    loaded_before: int | None
    loaded_after: int | None
    loaded_found: int | None
    counted_by: Literal["rows", "replaced", "keys"] | None
    bytes: int | None
    rows_per_s: float | None
    state_moved: bool | None
    verdict: Verdict
    reason: str | None = None


class PluginCost(msgspec.Struct, frozen=True):
    """One plugin process of a run: how it ended and what it cost. `exit_code` is None when it vanished."""

    role: Literal["extractor", "mapper", "loader", "utility"]
    plugin: str
    purpose: str
    exit_code: int | None
    started_us: int
    ended_us: int | None = None
    cpu_s: float | None = None
    max_rss_kib: int | None = None


class BlockLedger(msgspec.Struct, frozen=True):
    """One extract-load block: its plugins, its streams by name, its verdict (the worst of its streams)."""

    index: int
    extractor: str
    mappers: tuple[str, ...]
    loader: str
    state_id: str | None
    method: str
    verdict: Verdict
    reason: str | None
    streams: tuple[StreamLedger, ...]
    warnings: tuple[Warning_, ...] = ()


class Ledger(msgspec.Struct, frozen=True):
    """The whole run. `records` are all rows that the extractors emitted; warnings of the blocks are repeated here."""

    verdict: Verdict
    records: int
    blocks: tuple[BlockLedger, ...]
    warnings: tuple[Warning_, ...] = ()
    plugins: tuple[PluginCost, ...] = ()
