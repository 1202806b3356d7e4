"""An idempotency key: the first answer is kept, in the same transaction as the effect, and given again.

Strategy: `once` wraps a change that the journal is about to make. The wrapped change looks its key up first; when it is
there it raises `Replayed`, so that nothing is changed and whatever lies between handler and journal needs to know
nothing of keys. Otherwise the answer is written beside the effect.

Rules:
- A key belongs to (tenant, subject): another user's same key is another key.
- The same key with another command or other arguments is refused; nothing is done.
- A refusal is not kept: it changed nothing, and the same request may be acceptable later.
- Nothing is refused for what the project says before the key was looked up (`later`).
- The journal applies changes one after the other, so a second request sees the first one whole or not at all. One that
  comes before the first is committed waits for it (see `flx_api.daemon.dispatch`).
- Keys that a gateway made (`models.envelope.MADE_KEY`) are kept like any other, but are not shown as the client's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from sqlalchemy import bindparam, select

from flx_api.daemon.journal import Place, Prepared
from flx_api.daemon.journal.rows import finds_of
from flx_api.daemon.journal.tables import idempotency
from flx_api.errors import FlxError, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from flx_api.daemon.handlers.context import Context
    from flx_api.daemon.journal import Tx

T = TypeVar("T", bound=msgspec.Struct)
V = TypeVar("V")

_encode = msgspec.json.Encoder().encode

_BEGUN = select(idempotency.c.execution_id).where(
    idempotency.c.tenant == bindparam("tenant"),
    idempotency.c.subject == bindparam("subject"),
    idempotency.c.key == bindparam("key"),
)


class Stored(NamedTuple):
    """What the key's first command answered: JSON, and the execution it began, if any."""

    result: bytes
    execution_id: str | None


class Replayed(Exception):
    """The change was made before, by the first request with this key: here is what that was answered."""

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.stored = stored


def once(
    context: Context,
    command: str,
    change: Callable[[Tx], T],
    shown: Callable[[T], msgspec.Struct] | None = None,
    begins: str | None = None,
) -> Callable[[Tx], T]:
    """The same change, made at most once for this request's key.

    Args:
        context: of the request.
        command: its name.
        change: what is made, and returns what it made.
        shown: the answer made of that, when it is not the answer itself.
        begins: the execution that goes on after the answer, for who looks for it by the key.

    Returns:
        A change that raises `Replayed` when the key is known, and ValidationFailed (`idempotency_key_reuse`) when it
        was used for something else. It says beforehand what it will look for.
    """
    if context.idempotency_key is None:
        return change

    principal = context.principal
    place = Place(idempotency, (principal.tenant, principal.subject, context.idempotency_key))

    def keyed(tx: Tx) -> T:
        stored = _look_up(tx, place, context, command)
        if stored is not None:
            raise Replayed(stored)
        made = change(tx)
        remember(tx, context, command, made if shown is None else shown(made), begins)
        return made

    return Prepared(keyed, (place, *finds_of(change)))


def later(look: Callable[[], V]) -> Callable[[], V]:
    """What a look at something outside of the journal found, for a change: an error is kept until it is asked for.

    The look comes before the write, its error behind the key's look-up: by then the project may have changed, and who
    asks again is answered as before.
    """
    try:
        found = look()
    except FlxError as error:
        refusal = error
    else:
        return lambda: found

    def refuse() -> V:
        raise refusal

    return refuse


def look_up(tx: Tx, context: Context, command: str) -> Stored | None:
    """The stored answer of this request's key; None when there is no key or it is new.

    Raises:
        ValidationFailed: `idempotency_key_reuse`, the key was used for something else.
    """
    if context.idempotency_key is None:
        return None
    principal = context.principal
    place = Place(idempotency, (principal.tenant, principal.subject, context.idempotency_key))
    return _look_up(tx, place, context, command)


def _look_up(tx: Tx, place: Place, context: Context, command: str) -> Stored | None:
    row = tx.at(place)
    if row is None:
        return None
    if (row["project_id"], row["command"], row["body_hash"]) != (tx.project_id, command, context.body_hash):
        raise ValidationFailed(code="idempotency_key_reuse")
    return Stored(row["result"], row["execution_id"])


def begun(connection: Connection, context: Context) -> str | None:
    """The execution that the first command with this request's key began, if it began one."""
    return connection.execute(_BEGUN, _of(context)).scalar()


def _of(context: Context) -> dict[str, str | None]:
    """What the row of this request's key is found by."""
    principal = context.principal
    return {"tenant": principal.tenant, "subject": principal.subject, "key": context.idempotency_key}


def remember(
    tx: Tx, context: Context, command: str, result: msgspec.Struct | bytes, execution_id: str | None = None
) -> None:
    """Keep the answer of this request's key, if it has one."""
    if context.idempotency_key is None:
        return
    principal = context.principal
    tx.add(
        idempotency,
        {
            "tenant": principal.tenant,
            "subject": principal.subject,
            "key": context.idempotency_key,
            "project_id": tx.project_id,
            "command": command,
            "body_hash": context.body_hash,
            "result": result if isinstance(result, bytes) else _encode(result),
            "execution_id": execution_id,
            "created_us": tx.now_us,
        },
    )
