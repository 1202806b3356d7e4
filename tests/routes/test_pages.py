"""The gateway's own pages."""

from __future__ import annotations

import asyncio

from tests.gateway_app import running
from tests.gateway_process import bearer


def test_pages_answer_without_the_daemon() -> None:
    async def story() -> None:
        async with running() as gateway:
            get = gateway.client.get
            assert (await get("/")).json()["links"]["docs"] == "/docs"
            assert (await get("/health")).json() == {"status": "ok"}
            assert (await get("/.well-known/jwks.json")).json() == {"keys": []}
            assert (await get("/openapi.json")).json()["openapi"] == "3.1.0"
            assert (await get("/asyncapi.json")).json()["asyncapi"] == "3.0.0"
            assert "flx_ws_connections" in (await get("/metrics")).text
            for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "start.js"):
                assert (await get(f"/docs/{name}")).status_code == 200
            assert (await get("/docs/index.html")).status_code == 404
            ticket = await gateway.client.post("/v1/ws-ticket", headers=bearer())
            assert (ticket.status_code, ticket.json()["expires_in"]) == (201, 30)
            assert gateway.daemon.commands() == []

    asyncio.run(story())


def test_ready_says_why_not() -> None:
    async def story() -> None:
        async with running() as gateway:
            while (answer := await gateway.client.get("/ready")).status_code != 200:
                assert answer.json()["checks"]["events"]["ok"] is False
                await asyncio.sleep(0)  # nothing else in this loop lets the socket have its turn
            await gateway.parts.drain()
            answer = await gateway.client.get("/ready")
            assert (answer.status_code, answer.json()["reasons"]) == (503, ["drain: the service is stopping"])

    asyncio.run(story())
