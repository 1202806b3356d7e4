"""The table of routes fits the registry of commands."""

from __future__ import annotations

import re

import msgspec

from flx_api.commands import COMMANDS
from flx_api.routes.table import PAGES, RESOURCES, Page, Resource

ROUTES: tuple[Resource | Page, ...] = (*RESOURCES, *PAGES)


def test_every_resource_is_a_command_that_knows_the_values_of_its_path() -> None:
    for resource in RESOURCES:
        command = COMMANDS[resource.command]
        fields = {field.encode_name for field in msgspec.structs.fields(command.args)}
        assert set(re.findall(r"\{(\w+)\}", resource.template)) <= fields
        assert (resource.access == "public") == command.public
        assert resource.body == "none" or resource.method in {"POST", "PUT", "PATCH"}
        assert resource.method != "GET" or command.idempotency == "read"


def test_no_route_is_declared_twice() -> None:
    keys = [(route.method, route.template) for route in ROUTES]
    assert len(keys) == len(set(keys))
