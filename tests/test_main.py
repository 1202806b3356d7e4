"""The application: its lifespan, and what it is made from."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.gateway_app import settings
from tests.gateway_process import SECRET

from flx_api.config import load
from flx_api.errors import StartupError
from flx_api.limits import shared_memory
from flx_api.main import DAEMON_SOCKET, app_factory, create_app
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Message
    from flx_api.main import Gateway


class Server:
    """Drives a lifespan."""

    def __init__(self, app: Gateway) -> None:
        self.inbound: asyncio.Queue[Message] = asyncio.Queue()
        self.outbound: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.create_task(app({"type": "lifespan"}, self.inbound.get, self.outbound.put))

    async def tell(self, kind: str) -> Message:
        self.inbound.put_nowait({"type": kind})
        async with asyncio.timeout(10):
            return await self.outbound.get()


def test_a_lifespan_drains_on_signal_and_ends() -> None:
    async def story() -> None:
        app = create_app(settings(log_level="error"), Endpoint(path="/nonexistent.sock"))
        server = Server(app)
        assert await server.tell("lifespan.startup") == {"type": "lifespan.startup.complete"}
        assert app.parts is not None
        os.kill(os.getpid(), signal.SIGUSR1)
        await app.parts.draining.wait()
        assert await server.tell("lifespan.shutdown") == {"type": "lifespan.shutdown.complete"}
        await server.task

    asyncio.run(story())


def test_a_failed_start_is_said_and_not_raised() -> None:
    async def story() -> None:
        app = create_app(settings(log_level="error"), Endpoint(path="/nonexistent.sock"))
        app._settings = load({}, {"data_dir": "/nonexistent", "log_level": "error"})
        server = Server(app)
        message = await server.tell("lifespan.startup")
        assert message["type"] == "lifespan.startup.failed"
        assert "FLX_JWT_SECRET_KEY" in message["message"]
        await server.task

    asyncio.run(story())


def test_windows_that_do_not_fit_are_told_before_there_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that told it would be started again, and would tell it again."""
    memory = shared_memory.create(size=2 * shared_memory.COUNTER_BYTES)
    monkeypatch.setenv(shared_memory.SHARED_MEMORY, str(memory))
    try:
        with pytest.raises(StartupError) as caught:
            create_app(settings(log_level="error"), Endpoint(path="/nonexistent.sock"))
    finally:
        os.close(memory)
    assert "FLX_RATE_LIMITS: the memory of the windows is too small" == str(caught.value)


def test_the_environment_says_where_the_daemon_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLX_JWT_SECRET_KEY", SECRET)
    with pytest.raises(StartupError):
        app_factory()
    monkeypatch.setenv(DAEMON_SOCKET, "/nonexistent.sock")
    assert app_factory().parts is None


def test_what_few_need_is_not_imported_before_they_do() -> None:
    """Each costs a noticeable part of a start: the documentation, the daemon, clients of other services."""
    few = ("swagger_ui_bundle", "flx_api.routes.openapi", "flx_api.routes.asyncapi", "flx_api.daemon", "redis", "httpx")
    code = f"import sys, flx_api.main; print([m for m in {few} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
