"""Two gateways and one daemon, all real: what is said at one reaches who is at the other, and each knows of all.

By the daemon's stream, and with Redis, which may also carry it between gateways of two daemons. Clients of the second
gateway are on both of its faces.
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
from tests import daemon_process, gateway_process
from tests.gateway_process import GatewayProcess, free_port, token
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.service import Service

    Start = Callable[..., Service]

pytestmark = pytest.mark.e2e

carriers = pytest.mark.parametrize("carrier", ["daemon", "redis"])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths are limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="flx") as name:
        yield Path(name)


class Fleet:
    """Two gateways; the second one also has a native listener."""

    def __init__(self, first: GatewayProcess, second: GatewayProcess, realtime: int) -> None:
        self.first = first
        self.second = second
        self.faces = {"asgi": f"ws://127.0.0.1:{second.port}", "native": f"ws://127.0.0.1:{realtime}"}

    async def ask(self, at: GatewayProcess, command: str, args: dict[str, Any]) -> Any:
        """The result of a command of an administrator."""
        async with httpx.AsyncClient(timeout=20) as http:
            headers = {"Authorization": f"Bearer {token('boss')}"}
            answer = await http.post(f"{at.url}/v1/commands/{command}", json=args, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.json()["result"]


@contextlib.asynccontextmanager
async def fleet(folder: Path, carrier: str, *, daemons: int = 1) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as rest:
        own = [await rest.enter_async_context(daemon_process.running(folder / f"d{n}")) for n in range(daemons)]
        settings = {"grpc_token_file": str(folder / "d0" / "token")}
        if carrier == "redis":
            redis = RedisServer(folder)
            redis.start()
            rest.callback(redis.kill)
            settings["redis_url"] = redis.url
        port, nowhere = free_port(), folder / "nowhere"
        of_one, of_other = ({"grpc_daemon_host": f"127.0.0.1:{daemon.port}"} for daemon in (own[0], own[-1]))
        first = await rest.enter_async_context(gateway_process.running(nowhere, folder, settings | of_one))
        more = {**settings, **of_other, "realtime_port": str(port)}
        second = await rest.enter_async_context(gateway_process.running(nowhere, folder, more))
        yield Fleet(first, second, port)


class Client:
    """One connection and the events that it was told."""

    def __init__(self, name: str, socket: websockets.ClientConnection) -> None:
        self.name = name
        self.socket = socket
        self.heard: list[tuple[str, Any]] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self.socket:
                frame: dict[str, Any] = json.loads(text)
                assert frame["type"] in {"event", "heartbeat"}, frame
                if frame["type"] == "event":
                    self.heard.append((frame["event"], frame["data"]))

    async def closed(self) -> int | None:
        """The code that it is closed with."""
        async with asyncio.timeout(20):
            await self._task
        return self.socket.close_code

    async def close(self) -> None:
        await self.socket.close()
        await self._task


@contextlib.asynccontextmanager
async def client(base: str, name: str, text: str, *topics: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {text}"}
    async with websockets.connect(f"{base}/ws/{name}", additional_headers=headers) as socket:
        assert "connected" == json.loads(await socket.recv())["type"]
        for topic in topics:
            await socket.send(json.dumps({"type": "subscribe", "event": topic}))
            answer = json.loads(await socket.recv())
            assert ("subscribed", topic) == (answer["type"], answer.get("event")), answer
        found = Client(name, socket)
        try:
            yield found
        finally:
            await found.close()


async def until(what: Callable[[], bool]) -> None:
    """Wait for something that others do."""
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110 - what changes belongs to others
            await asyncio.sleep(0.01)


async def at_last(what: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that has to be asked for."""
    async with asyncio.timeout(30):
        while not await what():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


@carriers
@pytest.mark.parametrize("ephemeral", [False, True], ids=["journalled", "ephemeral"])
def test_a_personal_message_comes_to_its_subject_at_another_gateway_and_to_nobody_else(
    folder: Path, carrier: str, *, ephemeral: bool
) -> None:
    async def story() -> None:
        async with fleet(folder, carrier) as gateways, contextlib.AsyncExitStack() as rest:
            texts = {
                "alice": token("alice", ("viewer",)),
                "bob": token("bob", ("admin",)),
                "stranger": token("alice", ("admin",), tenant="other"),
            }
            clients = [
                await rest.enter_async_context(client(base, f"{name}-{face}", text, "*"))
                for face, base in gateways.faces.items()
                for name, text in texts.items()
            ]
            # Who may hear nothing but its own still hears that.
            own = [
                await rest.enter_async_context(client(base, f"own-{face}", texts["alice"], "user.alice"))
                for face, base in gateways.faces.items()
            ]
            # One at the gateway where it is published.
            near = await rest.enter_async_context(
                client(gateways.first.url.replace("http", "ws"), "near", texts["alice"], "*")
            )
            message = {"topic": "user.alice", "data": {"text": "for you"}, "ephemeral": ephemeral}
            await gateways.ask(gateways.first, "event.publish", message)
            await gateways.ask(gateways.first, "event.publish", {**message, "topic": "user.nobody"})
            broadcast = {"topic": "app.all", "data": {"text": "for all"}, "ephemeral": ephemeral}
            await gateways.ask(gateways.first, "event.publish", broadcast)
            mine = ("user.alice", {"text": "for you"})
            everybody = ("app.all", {"text": "for all"})
            expected = {"alice": [mine, everybody], "bob": [everybody], "stranger": []}
            ours = [one for one in [*clients, near] if not one.name.startswith("stranger")]
            await until(lambda: all(everybody in one.heard for one in ours))
            # Of the other tenant nobody heard any of it: what is published for it comes alone.
            async with httpx.AsyncClient(timeout=20) as http:
                answer = await http.post(
                    f"{gateways.first.url}/v1/commands/event.publish",
                    json=broadcast,
                    headers={"Authorization": f"Bearer {texts['stranger']}"},
                )
                assert answer.status_code == 200, answer.text
            strangers = [one for one in clients if one.name.startswith("stranger")]
            await until(lambda: all(one.heard for one in strangers))
            assert [[everybody]] * 2 == [one.heard for one in strangers]
            for one in [*clients, near]:
                name = one.name.partition("-")[0]
                if name != "stranger":
                    # Redis has an order for each topic, the daemon one for all.
                    assert sorted(expected.get(name, expected["alice"])) == sorted(one.heard), one.name
            await until(lambda: all(one.heard for one in own))
            assert [[mine]] * 2 == [one.heard for one in own]

    asyncio.run(story())


@carriers
def test_connections_of_all_gateways_are_listed_and_ended_at_any_of_them(folder: Path, carrier: str) -> None:
    async def story() -> None:
        async with fleet(folder, carrier) as gateways, contextlib.AsyncExitStack() as rest:
            bases = [gateways.first.url.replace("http", "ws"), *gateways.faces.values()]
            dora, other = token("dora", ("viewer",)), token("dora", ("viewer",), tenant="other")
            clients = [
                await rest.enter_async_context(client(base, f"d-{number}", dora, "*"))
                for number, base in enumerate([*bases, *bases])
            ]
            stranger = await rest.enter_async_context(client(bases[1], "x", other))

            async def listed(at: GatewayProcess, **args: Any) -> Any:
                return await gateways.ask(at, "connection.list", {"subject": "dora", **args})

            for at in (gateways.first, gateways.second):
                # Until the second one is known by the first.
                async def is_whole(at: GatewayProcess = at) -> bool:
                    return len((await listed(at))["items"]) == 6

                await at_last(is_whole)
                page = await listed(at)
                assert [f"d-{number}" for number in range(6)] == [item["client_id"] for item in page["items"]]
                assert (True, [], None) == (page["whole"], page["silent"], page["next_cursor"])
                half = await listed(at, limit=4)
                rest_ = await listed(at, limit=4, cursor=half["next_cursor"])
                assert page["items"] == [*half["items"], *rest_["items"]]
                assert {"items": [], "whole": True, "silent": []} == await gateways.ask(at, "connection.slowest", {})
            assert 2 == len({item["id"].partition("-")[0] for item in page["items"]})

            # One by its id, at the gateway that does not have it; then all of the subject.
            answer = await gateways.ask(gateways.first, "connection.disconnect", {"id": page["items"][1]["id"]})
            assert (1, True, []) == (answer["ended"], answer["whole"], answer["silent"])
            assert 4403 == await clients[1].closed()
            answer = await gateways.ask(gateways.second, "connection.disconnect", {"subject": "dora"})
            assert (True, []) == (answer["whole"], answer["silent"])
            assert 5 <= answer["ended"] <= 6
            assert [4403] * 6 == [await one.closed() for one in clients]
            async with asyncio.timeout(20):
                await (await stranger.socket.ping())

    asyncio.run(story())


def test_gateways_of_two_daemons_that_share_redis_are_one_fleet(folder: Path) -> None:
    async def story() -> None:
        async with fleet(folder, "redis", daemons=2) as gateways, contextlib.AsyncExitStack() as rest:
            text = token("dora")
            for number in range(2):
                away = [
                    await rest.enter_async_context(client(base, f"{face}-{number}", text, "*"))
                    for face, base in gateways.faces.items()
                ]

                async def are_listed(count: int = len(away)) -> bool:
                    found = await gateways.ask(gateways.first, "connection.list", {"subject": "dora"})
                    return len(found["items"]) == count and bool(found["whole"])

                await at_last(are_listed)
                if number == 0:
                    answer = await gateways.ask(gateways.first, "connection.disconnect", {"subject": "dora"})
                    assert (2, True, []) == (answer["ended"], answer["whole"], answer["silent"])
                else:
                    # A batch goes by the daemon, whose journal the gateways of the other one do not hear.
                    operation = {"command": "connection.disconnect", "args": {"subject": "dora"}}
                    async with httpx.AsyncClient(timeout=20) as http:
                        done = await http.post(
                            f"{gateways.first.url}/v1/batch",
                            json={"mode": "parallel", "operations": [operation]},
                            headers={"Authorization": f"Bearer {token('boss')}"},
                        )
                    assert done.status_code == 200, done.text
                assert [4403, 4403] == [await one.closed() for one in away]

    asyncio.run(story())


@carriers
def test_a_gateway_that_does_not_answer_is_named_and_forgotten_when_it_is_dead(folder: Path, carrier: str) -> None:
    async def story() -> None:
        async with fleet(folder, carrier) as gateways, contextlib.AsyncExitStack() as rest:
            base = gateways.first.url.replace("http", "ws")
            await rest.enter_async_context(client(base, "here", token("dora"), "*"))
            await rest.enter_async_context(client(gateways.faces["asgi"], "there", token("dora"), "*"))

            async def listed() -> Any:
                return await gateways.ask(gateways.first, "connection.list", {})

            async def both() -> bool:
                return len((await listed())["items"]) == 2

            await at_last(both)
            (lost,) = [item["id"] for item in (await listed())["items"] if item["client_id"] == "there"]
            await gateways.second.kill()
            page = await listed()
            assert (["here"], False) == ([item["client_id"] for item in page["items"]], page["whole"])
            assert [lost.partition("-")[0]] == [one["id"] for one in page["silent"]]
            assert set(page["silent"][0]) == {"id", "host", "pid"}
            # What is to end may be at the one that is silent, and the answer says so.
            answer = await gateways.ask(gateways.first, "connection.disconnect", {"id": lost})
            assert (0, False, page["silent"]) == (answer["ended"], answer["whole"], answer["silent"])

            async def is_forgotten() -> bool:
                return bool((await listed())["whole"])

            await at_last(is_forgotten)
            assert [] == (await listed())["silent"]

    asyncio.run(story())


def test_workers_of_one_host_know_of_one_another(start_service: Start) -> None:
    service = start_service(environ={"FLX_WORKERS": "2"})

    async def story() -> None:
        async with contextlib.AsyncExitStack() as rest, httpx.AsyncClient(base_url=service.url) as http:
            text = service.token(sub="dora")
            headers = {"Authorization": f"Bearer {text}"}

            async def command(name: str, **args: Any) -> Any:
                answer = await http.post(f"/v1/commands/{name}", json=args, headers=headers)
                assert answer.status_code == 200, answer.text
                return answer.json()["result"]

            clients: list[Client] = []

            async def are_at_both() -> bool:
                # Which worker takes a connection is chance: until both have some.
                new = await asyncio.gather(
                    *(rest.enter_async_context(client(service.ws_url, f"c-{len(clients) + n}", text)) for n in range(4))
                )
                clients.extend(new)
                found = (await command("connection.list", limit=500))["items"]
                return len({item["id"].partition("-")[0] for item in found}) == 2

            await at_last(are_at_both)
            for _ in range(8):
                async with httpx.AsyncClient(base_url=service.url) as another:
                    answer = await another.post("/v1/commands/connection.list", json={"limit": 500}, headers=headers)
                assert len(clients) == len(answer.json()["result"]["items"])
            answer_ = await command("connection.disconnect", subject="dora")
            assert (len(clients), True) == (answer_["ended"], answer_["whole"])
            assert {4403} == {await one.closed() for one in clients}

    asyncio.run(story())
