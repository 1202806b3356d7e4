"""What wraps a command on HTTP: the body of the universal endpoint, its options, its reply, and the error document.

Rules:
- `args` and `result` are JSON that the gateway never decodes: they travel as the bytes that came (`msgspec.Raw`).
- The options have one declaration (`CommandOptions`); body and query parameters are both read with it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from flx_api.errors import FieldError

KEY_PATTERN: Final = r"^[\x21-\x7e]{1,255}$(?!\n)"
"""Printable ASCII: a key is compared byte by byte and appears in logs."""

MADE_KEY: Final = "gateway "
"""How a key begins that a gateway made for a request without one. No client's own key holds a blank."""

IdempotencyKey = Annotated[str, Meta(pattern=KEY_PATTERN)]
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]


class CommandOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a command is to be carried out; what a command does is in its arguments."""

    idempotency_key: IdempotencyKey | None = None
    environment: Annotated[str, Meta(max_length=64)] | None = None
    wait_ms: Annotated[int, Meta(ge=0, le=600_000)] | None = None
    deadline_ms: Milliseconds | None = None
    dry_run: Annotated[bool, Meta(description="change nothing; the result is a `Plan` of what would happen")] = False


class ExecuteRequest(CommandOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/execute`."""

    command: Annotated[str, Meta(min_length=1, max_length=128)]
    # A factory, since a schema cannot show a default that is raw JSON.
    args: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


class ReplyMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said about an answer beside the answer. `dry_run`: the result is a `Plan`, and nothing was done."""

    request_id: str
    duration_us: int
    replayed: bool = False
    dry_run: bool = False


class CommandReply(msgspec.Struct, frozen=True):
    """The answer to a command: `accepted` means that work goes on under `id`. Of a dry run the result is a `Plan`."""

    id: str
    command: str
    status: Literal["ok", "accepted"]
    result: msgspec.Raw
    meta: ReplyMeta


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as HTTP clients see it (RFC 9457, `application/problem+json`)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    retryable: bool
    errors: tuple[FieldError, ...] = ()
    suggestions: tuple[str, ...] = ()


class ItemProblem(Problem, frozen=True, omit_defaults=True):
    """An error of one operation; what a response says in `Retry-After` is a field here, in seconds."""

    retry_after: int | None = None


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batch`: operations in parallel, or each after the one before it."""

    operations: Annotated[list[ExecuteRequest], Meta(min_length=1, max_length=1000)]
    mode: Literal["parallel", "ordered"] = "parallel"
    fail_fast: Annotated[bool, Meta(description="begin nothing more after the first operation that failed")] = False
    dry_run: Annotated[bool, Meta(description="every operation is a dry run, each against the present state")] = False


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one operation of a batch went: `result` unless it is an error, `error` when it is."""

    index: int
    id: str
    # Empty when there is no such command: what is not known is not repeated.
    command: str
    status: Literal["ok", "accepted", "error"]
    result: msgspec.Raw | UnsetType = UNSET
    error: ItemProblem | UnsetType = UNSET
    meta: ReplyMeta


class BatchTotals(msgspec.Struct):
    """How many operations ended how; those that were not attempted are among the errors."""

    operations: int
    ok: int = 0
    accepted: int = 0
    error: int = 0
    not_attempted: int = 0


class BatchEnd(msgspec.Struct, frozen=True):
    """The last line of a batch that is streamed."""

    totals: BatchTotals
    meta: ReplyMeta


class BatchReply(msgspec.Struct, frozen=True):
    """The answer to a batch, results in the order of its operations."""

    results: list[BatchResult]
    totals: BatchTotals
    meta: ReplyMeta


class Ticket(msgspec.Struct, frozen=True):
    """A WebSocket ticket: good for one connection within `expires_in` seconds."""

    ticket: str
    expires_in: int


class CheckView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that readiness depends on. `reason`: why it is not well; `note`: what else there is to say."""

    ok: bool
    reason: str = ""
    note: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """Whether the gateway can serve, and if not, why not."""

    status: Literal["ready", "not_ready"]
    reasons: tuple[str, ...]
    checks: dict[str, CheckView]


class Liveness(msgspec.Struct, frozen=True):
    """The process lives."""

    status: Literal["ok"]


class ServiceRoot(msgspec.Struct, frozen=True):
    """What is served here and where to go on."""

    name: str
    version: str
    links: dict[str, str]


class KeySet(msgspec.Struct, frozen=True):
    """Public keys that verify our tokens (RFC 7517); empty while only a shared secret is used."""

    keys: tuple[dict[str, Any], ...]
