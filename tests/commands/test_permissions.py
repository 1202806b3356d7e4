"""Roles are globs over command names."""

from __future__ import annotations

from itertools import pairwise

import pytest

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import ROLES, authorise, decide, permits
from flx_api.errors import Forbidden


def test_viewer_changes_nothing() -> None:
    """A viewer may call exactly the commands that read; but not who was shut out, or who is connected."""
    allowed = {name for name, command in COMMANDS.items() if permits(["viewer"], name)}
    reading = {name for name, command in COMMANDS.items() if command.idempotency == "read"}
    assert reading - {"token.revocations", "connection.list", "connection.slowest"} == allowed


def test_roles_grow() -> None:
    """Each role may do what the one before may, and admin everything."""
    sets = [
        {name for name in COMMANDS if permits([role], name)} for role in ("viewer", "operator", "developer", "admin")
    ]
    assert all(low < high for low, high in pairwise(sets))
    assert set(COMMANDS) == sets[-1]


@pytest.mark.parametrize("roles", [[], ["Admin"], ["admin "], ["*"], ["\u0430dmin"]])
def test_unknown_roles_grant_nothing(roles: list[str]) -> None:
    """Only names that are declared count, to the letter (the last one here is Cyrillic)."""
    assert not any(permits(roles, name) for name in COMMANDS)


def test_authorise() -> None:
    """Public commands and those for everyone need no role; others are refused with the permission's name."""
    authorise(COMMANDS["auth.login"], [])
    authorise(COMMANDS["auth.logout"], [])
    authorise(COMMANDS["pipeline.run"], ["operator"])
    with pytest.raises(Forbidden, match=r"pipeline\.run"):
        authorise(COMMANDS["pipeline.run"], ["viewer"])
    assert "admin" in ROLES


def test_what_decides_is_what_authorises() -> None:
    """For every command and any roles; and the rule is one of the role's own."""
    for command in COMMANDS.values():
        for roles in ([], ["viewer"], ["x", "operator"], ["viewer", "developer"], ["admin"]):
            found = decide(command, roles)
            try:
                authorise(command, roles)
            except Forbidden:
                assert (found.allowed, found.by) == (False, "none")
                continue
            assert found.allowed
            if found.by == "role":
                assert found.role is not None
                assert found.rule in ROLES[found.role]
                assert permits([found.role], command.name)
                assert not permits(roles[: roles.index(found.role)], command.name)
            else:
                assert (command.public, command.everyone)[found.by == "everyone"]
