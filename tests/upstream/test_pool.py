"""The connections to one daemon: names that lead nowhere yet, what is said of each, numbers for the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.small_daemon import SmallDaemon, SmallServer, serving, stop
from tests.upstream.test_channel import frame
from tests.upstream.test_connection import Late, part, until

from flx_api.errors import FlxError
from flx_api.observability.metrics import Metrics
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from grpclib.server import Server

    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame


def play(story: Callable[[Path], Awaitable[None]]) -> None:
    async def told(folder: Path) -> None:
        async with asyncio.timeout(30):
            await story(folder)

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(told(Path(folder)))


@contextlib.asynccontextmanager
async def holding(count: int) -> AsyncIterator[tuple[Server, Upstream, list[str], list[asyncio.Task[ReplyFrame]]]]:
    """One daemon at two addresses of one name, with so many commands under way.

    Yields the server at the first address, who is connected, what the name says, and the commands.
    """
    daemon = SmallDaemon()
    daemon.answers["held"] = lambda _: None
    servers, addresses = [SmallServer(daemon), SmallServer(daemon)], ["127.0.0.1", "127.0.0.2"]

    async def resolve(_host: str, _port: int) -> list[str]:
        return list(addresses)

    listening = socket.create_server((addresses[0], 0))
    port = listening.getsockname()[1]
    await servers[0].start(sock=listening)
    await servers[1].start(addresses[1], port)
    upstream = Upstream(Endpoint(host="daemon", port=port, resolve=resolve), Metrics(), jitter=lambda: 0.0)
    upstream.start()
    try:
        await until(lambda: upstream.state().pools[0].ready == 2)
        writes = [asyncio.create_task(upstream.call(frame("held"), 20, read=False)) for _ in range(count)]
        await until(lambda: len(daemon.commands()) == count)
        yield servers[0], upstream, addresses, writes
    finally:
        await upstream.close()
        for server in servers:
            await stop(server)
            server.abandon()


def test_a_name_that_is_not_known_yet_is_asked_for_again() -> None:
    async def story(_folder: Path) -> None:
        answers: list[list[str]] = []

        async def resolve(_host: str, _port: int) -> list[str]:
            if not answers:
                raise socket.gaierror(-2, "Name or service not known")
            return answers[-1]

        upstream = Upstream(Endpoint(host="daemon", port=1, resolve=resolve), Metrics(), jitter=lambda: 0.0)
        upstream.start()
        try:
            await until(lambda: "host name cannot be resolved" in upstream.reason)
            answers.append(["127.0.0.1"])
            await until(lambda: "nothing listens there" in upstream.reason)
        finally:
            await upstream.close()

    play(story)


def test_each_daemon_is_told_by_its_number_and_in_numbers() -> None:
    async def story(folder: Path) -> None:
        daemon = SmallDaemon()
        metrics = Metrics()
        places = [Endpoint(path=str(folder / "none.sock")), Endpoint(path=str(folder / "d.sock"))]
        upstream = Upstream(places, metrics, jitter=lambda: 0.0, width=2)
        async with serving(daemon, folder / "d.sock"):
            upstream.start()
            try:
                await until(lambda: upstream.state().pools[1].ready == 2)
                assert "" == upstream.reason
                assert (
                    "1 of 2 daemons are connected (1: the daemon cannot be reached: No such file or directory)"
                    == upstream.note
                )
                assert str(folder) not in metrics.exposition().decode()
                text = metrics.exposition().decode()
                assert 'flx_upstream_connections{daemon="1",state="away"} 2.0' in text
                assert 'flx_upstream_connections{daemon="2",state="ready"} 2.0' in text
                assert 'flx_upstream_connection_events_total{daemon="2",event="connected"} 2.0' in text
                # Both connections are used, in turn where neither has more to do.
                await asyncio.gather(*(upstream.call(frame(), 5, read=True) for _ in range(10)))
                assert [5, 5] == sorted(size for size in daemon.batch_sizes if size > 1)
            finally:
                await upstream.close()
            assert "closed" == upstream.reason

    play(story)


def test_nobody_there_is_said_of_each() -> None:
    async def story(folder: Path) -> None:
        places = [Endpoint(path=str(folder / name)) for name in "ab"]
        upstream = Upstream(places, Metrics(), jitter=lambda: 0.0)
        assert "no daemon is connected (1: not connected yet; 2: not connected yet)" == upstream.reason
        upstream.start()
        try:
            await until(lambda: upstream.reason.count("No such file") == 2)
            assert "" == upstream.note
        finally:
            await upstream.close()

    play(story)


@pytest.mark.parametrize("told", ["later", "at once"])
def test_a_daemon_that_leaves_its_name_while_it_stops_gives_what_it_has(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    late = Late(monkeypatch)

    async def story(_folder: Path) -> None:
        async with holding(4) as (server, upstream, addresses, writes):
            (pool,) = upstream._pools
            assert {2} == {carrier.outstanding for carrier in upstream._ready}
            # A rolling update: it says farewell, accepts nobody any more, and its address leaves the name.
            assert server._server is not None
            server._server.close()
            if told == "later":
                part(server)
                await until(lambda: upstream.state().pools[0].parting == 1)
                addresses.remove("127.0.0.1")
            else:
                # Before anything else has heard of the farewell.
                (link,) = pool._links["127.0.0.1"]
                assert link._connection is not None
                addresses.remove("127.0.0.1")
                link._connection.part()
                pool._adopt(addresses)
            await until(lambda: "127.0.0.1" not in pool._links)
            await until(lambda: upstream.state().pools[0].parting == 1)
            assert (1, 0) == (upstream.state().pools[0].ready, upstream.state().pools[0].lost)
            (link,) = pool._gone
            await asyncio.wait([link.task])
            assert [False] * 4 == [write.done() for write in writes]
            late.gate.set()
            for carrier in upstream._ready:
                carrier.connection.part()
            assert [b"late"] * 4 == [reply.result for reply in await asyncio.gather(*writes)]
            await until(lambda: not pool._gone)
            assert 0 == upstream.state().pools[0].lost

    play(story)


def test_the_end_of_the_service_does_not_wait_for_who_has_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    Late(monkeypatch)

    async def story(_folder: Path) -> None:
        async with holding(2) as (_, upstream, addresses, writes):
            (pool,) = upstream._pools
            (link,) = pool._links["127.0.0.1"]
            pool._adopt([addresses[1]])
            await until(lambda: len(link.partings) == 1)
            (parted,) = link.partings
            await upstream.close()
            assert parted.done()
            assert not pool._gone
            for ending in await asyncio.gather(*writes, return_exceptions=True):
                assert isinstance(ending, FlxError)
                assert "shutting_down" == ending.code

    play(story)
