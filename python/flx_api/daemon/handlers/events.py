"""`event.publish`: what applications tell one another through the journal.

Rules:
- Topics `app.*` and `user.{sub}` only: nobody speaks for the daemon. An event belongs to the publisher's tenant.
- It is in the journal before the answer, so whoever resumes hears it, once for an idempotency key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.daemon.handlers import idempotency
from flx_api.errors import ValidationFailed
from flx_api.models.event import PUBLISHED_PREFIXES, Published

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.daemon.journal import Tx
    from flx_api.models.event import PublishArgs

PUBLISH: Final = "event.publish"
MAX_DATA_BYTES: Final = 65_536


async def publish(context: Context, args: PublishArgs) -> Published:
    """Write an event of an application into the journal."""
    _check(args)

    def change(tx: Tx) -> Published:
        return Published(1, 0, tx.emit(args.topic, args.data, tenant=context.principal.tenant))

    return await context.services.journal.write(idempotency.once(context, PUBLISH, change))


def _check(args: PublishArgs) -> None:
    if not args.topic.startswith(PUBLISHED_PREFIXES):
        raise ValidationFailed.field("args.topic", "is not one that can be published to: app.* and user.{sub} are")
    for name in ("count", "per_s", "topics"):
        if getattr(args, name) is not None:
            raise ValidationFailed.field(f"args.{name}", "is for topics of one gateway alone")
    if len(msgspec.json.encode(args.data)) > MAX_DATA_BYTES:
        raise ValidationFailed.field("args.data", f"is longer than {MAX_DATA_BYTES:,} bytes")


HANDLERS: Mapping[str, Handler] = {PUBLISH: publish}
