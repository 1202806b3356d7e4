"""A gateway that stops: its clients are sent away one after the other, and go on at another one with nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import websockets
from tests.gateway_process import GatewayProcess, bearer, children_of, free_port, running
from tests.small_daemon import SmallDaemon, serving
from websockets.asyncio.client import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.service import Service
    from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.e2e

FLEET = 300
DRAIN_S = 2.0
TOPIC = "app.news"


class Client:
    """One of a fleet: what it heard, and how it was sent away."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[int] = []
        self.codes: list[int] = []
        self.in_ms: list[int] = []
        self.subscribed = asyncio.Event()
        self.sent_away = asyncio.Event()
        self._pos: str | None = None

    async def follow(self, addresses: list[str], last: int) -> None:
        """Hear everything up to an event, at the first address and after each end at the next."""
        for address in addresses:
            with contextlib.suppress(websockets.ConnectionClosed):
                async with connect(f"{address}/ws/{self.name}", additional_headers=bearer(), proxy=None) as connection:
                    await self._hear(connection, last)
                    return
            assert connection.close_code is not None
            self.codes.append(connection.close_code)
            self.sent_away.set()
        pytest.fail(f"{self.name} was sent away everywhere")

    async def _hear(self, connection: ClientConnection, last: int) -> None:
        asked = {"type": "subscribe", "event": TOPIC, **({} if self._pos is None else {"from": self._pos})}
        await connection.send(json.dumps(asked))
        while not self.heard or self.heard[-1] < last:
            message: dict[str, Any] = json.loads(await connection.recv())
            self._pos = message.get("pos", self._pos)
            match message["type"]:
                case "event":
                    assert message["prev"] == (self.heard[-1] if self.heard else message["prev"])
                    self.heard.append(message["seq"])
                case "subscribed":
                    self.subscribed.set()
                case "reconnect":
                    self.in_ms.append(message["in_ms"])
                case "connected" | "heartbeat":
                    pass
                case other:
                    pytest.fail(f"{self.name}: {other} {message}")


@contextlib.asynccontextmanager
async def two(folder: Path, face: str) -> AsyncIterator[tuple[SmallDaemon, list[GatewayProcess], list[str]]]:
    """A daemon, two gateways of it, and their addresses for this face."""
    daemon, socket = SmallDaemon(), folder / "d.sock"
    async with serving(daemon, socket), contextlib.AsyncExitStack() as stack:
        gateways, addresses = [], []
        for name in ("one", "other"):
            port = free_port()
            settings = {"realtime_port": str(port), "drain_s": str(DRAIN_S)}
            gateway = await stack.enter_async_context(running(socket, folder / name, settings))
            gateways.append(gateway)
            addresses.append(f"ws://127.0.0.1:{port if face == 'native' else gateway.port}")
        yield daemon, gateways, addresses


@pytest.mark.parametrize("face", ["asgi", "native"])
def test_a_fleet_is_sent_away_over_some_time_and_loses_nothing(face: str) -> None:
    async def story(folder: Path) -> None:
        async with two(folder, face) as (daemon, (one, _), addresses):
            fleet = [Client(f"c{number}") for number in range(FLEET)]
            last = 80
            followers = [asyncio.create_task(client.follow(addresses, last)) for client in fleet]
            async with asyncio.timeout(60):
                await asyncio.gather(*(client.subscribed.wait() for client in fleet))
                for number in range(10):
                    await daemon.publish(TOPIC, number)
                for worker in workers_of(one):
                    os.kill(worker, signal.SIGUSR1)
                await one.ready(503)
                await refused(one, addresses[0])
                for number in range(10, last - 10):
                    await daemon.publish(TOPIC, number)
                    await asyncio.sleep(DRAIN_S / last)
                # Whoever had all of it before its turn would leave by itself.
                await asyncio.gather(*(client.sent_away.wait() for client in fleet))
                for number in range(last - 10, last):
                    await daemon.publish(TOPIC, number)
                await asyncio.gather(*followers)
            for client in fleet:
                assert client.heard == list(range(1, last + 1))
                assert client.codes == [1012]
            moments = sorted(in_ms for client in fleet for in_ms in client.in_ms)
            assert len(moments) == FLEET
            # Evenly over the time: each third has about a third of them.
            for third in range(3):
                begin, end = (DRAIN_S * 1000 * part / 3 for part in (third, third + 1))
                assert FLEET / 4 < sum(begin <= moment <= end for moment in moments) < FLEET / 2

    with tempfile.TemporaryDirectory(prefix="flx") as name:
        asyncio.run(story(Path(name)))


def workers_of(gateway: GatewayProcess) -> list[int]:
    """The processes that serve."""
    children = children_of(gateway.process.pid)
    return [pid for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def refused(gateway: GatewayProcess, address: str) -> None:
    """Nobody comes in any more, and is told when to try again."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        await connect(f"{address}/ws/late", additional_headers=bearer(), proxy=None)
    assert caught.value.response.status_code == 503
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        assert (await http.get("/v1/system/info", headers=bearer())).status_code == 200


@pytest.mark.parametrize("count", [0, 6])
def test_a_service_that_stops_gives_its_connections_the_time_and_waits_for_nobody_else(
    start_service: Callable[..., Service], count: int
) -> None:
    port = free_port()
    service = start_service(environ={"FLX_REALTIME_PORT": str(port), "FLX_DRAIN_S": "8"})
    native = f"ws://127.0.0.1:{port}"

    async def story() -> list[tuple[int, int]]:
        async with contextlib.AsyncExitStack() as stack:
            headers = {"Authorization": f"Bearer {service.token()}"}
            connections = [
                await stack.enter_async_context(
                    connect(f"{address}/ws/c{number}", additional_headers=headers, proxy=None)
                )
                for number in range(count // 2)
                for address in (service.ws_url, native)
            ]
            service.signal(signal.SIGTERM)
            return list(await asyncio.gather(*(sent_away(connection) for connection in connections)))

    began = time.monotonic()
    told = asyncio.run(story())
    assert service.ended() == 0
    took_s = time.monotonic() - began
    assert [1012] * count == [code for _, code in told]
    if count:
        assert max(in_ms for in_ms, _ in told) == 8000
        assert took_s > 7.9
    else:
        assert took_s < 7.9, "it waited although nobody was there"


async def sent_away(connection: ClientConnection) -> tuple[int, int]:
    """When it was told to go, and the code that it was closed with."""
    in_ms = -1
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            in_ms = json.loads(await connection.recv()).get("in_ms", in_ms)
    assert connection.close_code is not None
    return in_ms, connection.close_code
