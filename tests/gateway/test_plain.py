"""Which commands may be plain. What is made of one: properties/test_plain_commands.py."""

from __future__ import annotations

from tests.gateway_app import built

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import ROLES, permits
from flx_api.gateway.plain import plain_commands


def test_who_may_call_a_plain_command_is_who_is_permitted() -> None:
    for name, idempotency, _, _, roles in plain_commands(()):
        assert COMMANDS[name].idempotency == idempotency
        assert [role for role in ROLES if permits((role,), name)] == roles


def test_what_is_special_by_nature_is_not_plain() -> None:
    special = built().dispatcher.special
    assert {"connection.list", "connection.disconnect", "presence.list"} <= special
    names = {name for name, *_ in plain_commands(special)}
    assert not names & special
    assert {"system.echo", "pipeline.run", "pipeline.list"} <= names
    assert not names & {"execution.wait", "event.publish", "auth.login", "auth.logout"}
    assert {name for name, _, shared, _, _ in plain_commands(()) if shared} <= {
        name for name, command in COMMANDS.items() if command.idempotency == "read"
    }
