"""Plain commands: those that ask for nothing special, and so go the short way.

Strategy: of nearly all commands a gateway has to know only who asks, whether they may, and which limits apply. That is
one call of the native core (`flx_api._core.PlainCommands`): it reads the body of `/v1/execute`, decides, and makes the
frame; another one makes the whole answer of the reply. Whatever it is not sure about, a mistake included, goes the
general way (`flx_api.gateway.routes_fast`), which is the judge of this one.

Rules:
- Not plain, whoever calls them: what waits by nature, what a gateway has a part in, what needs no role.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import granting
from flx_api.commands.publishing import PUBLISH
from flx_api.gateway.dispatch import SHARED, WAIT

if TYPE_CHECKING:
    from collections.abc import Collection

    from flx_api.commands import Command


def plain_commands(special: Collection[str]) -> list[tuple[str, str, bool, bool, list[str]]]:
    """The commands that may be plain, as `flx_api._core.PlainCommands` takes them.

    Args:
        special: those that a gateway has a part in.
    """
    return [
        (command.name, command.idempotency, command.name in SHARED, command.vital, list(granting(command.name)))
        for command in COMMANDS.values()
        if command.name not in special and _may_be_plain(command)
    ]


def _may_be_plain(command: Command) -> bool:
    return not command.public and not command.everyone and command.name not in {WAIT, PUBLISH}
