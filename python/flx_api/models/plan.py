"""What a command would do: the answer to `dry_run`.

Rules:
- A plan tells what the command would answer now; the next change may make it another.
- Moments are not in it, nor ids that the daemon makes: those of the command itself will be others.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Literal

import msgspec

from flx_api.errors import FieldError, FlxError

JUDGEMENTS: Final = frozenset(
    {
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.PRECONDITION_FAILED,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Refusals that say something about the command. Any other is the answer itself, and no plan."""


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the caller may call the command, and what decided.

    `by`: `public` needs no token and `everyone` no role; else `role` with the first role that grants it and the `rule`
    of that role which fits, or `none`.
    """

    permission: str
    allowed: bool
    by: Literal["public", "everyone", "role", "none"]
    role: str | None = None
    rule: str | None = None


class LimitCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the command would cost in one window of a rate limit.

    `by`: whose window it is (ip, subject, tenant or api_key). `shadow`: it is counted and never refused by it.
    """

    policy: str
    by: str
    cost: int
    limit: int
    window_ms: int
    shadow: bool


class PlannedError(msgspec.Struct, frozen=True, kw_only=True):
    """Why the command would be refused: as its problem document would say it."""

    code: str
    status: int
    detail: str
    retryable: bool
    errors: tuple[FieldError, ...] = ()
    suggestions: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that would be made, changed or removed.

    `before` and `after` hold the fields that differ; None where there is nothing. `id` is None for what gets its id
    when it is made.
    """

    entity: str
    id: str | None
    action: Literal["create", "update", "delete"]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would wait for: a free slot, or another execution's end that uses or awaits the same state id.

    `execution` is None where it is another tenant's.
    """

    reason: Literal["slot", "state_id"]
    state_id: str | None = None
    execution: str | None = None


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The run that would be accepted: what Meltano would be asked to do, and whether it would start at once."""

    pipeline: str
    environment: str | None
    refresh: str
    tasks: tuple[tuple[str, ...], ...]
    state_ids: tuple[str, ...]
    starts: Literal["now", "queued"]
    waits_for: tuple[Wait, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a command would do and answer now. Nothing of it was done.

    `outcome`: how the command would be answered; `errors` say why when it would be refused. `limits` is empty where no
    limit concerns it, and where the daemon was asked without a gateway. `key` tells about the idempotency key, if one
    was given: `new`, `replayed` (the first answer would be given again; `replays` is its execution, if it began one),
    or `reused` for something else. `run` is what a long command would begin.
    """

    command: str
    outcome: Literal["ok", "accepted", "refused"]
    permission: Permission
    limits: tuple[LimitCost, ...] = ()
    errors: tuple[PlannedError, ...] = ()
    changes: tuple[Change, ...] = ()
    key: Literal["new", "replayed", "reused"] | None = None
    replays: str | None = None
    run: PlannedRun | None = None


def refused(command: str, permission: Permission, error: FlxError) -> Plan:
    """The plan of a command that would be refused.

    Raises:
        FlxError: what it would be refused for is no judgement about it.
    """
    if error.spec.http not in JUDGEMENTS:
        raise error
    told = PlannedError(
        code=error.code,
        status=error.spec.http,
        detail=error.detail,
        retryable=error.spec.retryable,
        errors=error.errors,
        suggestions=error.suggestions,
    )
    key: Literal["reused"] | None = "reused" if error.code == "idempotency_key_reuse" else None
    return Plan(command=command, outcome="refused", permission=permission, errors=(told,), key=key)
