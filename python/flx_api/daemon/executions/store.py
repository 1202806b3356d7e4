"""Executions in the database: every statement about them, and the one function that changes a status.

Strategy: `transition` reads the row, asks the table, writes the row and both events, all inside the caller's
transaction in the journal's writer thread. The row is the arbiter of races: a start and a cancellation that meet are
two transactions, one after the other, and the second sees what the first has done.

Rules:
- Every statement names the project; everything that a caller sees names the tenant too.
- A change of status and its events are one transaction. Nobody else writes `executions.status`.
- Reading takes any connection; changing takes the `Tx` of one journal write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from flx_api.daemon.executions.states import ACTIVE, FINAL, INITIAL, after
from flx_api.daemon.executors import Elt, ProcessIdentity
from flx_api.daemon.journal.tables import attempts, executions, idempotency, stream_history
from flx_api.daemon.project.blocks import CommandBlock, SingerBlock
from flx_api.errors import NotFound, ValidationFailed
from flx_api.models.event import ExecutionEvent
from flx_api.models.execution import Attempt, Execution, ExecutionPage, Status
from flx_api.models.ledger import Ledger
from flx_api.models.listing import decode_cursor, encode_cursor
from flx_api.models.pipeline import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flx_api.daemon.executions.states import Event
    from flx_api.daemon.journal import Tx
    from flx_api.daemon.principal import Principal
    from flx_api.models.execution import ExecutionListArgs

EXECUTION_EVENTS = "execution_events"
_MOST_DIGITS = 18
_NO_EXECUTION = "There is no such execution."


def status_topic(execution_id: str) -> str:
    """The topic of one execution's status."""
    return f"execution.{execution_id}.status"


def metric_topic(execution_id: str) -> str:
    """The topic of one execution's counts."""
    return f"execution.{execution_id}.metric"


class Plan(msgspec.Struct, frozen=True):
    """What was accepted to run: the project may change before and while it does. Stored in `executions.tasks`.

    `schedule` is the one whose variables the run gets. Their values are not stored, since they may be secrets. `suffix`
    is the end of the run's state ids that is asked for, in place of the environment's own.
    """

    tasks: tuple[tuple[str, ...], ...]
    blocks: tuple[SingerBlock | CommandBlock, ...]
    retry: RetryPolicy = RetryPolicy()
    elt: Elt | None = None
    schedule: str | None = None
    suffix: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words after `meltano run` or `meltano elt`."""
        return tuple(word for task in self.tasks for word in task)

    @property
    def extractors(self) -> tuple[str, ...]:
        """The extractors, each once."""
        return tuple(dict.fromkeys(block.extractor for block in self.blocks if isinstance(block, SingerBlock)))

    @property
    def loaders(self) -> tuple[str, ...]:
        """The loaders, each once."""
        return tuple(dict.fromkeys(block.loader for block in self.blocks if isinstance(block, SingerBlock)))


class Stored(msgspec.Struct, frozen=True):
    """An execution with what is not shown: its plan and its latest attempt.

    `tries` is how many attempts there were since somebody asked for the run, the latest included.
    """

    execution: Execution
    tenant: str
    plan: Plan
    timeout_s: int | None
    attempt_id: str
    identity: ProcessIdentity | None
    tries: int = 1

    @property
    def id(self) -> str:
        """The execution's id."""
        return self.execution.id


_DECODE_PLAN = msgspec.json.Decoder(Plan)
_DECODE_STRINGS = msgspec.json.Decoder(tuple[str, ...])
_DECODE_LEDGER = msgspec.json.Decoder(Ledger)

_ATTEMPTS = (
    sa.select(sa.func.count())
    .where(attempts.c.execution_id == executions.c.id)
    .correlate(executions)
    .scalar_subquery()
    .label("attempts")
)
_FIELDS = Execution.__struct_fields__
_STATE_IDS, _WARNINGS = _FIELDS.index("state_ids"), _FIELDS.index("warnings")
_SHOWN = tuple(_ATTEMPTS if name == "attempts" else executions.c[name] for name in _FIELDS)
_LATEST = (
    sa.select(sa.func.max(attempts.c.number))
    .where(attempts.c.execution_id == executions.c.id)
    .correlate(executions)
    .scalar_subquery()
)

# Statements are built once: what SQLAlchemy does to make one costs more than SQLite takes to answer it.
_MINE = executions.c.project_id == sa.bindparam("project")
_THIS = executions.c.id == sa.bindparam("key")
_OF_TENANT = executions.c.tenant == sa.bindparam("of_tenant")
_GET = sa.select(*_SHOWN).where(_MINE, _OF_TENANT, _THIS)
_STORED = (
    sa.select(
        *_SHOWN,
        executions.c.tenant,
        executions.c.tasks,
        executions.c.timeout_s,
        attempts.c.id,
        attempts.c.pid,
        attempts.c.process_start,
        attempts.c.tries,
    )
    .join(attempts, (attempts.c.execution_id == executions.c.id) & (attempts.c.number == _LATEST))
    .where(_MINE)
)
_FIND = _STORED.where(_THIS)
_ACTIVE = _STORED.where(executions.c.status.in_(sorted(ACTIVE))).order_by(executions.c.queued_us, executions.c.id)
_ACTIVE_OF = sa.select(executions.c.id).where(
    _MINE, _OF_TENANT, executions.c.pipeline == sa.bindparam("name"), executions.c.status.in_(sorted(ACTIVE))
)
_BEGUN_BY = sa.select(idempotency.c.execution_id).where(
    idempotency.c.tenant == sa.bindparam("of_tenant"),
    idempotency.c.subject == sa.bindparam("of_subject"),
    idempotency.c.key == sa.bindparam("of_key"),
)
_OF_EXECUTION = attempts.c.execution_id == sa.bindparam("key")
_ATTEMPTS_OF = (
    sa.select(
        attempts.c.id,
        attempts.c.number,
        attempts.c.tries,
        attempts.c.status,
        attempts.c.queued_us,
        attempts.c.started_us,
        attempts.c.finished_us,
        attempts.c.exit_code,
        attempts.c.error,
    )
    .where(attempts.c.project_id == sa.bindparam("project"), _OF_EXECUTION)
    .order_by(attempts.c.number)
)
_LEDGER = sa.select(executions.c.ledger).where(_MINE, _THIS)
_ENDS = (
    sa.select(attempts.c.id, executions.c.finished_us, executions.c.status)
    .join(executions, attempts.c.execution_id == executions.c.id)
    .where(_MINE, attempts.c.id.in_(sa.bindparam("attempts", expanding=True)))
)
_INSERT, _INSERT_ATTEMPT = executions.insert(), attempts.insert()
_UPDATE = executions.update().where(_MINE, _THIS)
_UPDATE_ATTEMPT = attempts.update().where(
    attempts.c.project_id == sa.bindparam("project"), attempts.c.id == sa.bindparam("key")
)


class Store:
    """The executions of one project."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id

    # --- reading ---

    def find(self, connection: sa.Connection, execution_id: str, tenant: str | None = None) -> Stored:
        """One execution; of a tenant, unless the daemon itself asks.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        row = connection.execute(_FIND, self._key(execution_id)).one_or_none()
        if row is None or (tenant is not None and row.tenant != tenant):
            raise NotFound(_NO_EXECUTION)
        return _stored(row)

    def get(self, connection: sa.Connection, execution_id: str, tenant: str) -> Execution:
        """One execution as it is shown.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        row = connection.execute(_GET, {**self._key(execution_id), "of_tenant": tenant}).one_or_none()
        if row is None:
            raise NotFound(_NO_EXECUTION)
        return _shown(row)

    def active(self, connection: sa.Connection) -> list[Stored]:
        """All that are not over, of every tenant, in the order of acceptance."""
        return [_stored(row) for row in connection.execute(_ACTIVE, {"project": self._project_id})]

    def active_of(self, connection: sa.Connection, tenant: str, pipeline: str) -> str | None:
        """The id of a pipeline's execution that is not over."""
        where = {"project": self._project_id, "of_tenant": tenant, "name": pipeline}
        return connection.execute(_ACTIVE_OF, where).scalars().first()

    def page(self, connection: sa.Connection, principal: Principal, args: ExecutionListArgs) -> ExecutionPage:
        """A page, newest first. The cursor is (queued_us, id) of the last one shown, so nothing is shown twice."""
        query = sa.select(*_SHOWN).where(_MINE, _OF_TENANT)
        if args.pipeline is not None:
            query = query.where(executions.c.pipeline == args.pipeline)
        if args.status is not None:
            query = query.where(executions.c.status == args.status)
        if args.idempotency_key is not None:
            query = query.where(executions.c.id.in_(_BEGUN_BY))
        place = decode_cursor(args.cursor)
        if place is not None:
            queued_us, last_id = _place(place)
            at, key = executions.c.queued_us, executions.c.id
            query = query.where((at < queued_us) | ((at == queued_us) & (key < last_id)))
        query = query.order_by(executions.c.queued_us.desc(), executions.c.id.desc()).limit(args.limit + 1)
        who = {"of_tenant": principal.tenant, "of_subject": principal.subject}
        where = {"project": self._project_id, **who, "of_key": args.idempotency_key}
        items = [_shown(row) for row in connection.execute(query, where)]
        more = len(items) > args.limit
        items = items[: args.limit]
        cursor = encode_cursor(f"{items[-1].queued_us}:{items[-1].id}") if more else None
        return ExecutionPage(tuple(items), cursor)

    def attempts(self, connection: sa.Connection, execution: Execution) -> tuple[Attempt, ...]:
        """The attempts of an execution, in their order."""
        rows = connection.execute(_ATTEMPTS_OF, self._key(execution.id)).all()
        return tuple(_attempt(row, execution, is_last=row.number == execution.attempts) for row in rows)

    def logged(self, connection: sa.Connection, execution_id: str) -> list[str]:
        """The attempts that came to write a log, in their order."""
        rows = connection.execute(_ATTEMPTS_OF, self._key(execution_id)).all()
        return [row.id for row in rows if row.started_us is not None]

    def ledger(self, connection: sa.Connection, execution_id: str) -> Ledger | None:
        """The final ledger, None while there is none."""
        found = connection.execute(_LEDGER, self._key(execution_id)).scalar_one_or_none()
        return None if found is None else _DECODE_LEDGER.decode(found)

    def history(self, connection: sa.Connection, tenant: str, state_ids: Iterable[str]) -> list[sa.RowMapping]:
        """What the streams of these state ids moved in their last successful runs."""
        query = sa.select(stream_history).where(
            stream_history.c.tenant == tenant,
            stream_history.c.project_id == self._project_id,
            stream_history.c.state_id.in_(list(state_ids)),
        )
        return list(connection.execute(query).mappings())

    def ends(self, connection: sa.Connection, attempt_ids: Sequence[str]) -> dict[str, int | None]:
        """When each of these attempts ended, None for what is not over; what is not known is not in it."""
        rows = connection.execute(_ENDS, {"project": self._project_id, "attempts": list(attempt_ids)})
        return {row.id: row.finished_us or 0 if row.status in FINAL else None for row in rows}

    # --- changing ---

    def insert(
        self,
        tx: Tx,
        execution: Execution,
        plan: Plan,
        *,
        tenant: str,
        timeout_s: int | None,
        idempotency_key: str | None,
    ) -> None:
        """A new execution with its first attempt, whose id is its own."""
        tx.connection.execute(
            _INSERT,
            {
                "id": execution.id,
                "tenant": tenant,
                "project_id": self._project_id,
                "pipeline": execution.pipeline,
                "status": INITIAL,
                "trigger": execution.trigger,
                "triggered_by": execution.triggered_by,
                "environment": execution.environment,
                "refresh": execution.refresh,
                "timeout_s": timeout_s,
                "tasks": msgspec.json.encode(plan),
                "state_ids": msgspec.json.encode(execution.state_ids),
                "idempotency_key": idempotency_key,
                "queued_us": execution.queued_us,
                "warnings": b"[]",
            },
        )
        self._insert_attempt(tx, tenant, {"id": execution.id, "execution_id": execution.id, "number": 1, "tries": 1})
        _tell(tx, tenant, execution, None)

    def insert_attempt(self, tx: Tx, stored: Stored, attempt_id: str, *, number: int, tries: int) -> None:
        """One more attempt of an execution."""
        values = {"id": attempt_id, "execution_id": stored.id, "number": number, "tries": tries}
        self._insert_attempt(tx, stored.tenant, values)

    def _insert_attempt(self, tx: Tx, tenant: str, values: dict[str, Any]) -> None:
        values |= {"tenant": tenant, "project_id": self._project_id, "queued_us": tx.now_us}
        tx.connection.execute(_INSERT_ATTEMPT, values)

    def transition(self, tx: Tx, execution_id: str, event: Event, **columns: Any) -> Execution:  # noqa: ANN401
        """Let an event happen to an execution; `columns` of its row are written with the new status.

        Raises:
            states.ImpossibleError: the table has no such way from where it is now; nothing is written.
        """
        stored = self.find(tx.connection, execution_id)
        status = after(stored.execution.status, event)
        values = {"status": status, **columns}
        # Counted, not stored.
        written = {name: value for name, value in values.items() if name != "attempts"}
        tx.connection.execute(_UPDATE, {**self._key(execution_id), **written})
        if "warnings" in values:
            values["warnings"] = _DECODE_STRINGS.decode(values["warnings"])
        shown = {name: value for name, value in values.items() if name in Execution.__struct_fields__}
        execution = msgspec.structs.replace(stored.execution, **shown)
        _tell(tx, stored.tenant, execution, stored.execution.status)
        return execution

    def set_columns(self, tx: Tx, execution_id: str, **columns: Any) -> None:  # noqa: ANN401
        """Write columns of an execution that say nothing about its status."""
        tx.connection.execute(_UPDATE, {**self._key(execution_id), **columns})

    def set_attempt(self, tx: Tx, attempt_id: str, **columns: Any) -> None:  # noqa: ANN401
        """Write columns of an attempt."""
        tx.connection.execute(_UPDATE_ATTEMPT, {**self._key(attempt_id), **columns})

    def _key(self, key: str) -> dict[str, str]:
        return {"project": self._project_id, "key": key}

    def remember_streams(self, tx: Tx, tenant: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """What the streams of a successful run moved: the next run of each is compared with it."""
        for row in rows:
            tx.connection.execute(
                stream_history.delete().where(
                    stream_history.c.tenant == tenant,
                    stream_history.c.project_id == self._project_id,
                    stream_history.c.state_id == row["state_id"],
                    stream_history.c.stream == row["stream"],
                )
            )
        if rows:
            tx.connection.execute(
                stream_history.insert(),
                [{"tenant": tenant, "project_id": self._project_id, **row} for row in rows],
            )


def _tell(tx: Tx, tenant: str, execution: Execution, previous: Status | None) -> None:
    event = ExecutionEvent(
        execution=execution.id,
        pipeline=execution.pipeline,
        status=execution.status,
        previous=previous,
        exit_code=execution.exit_code,
        error=execution.error,
        verdict=execution.verdict,
        warnings=execution.warnings,
        attempt=execution.attempts,
        retry_at_us=execution.retry_at_us,
    )
    tx.emit(EXECUTION_EVENTS, event, tenant=tenant)
    tx.emit(status_topic(execution.id), event, tenant=tenant)


def _shown(row: Sequence[Any]) -> Execution:
    """The execution in the first columns of a row, which are its fields in order."""
    values = list(row[: len(_FIELDS)])
    values[_STATE_IDS] = _DECODE_STRINGS.decode(values[_STATE_IDS])
    values[_WARNINGS] = _DECODE_STRINGS.decode(values[_WARNINGS])
    return Execution(*values)


def _stored(row: Sequence[Any]) -> Stored:
    tenant, plan, timeout_s, attempt_id, pid, start_time, tries = row[len(_FIELDS) :]
    identity = None if pid is None or start_time is None else ProcessIdentity(pid, start_time)
    return Stored(_shown(row), tenant, _DECODE_PLAN.decode(plan), timeout_s, attempt_id, identity, tries)


def _attempt(row: Any, execution: Execution, *, is_last: bool) -> Attempt:  # noqa: ANN401 - a row of _ATTEMPTS_OF
    """An attempt as it is shown; what its row does not say is what the execution says, if it is the last one."""
    goes_on = is_last and row.status is None
    # Only one that was cancelled before it began says nothing.
    return Attempt(
        id=row.id,
        number=row.number,
        trigger="run" if row.number == 1 else "manual" if row.tries == 1 else "automatic",
        status=row.status or (execution.status if goes_on else "cancelled"),
        queued_us=execution.queued_us if row.queued_us is None else row.queued_us,
        started_us=row.started_us,
        finished_us=row.finished_us or (execution.finished_us if goes_on else None),
        exit_code=row.exit_code,
        error=execution.error if goes_on else row.error,
    )


def _place(text: str) -> tuple[int, str]:
    queued_us, _, last_id = text.partition(":")
    # Any that we made fits; a number of any length would be refused by `int` or by SQLite, as a fault.
    if not (queued_us.isascii() and queued_us.isdecimal() and len(queued_us) <= _MOST_DIGITS):
        refused = ValidationFailed.field("cursor", "is not one that this service made")
        raise refused
    return int(queued_us), last_id
