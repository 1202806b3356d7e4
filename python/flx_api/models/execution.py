"""Executions: one start of a pipeline, its attempts and their outcome."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flx_api.models.envelope import IdempotencyKey
from flx_api.models.ledger import Ledger
from flx_api.models.listing import Limit

Status = Literal[
    "queued",
    "starting",
    "running",
    "cancelling",
    "retrying",
    "succeeded",
    "succeeded_with_warnings",
    "failed",
    "cancelled",
    "timed_out",
    "crashed",
]
Trigger = Literal["api", "schedule"]
ExecutionId = Annotated[str, Meta(min_length=1, max_length=64)]


class ExecutionIdArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One execution."""

    id: ExecutionId


class ExecutionListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of executions, newest first; `idempotency_key` finds what the caller's own key began, within a day."""

    limit: Limit = 50
    cursor: str | None = None
    pipeline: str | None = None
    status: Status | None = None
    idempotency_key: IdempotencyKey | None = None


class ExecutionCancelArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """End a run. Cancelling one that is over changes nothing and returns it as it is."""

    id: ExecutionId
    reason: Annotated[str, Meta(max_length=1000)] = ""


class ExecutionWaitArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wait until an execution is over, at most this long."""

    id: ExecutionId
    timeout_ms: Annotated[int, Meta(ge=0, le=600_000)] = 30_000


class ExecutionLogsArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lines of an execution's log from a line number (1 is the first) on."""

    id: ExecutionId
    from_line: Annotated[int, Meta(ge=1)] = 1
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class Execution(msgspec.Struct, frozen=True):
    """One start of a pipeline. `warnings` are why a success is `succeeded_with_warnings`; `error` why it is none.

    `started_us` and all below are of the latest attempt; while it rests (`retrying`) the next one begins at
    `retry_at_us`.
    """

    id: str
    pipeline: str
    status: Status
    trigger: str
    triggered_by: str
    environment: str | None
    refresh: str
    state_ids: tuple[str, ...]
    attempts: int
    queued_us: int
    started_us: int | None = None
    finished_us: int | None = None
    exit_code: int | None = None
    error: str | None = None
    verdict: Literal["verified", "mismatch", "unverified"] | None = None
    warnings: tuple[str, ...] = ()
    records: int | None = None
    cpu_s: float | None = None
    max_rss_kib: int | None = None
    retry_at_us: int | None = None


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of an execution; its `id` is Meltano's run id, the first one's is the execution's.

    `trigger`: the run itself, another try by itself, or `execution.retry`.
    """

    id: str
    number: int
    trigger: Literal["run", "automatic", "manual"]
    status: Status
    queued_us: int | None = None
    started_us: int | None = None
    finished_us: int | None = None
    exit_code: int | None = None
    error: str | None = None


class AttemptPage(msgspec.Struct, frozen=True):
    """The attempts of an execution, in their order."""

    id: str
    items: tuple[Attempt, ...]


class ExecutionPage(msgspec.Struct, frozen=True):
    """A page of executions; `next_cursor` is None on the last."""

    items: tuple[Execution, ...]
    next_cursor: str | None


class LogPage(msgspec.Struct, frozen=True):
    """Lines of a log: `lines[0]` has number `first_line`; `next_line` continues; `complete` when no more can come.

    A page has at most 640 KiB, and ends where an attempt does. Of a line above 256 KiB it has the beginning, and how
    long the line is.
    """

    first_line: int
    lines: tuple[str, ...]
    next_line: int
    complete: bool


class StreamsResult(msgspec.Struct, frozen=True):
    """The row ledger of an execution: final when it is over, as far as it has come before."""

    id: str
    status: Status
    ledger: Ledger | None
    counts: dict[str, int]
