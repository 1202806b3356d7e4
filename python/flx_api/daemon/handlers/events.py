"""`event.publish`: what applications tell one another, through the journal or past it.

Rules:
- Topics `app.*` and `user.{sub}` only: nobody speaks for the daemon. An event belongs to the publisher's tenant.
- It is in the journal before the answer, so whoever resumes hears it, once for an idempotency key.
- An ephemeral one is told to those who follow now; its key is known for as long as it is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.commands.publishing import PUBLISH, payload
from flx_api.daemon.handlers import idempotency
from flx_api.errors import Conflict, ValidationFailed
from flx_api.events.ephemeral_log import Once
from flx_api.models.event import Published

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.daemon.journal import Tx
    from flx_api.models.event import PublishArgs
    from flx_api.models.presence import PresenceList, PresenceListArgs


def publish(context: Context, args: PublishArgs) -> Published | Awaitable[Published]:
    """Write an event of an application into the journal, or tell it as an ephemeral one."""
    services, principal = context.services, context.principal
    data = payload(args, services.settings.topics, principal.roles)
    if args.ephemeral:
        if not context.dry_run:
            key = context.idempotency_key
            once = None if key is None else Once((principal.tenant, principal.subject, key), context.body_hash)
            if not services.ephemeral.append(principal.tenant, args.topic, data, once):
                raise ValidationFailed(code="idempotency_key_reuse")
        return Published(1, 0)

    def change(tx: Tx) -> Published:
        return Published(1, 0, tx.emit(args.topic, args.data, tenant=principal.tenant))

    return services.journal.write(idempotency.once(context, PUBLISH, change))


def present(_: Context, __: PresenceListArgs) -> PresenceList:
    """Refuse: gateways know who hears what, and the daemon does not.

    Raises:
        Conflict: always.
    """
    detail = "A gateway tells who is present; ask one, and not in a batch"
    raise Conflict(detail)


HANDLERS: Mapping[str, Handler] = {PUBLISH: publish, "presence.list": present}
