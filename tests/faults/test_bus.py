"""Ephemeral events over two gateways while what carries them is killed: whoever was connected heard each that was
accepted, or was told a loss after the last one that it heard.

Strategy: clients of two tenants hear a topic at both gateways. A publisher alternates between the gateways and notes
what was accepted, in order. What a client saw must be that with declared gaps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import websockets
from tests.gateway_process import GatewayProcess, running, token
from tests.redis_server import RedisServer
from tests.small_daemon import SmallDaemon, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.e2e

TENANTS = ("a", "b")
TOPIC = "app.room"
# A fleet that is new grants little for a second, and less than is published here by the limits that are usual.
LIMITS = '[{"name": "many", "by": "ip", "limit": 1000000, "window": "60s"}]'


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths are limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="flx") as name:
        yield Path(name)


class Client:
    """One connection and what it saw: numbers of events, and reasons of gaps in their place."""

    def __init__(self, tenant: str, socket: websockets.ClientConnection) -> None:
        self.tenant = tenant
        self.socket = socket
        self.saw: list[int | str] = []
        self.chain: tuple[str, int] | None = None
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self.socket:
                frame: dict[str, Any] = json.loads(text)
                if frame.get("code") == "gap":
                    self.saw.append(frame["reason"])
                    self.chain = None
                elif frame["type"] == "event":
                    assert frame["ephemeral"]
                    assert (TOPIC, self.tenant) == (frame["event"], frame["data"]["tenant"])
                    # Without a gap the chain goes on: by itself it would show what is missing.
                    assert self.chain in (None, (frame["epoch"], frame["prev"])), (self.chain, frame)
                    self.chain = (frame["epoch"], frame["seq"])
                    self.saw.append(frame["data"]["n"])

    async def close(self) -> None:
        await self.socket.close()
        await self._task


@contextlib.asynccontextmanager
async def client(gateway: GatewayProcess, tenant: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token(tenant=tenant)}"}
    url = gateway.url.replace("http", "ws") + f"/ws/{tenant}"
    async with websockets.connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"type": "subscribe", "event": TOPIC}))
        while json.loads(await socket.recv())["type"] != "subscribed":
            pass
        found = Client(tenant, socket)
        try:
            yield found
        finally:
            await found.close()


class Publisher:
    """Publishes numbers at gateways in turn, and notes for each tenant what was accepted."""

    def __init__(self, gateways: list[GatewayProcess]) -> None:
        self.gateways = gateways
        self.accepted: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
        self.refused: list[int] = []
        self.count = 0

    async def publish(self, times: int) -> None:
        async with httpx.AsyncClient(timeout=10) as http:
            for _ in range(times):
                number, self.count = self.count, self.count + 1
                tenant = TENANTS[number % 2]
                gateway = self.gateways[number // 2 % len(self.gateways)]
                args = {"topic": TOPIC, "ephemeral": True, "data": {"n": number, "tenant": tenant}}
                headers = {"Authorization": f"Bearer {token(tenant=tenant)}"}
                answer = await http.post(f"{gateway.url}/v1/commands/event.publish", json=args, headers=headers)
                if answer.status_code == 200:
                    self.accepted[tenant].append(number)
                else:
                    assert (503, "bus_unavailable") == (answer.status_code, answer.json()["code"])
                    self.refused.append(number)


async def until(what: Callable[[], bool]) -> None:
    """Wait for something that others do."""
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110 - what changes belongs to others
            await asyncio.sleep(0.01)


async def until_bus(gateways: list[GatewayProcess], *, there: bool) -> None:
    """Wait until all gateways say that the bus is there, or is not."""
    async with httpx.AsyncClient() as http, asyncio.timeout(30):

        async def is_there(gateway: GatewayProcess) -> bool:
            return not (await http.get(f"{gateway.url}/ready")).json()["checks"]["bus"].get("note")

        for gateway in gateways:
            while await is_there(gateway) != there:  # noqa: ASYNC110 - what changes belongs to others
                await asyncio.sleep(0.02)


def judge(client: Client, accepted: list[int], refused: list[int]) -> None:
    """Hold that nothing is missing without a gap, nothing came twice, and nothing in another order."""
    events = [number for number in client.saw if isinstance(number, int)]
    assert sorted(set(events)) == events
    missing = [number for number in accepted if number not in events and number > events[0]]
    assert set(events) <= {*accepted, *refused}
    for number in missing:
        before = max(index for index, seen in enumerate(client.saw) if isinstance(seen, int) and seen < number)
        after = [index for index, seen in enumerate(client.saw) if isinstance(seen, int) and seen > number]
        told = client.saw[before : min(after, default=len(client.saw))]
        assert any(isinstance(seen, str) for seen in told), f"{number} is missing: {client.saw}"


@pytest.mark.parametrize("durable", [False, True])
def test_a_redis_that_is_killed_loses_nothing_silently(folder: Path, durable: bool) -> None:
    async def story() -> None:
        redis = RedisServer(folder, durable=durable)
        redis.start()
        async with contextlib.AsyncExitStack() as rest:
            rest.callback(redis.kill)
            await rest.enter_async_context(serving(SmallDaemon(), folder / "d.sock"))
            settings = {"redis_url": redis.url, "rate_limits": LIMITS}
            gateways = [await rest.enter_async_context(running(folder / "d.sock", folder, settings)) for _ in range(2)]
            await until_bus(gateways, there=True)
            clients = [
                await rest.enter_async_context(client(gateway, tenant)) for gateway in gateways for tenant in TENANTS
            ]
            publisher = Publisher(gateways)
            await publisher.publish(40)
            assert not publisher.refused
            # In the middle of what is published.
            publishing = asyncio.create_task(publisher.publish(60))
            await until(lambda: publisher.count >= 50)
            redis.kill()
            await publishing
            await until_bus(gateways, there=False)
            await publisher.publish(4)
            assert publisher.refused[-4:] == list(range(100, 104))
            redis.start()
            await until_bus(gateways, there=True)
            await publisher.publish(40)
            last = {tenant: publisher.accepted[tenant][-1] for tenant in TENANTS}
            await until(lambda: all(last[one.tenant] in one.saw for one in clients))
            for one in clients:
                judge(one, publisher.accepted[one.tenant], publisher.refused)
                assert "bus_restarted" in one.saw
                # After Redis was back all is as before.
                assert publisher.accepted[one.tenant][-20:] == one.saw[-20:]

    asyncio.run(story())


def test_a_gateway_that_is_killed_loses_nothing_silently(folder: Path) -> None:
    async def story() -> None:
        redis = RedisServer(folder)
        redis.start()
        async with contextlib.AsyncExitStack() as rest:
            rest.callback(redis.kill)
            await rest.enter_async_context(serving(SmallDaemon(), folder / "d.sock"))
            settings = {"redis_url": redis.url, "rate_limits": LIMITS}
            first, second = [
                await rest.enter_async_context(running(folder / "d.sock", folder, settings)) for _ in range(2)
            ]
            await until_bus([first, second], there=True)
            staying = [await rest.enter_async_context(client(second, tenant)) for tenant in TENANTS]
            publisher = Publisher([second])
            async with contextlib.AsyncExitStack() as dying:
                moving = [await dying.enter_async_context(client(first, tenant)) for tenant in TENANTS]
                publishing = asyncio.create_task(publisher.publish(100))
                await until(lambda: publisher.count >= 40)
                await first.kill()
                # It hears what comes from now on, of another epoch than before: that says that something is missing.
                heard = {one.tenant: one.chain for one in moving}
                moved = [await rest.enter_async_context(client(second, tenant)) for tenant in TENANTS]
                await publishing
                await publisher.publish(2)
            last = {tenant: publisher.accepted[tenant][-1] for tenant in TENANTS}
            await until(lambda: all(last[one.tenant] in one.saw for one in (*staying, *moved)))
            assert not publisher.refused
            for one in staying:
                assert publisher.accepted[one.tenant] == one.saw
            for one in moved:
                judge(one, publisher.accepted[one.tenant], [])
                before, now = heard[one.tenant], one.chain
                assert before is not None
                assert now is not None
                assert before[0] != now[0]

    asyncio.run(story())


def test_without_redis_events_go_by_the_daemon_to_all_gateways(folder: Path) -> None:
    async def story() -> None:
        daemon = SmallDaemon()
        async with contextlib.AsyncExitStack() as rest:
            async with serving(daemon, folder / "d.sock"):
                gateways = [await rest.enter_async_context(running(folder / "d.sock", folder)) for _ in range(2)]
                clients = [
                    await rest.enter_async_context(client(gateway, tenant))
                    for gateway in gateways
                    for tenant in TENANTS
                ]
                for number in range(20):
                    tenant = TENANTS[number % 2]
                    await daemon.tell(TOPIC, json.dumps({"n": number, "tenant": tenant}).encode(), tenant)
                expected = {tenant: list(range(index, 20, 2)) for index, tenant in enumerate(TENANTS)}
                await until(lambda: all(one.saw == expected[one.tenant] for one in clients))
            # Another process in its place knows nothing of what was told before.
            async with serving(SmallDaemon("e2"), folder / "d.sock"):
                await until(lambda: all("epoch" in one.saw for one in clients))

    asyncio.run(story())


@pytest.mark.parametrize("carrier", ["redis", "daemon"])
def test_who_was_at_a_gateway_that_is_killed_is_gone_within_the_bound(folder: Path, carrier: str) -> None:
    async def story() -> None:
        redis = RedisServer(folder)
        redis.start()
        rule = {"topics": "app.room", "presence": True}
        settings = {"topics": json.dumps([rule]), **({"redis_url": redis.url} if carrier == "redis" else {})}
        async with contextlib.AsyncExitStack() as rest:
            rest.callback(redis.kill)
            await rest.enter_async_context(serving(SmallDaemon(), folder / "d.sock"))
            first, second = [
                await rest.enter_async_context(running(folder / "d.sock", folder, settings)) for _ in range(2)
            ]
            headers = {"Authorization": f"Bearer {token('watcher', tenant='a')}"}
            url = second.url.replace("http", "ws") + "/ws/watcher"
            watcher = await rest.enter_async_context(websockets.connect(url, additional_headers=headers))
            await watcher.send(json.dumps({"type": "subscribe", "event": "presence.app.room"}))

            async def told(name: str) -> list[str]:
                async with asyncio.timeout(40):
                    while True:
                        frame = json.loads(await watcher.recv())
                        if frame["type"] == "presence" and frame["data"][name]:
                            assert "presence.app.room" == frame["event"]
                            return list(frame["data"][name])

            async def present() -> list[str]:
                async with httpx.AsyncClient(timeout=10) as http:
                    command = f"{second.url}/v1/commands/presence.list"
                    answer = await http.post(command, json={"topic": TOPIC}, headers=headers)
                    assert answer.status_code == 200, answer.text
                    return list(answer.json()["result"]["members"])

            # The other tenant's are none of its business.
            async with client(first, "a"), client(first, "b"):
                assert ["anna"] == await told("joined") == await present()
                loop = asyncio.get_running_loop()
                await first.kill()
                killed_s = loop.time()
                assert ["anna"] == await told("left")
                # 8 s of silence, 2 s for a return, and a busy machine.
                assert 5 < loop.time() - killed_s < 25
                assert [] == await present()

    asyncio.run(story())
