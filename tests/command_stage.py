"""A gateway with a lane and a daemon behind it, to which commands are sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from tests.gateway_app import running
from tests.gateway_process import bearer

from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway_app import Running

ECHO = b'{"command":"system.echo","args":{"n":1}}'


class Client:
    """A client of the lane, with one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.headers: dict[str, str] = {}

    async def answer(self) -> tuple[int, Any]:
        """Status and document of the answer."""
        async with asyncio.timeout(20):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            for name, value in (line.split(": ", 1) for line in lines):
                self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
            body = await self._reader.readexactly(int(self.headers["content-length"]))
        await self.leave()
        return int(status.split()[1]), json.loads(body)

    async def leave(self) -> None:
        """Go away."""
        self._writer.close()
        # Who is cancelled here would cancel what everybody waits for by whom it is closed once more.
        await asyncio.shield(asyncio.gather(self._writer.wait_closed(), return_exceptions=True))


class Stage:
    """A running gateway with a lane."""

    def __init__(self, gateway: Running, port: int) -> None:
        self.gateway = gateway
        self.parts = gateway.parts
        self.daemon = gateway.daemon
        self.rides = gateway.parts.rides
        self._port = port
        # What did not end as a ride.
        self.gone_on = 0
        go_on = self.parts.lane.go_on

        def counted(*args: Any) -> None:
            self.gone_on += 1
            go_on(*args)

        self.parts.lane.go_on = counted  # type: ignore[method-assign, assignment]

    async def ask(
        self, body: bytes = ECHO, headers: dict[str, str] | None = None, query: str = "", path: str = "/v1/execute"
    ) -> Client:
        """Send a request down the lane."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        own = {"host": "gateway", **bearer(), "content-type": "application/json", "content-length": str(len(body))}
        lines = [
            f"POST {path}{query} HTTP/1.1",
            *(f"{name}: {value}" for name, value in (own | (headers or {})).items()),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return Client(reader, writer)

    def hold(self, command: str, held: int) -> None:
        """Let the daemon not answer the first ones."""
        seen: list[CommandFrame] = []

        def answer(frame: CommandFrame) -> ReplyFrame | None:
            seen.append(frame)
            return None if len(seen) <= held else ReplyFrame(result=b"[%d]" % len(seen))

        self.daemon.answers[command] = answer

    async def outstanding(self, count: int) -> None:
        """Until so many commands have reached the daemon."""
        async with asyncio.timeout(20):
            while len(self.daemon.commands()) < count:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)

    def requests(self, path: str = "/v1/execute") -> dict[str, int]:
        """The requests of the route that were counted, by class of the status."""
        counted = self.parts.metrics.requests
        return {status: count for (route, _, status), count in counted.items() if route == path}

    async def counted(self) -> dict[str, int]:
        """The same, as soon as there are any."""
        async with asyncio.timeout(20):
            while not self.requests():  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)
        return self.requests()

    def phases(self) -> dict[str, int]:
        """How often each phase of a command was timed."""
        names = ("receive", "admit", "authorise", "dispatch", "upstream", "respond", "record")
        counted = {
            name: counts[-1] for name, (counts, _) in zip(names, self.parts.metrics.counters.phases(), strict=True)
        }
        return {name: count for name, count in counted.items() if name not in {"receive", "admit"}}


@contextlib.asynccontextmanager
async def stage(**settings: Any) -> AsyncIterator[Stage]:
    """A gateway of these settings."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with running(**settings) as gateway:
            gateway.parts.lane.start(listening.fileno())
            yield Stage(gateway, listening.getsockname()[1])
