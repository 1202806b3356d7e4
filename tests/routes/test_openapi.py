"""The OpenAPI document: whole, and the same as what is served."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from tests.gateway_app import running
from tests.routes.references import references

from flx_api.commands import COMMANDS
from flx_api.models.envelope import BatchRequest
from flx_api.routes import table
from flx_api.routes.openapi import document

ROUTES: tuple[table.Resource | table.Page, ...] = (*table.RESOURCES, *table.PAGES)
METHODS = {"get", "put", "post", "delete", "patch"}


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    }


def test_it_is_what_is_served() -> None:
    async def story() -> set[tuple[str, str]]:
        async with running() as gateway:
            return {(method, route.template) for route in gateway.parts.paths for method in route.access}

    served = asyncio.run(story())
    assert served == set(operations())
    assert served == {(route.method, route.template) for route in ROUTES}


def test_its_structure_is_that_of_openapi_3_1() -> None:
    made = document()
    assert made["openapi"] == "3.1.0"
    assert set(made) == {"openapi", "info", "paths", "components"}
    assert {"title", "version"} <= set(made["info"])
    ids = [operation["operationId"] for operation in operations().values()]
    assert len(ids) == len(set(ids))
    for (method, path), operation in operations().items():
        assert path.startswith("/")
        assert method.lower() in METHODS
        assert operation["summary"].endswith(".")
        assert any(status.startswith("2") for status in operation["responses"])
        in_path = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        keys = [(one["in"], one["name"]) for one in operation["parameters"]]
        assert len(keys) == len(set(keys)), (method, path)
        for one in operation["parameters"]:
            assert set(one) <= {"name", "in", "required", "schema", "description"}
            assert one["in"] in {"path", "query", "header"}
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status)
            assert "$ref" in response or "description" in response


def test_every_reference_leads_somewhere() -> None:
    made = document()
    for reference in references(made):
        place = made
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
        assert place


def test_tokens_are_asked_for_where_they_are_needed() -> None:
    for route in ROUTES:
        operation = operations()[route.method, route.template]
        ways: dict[str, list[dict[str, list[str]]]] = {
            "token": [{"bearer": []}],
            "ticket": [{"bearer": []}, {"ticket": []}],
        }
        assert operation["security"] == ways.get(route.access, [])


def test_examples_are_what_they_are_examples_of() -> None:
    content = operations()["POST", "/v1/batch"]["requestBody"]["content"]["application/json"]
    batch = msgspec.json.decode(msgspec.json.encode(content["example"]), type=BatchRequest)
    for operation in batch.operations:
        command = COMMANDS[operation.command]
        assert isinstance(msgspec.json.decode(operation.args, type=command.args), command.args)


def test_every_command_can_be_called() -> None:
    assert document()["components"]["schemas"]["CommandName"]["enum"] == sorted(COMMANDS)
