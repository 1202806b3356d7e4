"""Who may do what: the permission of a command is its name, a role is a set of globs over them.

The same function decides in the gateway (before a command travels) and in the daemon (which believes nobody).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

from flx_api.errors import Forbidden
from flx_api.models.plan import Permission

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flx_api.commands import Command

_VIEWER = (
    "*.list",
    "*.get",
    "*.describe",
    "*.validate",
    "execution.logs",
    "execution.streams",
    "execution.attempts",
    "execution.wait",
    "system.status",
    "system.info",
    "system.echo",
)
_OPERATOR = (*_VIEWER, "pipeline.run", "schedule.run", "execution.cancel", "execution.retry")
_DEVELOPER = (*_OPERATOR, "pipeline.*", "schedule.*", "event.publish")

ROLES: dict[str, tuple[str, ...]] = {
    "viewer": _VIEWER,
    "operator": _OPERATOR,
    "developer": _DEVELOPER,
    "admin": ("*",),
}
"""Role names to globs over command names. A role that is not here grants nothing."""


_RESERVED: frozenset[str] = frozenset({"connection.list"})
"""Who is connected concerns those who run the service: no glob over all nouns but `*` grants it."""


def permits(roles: Iterable[str], permission: str) -> bool:
    """Whether any of the roles grants the permission."""
    return _grant(tuple(roles), permission)


# Asked twice for each command on its way; the answer never changes. Bounded, since role names come from tokens.
@lru_cache(maxsize=1024)
def _grant(roles: tuple[str, ...], permission: str) -> bool:
    return any(_covers(glob, permission) for role in roles for glob in ROLES.get(role, ()))


def _covers(glob: str, permission: str) -> bool:
    if permission in _RESERVED and glob.startswith("*."):
        return False
    return fnmatchcase(permission, glob)


def granting(permission: str) -> tuple[str, ...]:
    """The roles that grant a permission."""
    return tuple(role for role in ROLES if permits((role,), permission))


def authorise(command: Command, roles: Iterable[str]) -> None:
    """Let a principal with these roles call the command.

    Raises:
        Forbidden: none of the roles grants it.
    """
    if not command.public and not command.everyone and not permits(roles, command.name):
        raise needed(command)


def needed(command: Command) -> Forbidden:
    """The refusal of who may not call the command."""
    return Forbidden(f"The permission {command.name} is needed")


def decide(command: Command, roles: Iterable[str]) -> Permission:
    """Whether a principal with these roles may call the command, and what decides: the first role that grants it."""
    if command.public or command.everyone:
        return Permission(permission=command.name, allowed=True, by="public" if command.public else "everyone")
    for role in roles:
        for glob in ROLES.get(role, ()):
            if _covers(glob, command.name):
                return Permission(permission=command.name, allowed=True, by="role", role=role, rule=glob)
    return Permission(permission=command.name, allowed=False, by="none")
