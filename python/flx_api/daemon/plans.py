"""From a command that is only rehearsed (`dry_run`) to its plan: what it would do, and how it would be answered.

Strategy: the command takes the way that it always takes: permission, arguments, handler. Only its write is a rehearsal
(`flx_api.daemon.journal.rehearsal`), which tells the rows that would change. `VIEWS` says what of a row is shown.

Rules:
- Who may not call a command is told so and nothing else: its arguments are not even looked at.
- A plan shows nothing that the command itself would not show to the same caller: no passwords, and of other tenants
  nothing, since handlers see nothing of them.
- Reads are carried out and their answer is dropped, so that the plan can say whether it would be one. None waits.
- A log-in is a try like any other, or a plan could guess passwords; the token that it makes is dropped.
- What is no judgement about the command (a fault, a service that cannot answer, too many tries, wrong credentials) is
  the answer itself and no plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from flx_api.commands.permissions import decide, needed
from flx_api.daemon.executions.states import INITIAL
from flx_api.daemon.handlers import idempotency
from flx_api.daemon.handlers.context import Replay
from flx_api.daemon.journal import Rehearsed, rehearsing
from flx_api.daemon.journal.tables import executions
from flx_api.daemon.journal.tables import idempotency as keys
from flx_api.errors import FlxError
from flx_api.models.plan import Change, Plan, PlannedRun, refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from flx_api.commands import Command
    from flx_api.daemon.handlers.context import Context, Outcome
    from flx_api.daemon.journal import RowChange


class View(NamedTuple):
    """How a row is shown: as which entity, by which column, with which columns, and whether the daemon makes its id."""

    entity: str
    key: str
    columns: tuple[str, ...]
    makes_id: bool = False


VIEWS: Final[dict[str, View]] = {
    "pipelines": View(
        "pipeline",
        "name",
        (
            "description",
            "tasks",
            "environment",
            "tags",
            "revision",
            "created_by",
            "retries",
            "retry_backoff_s",
            "retry_on",
        ),
    ),
    "executions": View(
        "execution",
        "id",
        (
            "pipeline",
            "status",
            "trigger",
            "triggered_by",
            "environment",
            "refresh",
            "timeout_s",
            "state_ids",
            "exit_code",
            "error",
            "verdict",
            "retry_at_us",
        ),
        makes_id=True,
    ),
    "schedules": View("schedule", "name", ("enabled",)),
    "users": View("user", "username", ("tenant", "roles", "disabled")),
    "revocations": View(
        "revocation", "id", ("kind", "value", "issued_before", "expires_at", "reason", "created_by"), makes_id=True
    ),
}
"""What a plan shows of the tables that commands change. Columns that are not named here are not shown."""

BOOKKEEPING: Final = frozenset({"identity", "events", "topic_heads", "attempts", "stream_history", "idempotency"})
"""Tables that belong to the daemon alone."""

# With these commands a key means something.
_KEYED: Final = frozenset({"key", "idempotent"})


class _Accepted(msgspec.Struct):
    """What is read of `executions.tasks`."""

    tasks: tuple[tuple[str, ...], ...]


async def plan(command: Command, context: Context, carry_out: Callable[[], Outcome | Awaitable[Outcome]]) -> Plan:
    """What a command would do and answer.

    Args:
        command: which one.
        context: who asks, and what for besides the arguments.
        carry_out: begins the command as if it were meant.

    Raises:
        FlxError: what is no judgement about the command.
    """
    permission = decide(command, context.principal.roles)
    try:
        if not permission.allowed:
            raise needed(command)
        with rehearsing():
            begun = carry_out()
            outcome = begun if isinstance(begun, (bytes, msgspec.Struct)) else await begun
    except Rehearsed as rehearsed:
        return _of_rows(command, context, rehearsed.rows)
    except idempotency.Replayed as found:
        outcome = Replay(*found.stored)
    except FlxError as error:
        return refused(command.name, permission, error)
    # It would change nothing: it is a read, or was done before.
    if isinstance(outcome, Replay):
        return Plan(
            command=command.name,
            outcome="ok" if outcome.execution_id is None else "accepted",
            permission=permission,
            key="replayed",
            replays=outcome.execution_id,
        )
    return Plan(command=command.name, outcome="ok", permission=permission)


def _of_rows(command: Command, context: Context, rows: Sequence[RowChange]) -> Plan:
    key: Literal["new", "replayed"] | None = None
    replays: str | None = None
    if context.idempotency_key is not None and command.idempotency in _KEYED:
        key = "new" if any(row.table == keys.name for row in rows) else "replayed"
    if key == "replayed":
        with context.services.journal.read() as connection:
            replays = idempotency.begun(connection, context)
    return Plan(
        command=command.name,
        outcome="accepted" if command.mode == "long" else "ok",
        permission=decide(command, context.principal.roles),
        changes=tuple(change for row in rows if (change := change_of(row)) is not None),
        key=key,
        replays=replays,
        run=next((run for row in rows if (run := _run_of(row, context)) is not None), None),
    )


def change_of(row: RowChange) -> Change | None:
    """The change as it is shown; None when nothing of it is."""
    view = VIEWS.get(row.table)
    if view is None:
        return None
    before, after = _shown(view, row.before), _shown(view, row.after)
    named = row.before or row.after or {}
    if before is None:
        made = None if view.makes_id else named[view.key]
        return Change(entity=view.entity, id=made, action="create", before=None, after=after)
    if after is None:
        return Change(entity=view.entity, id=named[view.key], action="delete", before=before, after=None)
    differ = [name for name in view.columns if before[name] != after[name]]
    if not differ:
        return None
    return Change(
        entity=view.entity,
        id=named[view.key],
        action="update",
        before={name: before[name] for name in differ},
        after={name: after[name] for name in differ},
    )


def _shown(view: View, values: dict[str, Any] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    # Whatever is bytes in the database is JSON.
    return {
        name: msgspec.json.decode(value) if isinstance(value := values[name], bytes) else value for name in view.columns
    }


def _run_of(row: RowChange, context: Context) -> PlannedRun | None:
    """The run, if this row is of an execution that would begin to wait for its start."""
    after = row.after
    if row.table != executions.name or after is None or after["status"] != INITIAL:
        return None
    if row.before is not None and row.before["status"] == INITIAL:
        return None
    state_ids = msgspec.json.decode(after["state_ids"], type=tuple[str, ...])
    known = None if row.before is None else after["id"]
    waits_for = context.services.executions.outlook(state_ids, after["tenant"], known)
    return PlannedRun(
        pipeline=after["pipeline"],
        environment=after["environment"],
        refresh=after["refresh"],
        tasks=msgspec.json.decode(after["tasks"], type=_Accepted).tasks,
        state_ids=state_ids,
        starts="queued" if waits_for else "now",
        waits_for=waits_for,
    )
