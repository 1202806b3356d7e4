"""An idempotency key: the first answer is kept, in the same transaction as the effect, and given again.

Rules:
- A key belongs to (tenant, subject): another user's same key is another key.
- The same key with another command or other arguments is refused; nothing is done.
- There is no "in progress": the journal applies changes one after the other, so the second request sees the first one
  whole or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from sqlalchemy import insert, select

from flx_api.daemon.journal.tables import idempotency
from flx_api.errors import ValidationFailed

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from flx_api.daemon.handlers.context import Context
    from flx_api.daemon.journal import Tx


class Stored(NamedTuple):
    """What the key's first command answered: JSON, and the execution it began, if any."""

    result: bytes
    execution_id: str | None


def look_up(tx: Tx, context: Context, command: str) -> Stored | None:
    """The stored answer of this request's key; None when there is no key or it is new.

    Raises:
        ValidationFailed: `idempotency_key_reuse`, the key was used for something else.
    """
    if context.idempotency_key is None:
        return None
    row = tx.connection.execute(
        select(
            idempotency.c.project_id,
            idempotency.c.command,
            idempotency.c.body_hash,
            idempotency.c.result,
            idempotency.c.execution_id,
        ).where(
            idempotency.c.tenant == context.principal.tenant,
            idempotency.c.subject == context.principal.subject,
            idempotency.c.key == context.idempotency_key,
        )
    ).one_or_none()
    if row is None:
        return None
    if (row.project_id, row.command, row.body_hash) != (tx.project_id, command, context.body_hash):
        raise ValidationFailed(code="idempotency_key_reuse")
    return Stored(row.result, row.execution_id)


def begun(connection: Connection, context: Context) -> str | None:
    """The execution that the first command with this request's key began, if it began one."""
    query = select(idempotency.c.execution_id).where(
        idempotency.c.tenant == context.principal.tenant,
        idempotency.c.subject == context.principal.subject,
        idempotency.c.key == context.idempotency_key,
    )
    return connection.execute(query).scalar()


def remember(
    tx: Tx, context: Context, command: str, result: msgspec.Struct | bytes, execution_id: str | None = None
) -> None:
    """Keep the answer of this request's key, if it has one."""
    if context.idempotency_key is None:
        return
    tx.connection.execute(
        insert(idempotency),
        {
            "tenant": context.principal.tenant,
            "subject": context.principal.subject,
            "key": context.idempotency_key,
            "project_id": tx.project_id,
            "command": command,
            "body_hash": context.body_hash,
            "result": result if isinstance(result, bytes) else msgspec.json.encode(result),
            "execution_id": execution_id,
            "created_us": tx.now_us,
        },
    )
