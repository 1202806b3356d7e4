"""The connections to one daemon: names that lead nowhere yet, what is said of each, numbers for the metrics."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.small_daemon import SmallDaemon, serving
from tests.upstream.test_channel import frame
from tests.upstream.test_connection import until

from flx_api.observability.metrics import Metrics
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def play(story: Callable[[Path], Awaitable[None]]) -> None:
    async def told(folder: Path) -> None:
        async with asyncio.timeout(30):
            await story(folder)

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(told(Path(folder)))


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
