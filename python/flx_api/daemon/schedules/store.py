"""What the database remembers of schedules.

Rules:
- Reading takes any connection; changing takes the `Tx` of one journal write.
- Schedules of meltano.yml belong to the default tenant, as what they run does; every statement names it and the
  project.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import bindparam, insert, literal, select, update

from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.journal.tables import idempotency, schedules
from flx_api.daemon.schedules.decisions import Past

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from flx_api.daemon.journal import Tx
    from flx_api.models.event import ScheduleEvent

EVENTS = "schedule_events"
COMMAND = "schedule.run"
# No token can name an empty tenant, so nobody can use up the key of a firing.
_KEYS_TENANT = ""
_LONGEST_SUBJECT = 128


class Remembered(NamedTuple):
    """A row."""

    name: str
    enabled: bool
    mark: str | None
    until_us: int | None
    fired_us: int | None
    execution_id: str | None
    skipped_us: int | None
    skip_reason: str | None
    missed_us: int | None

    @property
    def past(self) -> Past | None:
        """Up to where it was decided about."""
        return None if self.mark is None or self.until_us is None else Past(self.mark, self.until_us)


_ROWS = select(*(schedules.c[name] for name in Remembered._fields)).where(
    schedules.c.tenant == DEFAULT_TENANT, schedules.c.project_id == bindparam("project")
)
_ROW = _ROWS.where(schedules.c.name == bindparam("key"))
_UPDATE = update(schedules).where(
    schedules.c.tenant == DEFAULT_TENANT,
    schedules.c.project_id == bindparam("project"),
    schedules.c.name == bindparam("key"),
)


def new(name: str) -> Remembered:
    """A schedule of which nothing is known: enabled."""
    return Remembered(name, True, None, None, None, None, None, None, None)  # noqa: FBT003 - a row


def all_of(connection: Connection, project_id: str) -> dict[str, Remembered]:
    """Every row by name, also of schedules that are no longer in the project."""
    return {row.name: Remembered(*row) for row in connection.execute(_ROWS, {"project": project_id})}


def find(connection: Connection, project_id: str, name: str) -> Remembered:
    """What is remembered of a schedule."""
    row = connection.execute(_ROW, {"project": project_id, "key": name}).one_or_none()
    return new(name) if row is None else Remembered(*row)


def save(tx: Tx, name: str, **columns: Any) -> None:  # noqa: ANN401 - of the table
    """Write columns of a schedule."""
    values = {**columns, "updated_us": tx.now_us}
    found = tx.connection.execute(_UPDATE.values(values), {"project": tx.project_id, "key": name})
    if not found.rowcount:
        mine = {"tenant": DEFAULT_TENANT, "project_id": tx.project_id, "name": name, "enabled": True}
        tx.connection.execute(insert(schedules), {**mine, **values})


def forget(tx: Tx, names: Iterable[str]) -> None:
    """Remember no more up to where these schedules were decided about."""
    for name in names:
        save(tx, name, mark=None, until_us=None)


def is_decided(tx: Tx, key: str) -> bool:
    """Whether the firing with this key has happened, or was skipped."""
    query = select(literal(1)).where(
        idempotency.c.tenant == _KEYS_TENANT,
        idempotency.c.subject == _subject(tx.project_id),
        idempotency.c.key == key,
    )
    return tx.connection.execute(query).first() is not None


def decided(tx: Tx, key: str, event: ScheduleEvent) -> None:
    """Keep what became of the firing with this key."""
    tx.connection.execute(
        insert(idempotency),
        {
            "tenant": _KEYS_TENANT,
            "subject": _subject(tx.project_id),
            "key": key,
            "project_id": tx.project_id,
            "command": COMMAND,
            "body_hash": "",
            "result": msgspec.json.encode(event),
            "execution_id": event.execution,
            "created_us": tx.now_us,
        },
    )


def _subject(project_id: str) -> str:
    """Whose key it is: two projects may have schedules of one name."""
    subject = f"schedule@{project_id}"
    return subject if len(subject) <= _LONGEST_SUBJECT else hashlib.sha256(subject.encode()).hexdigest()
