"""The framework binds what the table declares, and its errors are ours."""

from __future__ import annotations

import asyncio

from tests.gateway_app import Wire, running, scope
from tests.gateway_process import bearer

from flx_api.routes.table import RESOURCES


def test_every_resource_is_bound() -> None:
    async def story() -> None:
        async with running() as gateway:
            for resource in RESOURCES:
                path = resource.template.replace("{id}", "x").replace("{name}", "x").replace("{pipeline}", "x")
                body = (
                    {"name": "x", "username": "anna", "password": "12345678"} if resource.body == "required" else None
                )
                answer = await gateway.client.request(resource.method, path, headers=bearer(), json=body)
                assert answer.status_code in {200, 201, 202}, (resource, answer.text)
                assert gateway.daemon.commands()[-1].command == resource.command

    asyncio.run(story())


def test_an_error_inside_the_framework_is_a_problem_document() -> None:
    async def story() -> None:
        async with running() as gateway:
            answer = await gateway.client.post("/v1/pipelines", headers=bearer(), json=[])
            assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["x-request-id"] == answer.json()["request_id"]

    asyncio.run(story())


def test_a_client_that_leaves_is_no_fault_of_ours() -> None:
    async def story() -> None:
        async with running() as gateway:
            gateway.daemon.answers["execution.wait"] = lambda _: None
            wire = Wire()
            headers = {name.lower(): value for name, value in bearer().items()}
            await gateway.app(scope(path="/v1/executions/x/wait", headers=headers), wire.receive, wire.send)
            assert gateway.parts.metrics.requests == {("/v1/executions/{id}/wait", "GET", "4xx"): 1}

    asyncio.run(story())
