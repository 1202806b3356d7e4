"""The clients against a real gateway that they lose again and again: each event once, or a declared gap.

Strategy: `flx watch` (the client of flx_api.client) and examples/clients/watch.mjs print the same lines, so one test
holds both, over WebSockets and over event streams. Between client and gateway stands a proxy that cuts connections in
the middle of what they carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cutting_proxy import cutting
from tests.gateway_process import running, token
from tests.positions import encode
from tests.service import ROOT, flx
from tests.small_daemon import SmallDaemon, serving, stop

from flx_api.events.position import Position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.e2e

TOPICS = ("execution.x.log", "execution_events", "pipeline_events")
EVENTS = 240
NODE = shutil.which("node")
_no_node = pytest.mark.skipif(NODE is None, reason="there is no `node` here, and the client is for Node 20 or newer")
CLIENTS = {
    "python": flx("watch"),
    # Node 20 has its WebSocket behind this flag; newer versions take it for granted.
    "javascript": [NODE or "", "--experimental-websocket", "--no-warnings", str(ROOT / "examples/clients/watch.mjs")],
}
clients = pytest.mark.parametrize(
    ("client", "transport"),
    [
        pytest.param(client, transport, marks=_no_node if client == "javascript" else (), id=f"{client}-{transport}")
        for client in CLIENTS
        for transport in ("websocket", "sse")
    ],
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths are limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="flx") as name:
        yield Path(name)


class Watcher:
    """A client as a process, and the lines it printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def until(self, condition: Callable[[], bool], within_s: float = 90) -> None:
        """Read lines until a condition holds."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            while not condition():
                line = await self.process.stdout.readline()
                if not line:
                    _, said = await self.process.communicate()
                    pytest.fail(f"it ended with {self.process.returncode}: {said.decode()[-2000:]}")
                self.lines.append(json.loads(line))

    def heard(self, topic: str) -> list[int]:
        """The sequence numbers of a topic's events, as they came."""
        return [line["seq"] for line in self.lines if line["type"] == "event" and line["event"] == topic]

    @property
    def gaps(self) -> list[str]:
        """Why events were skipped."""
        return [line["reason"] for line in self.lines if line["type"] == "gap"]


@contextlib.asynccontextmanager
async def watching(client: str, transport: str, url: str, *args: str, access: str = "") -> AsyncIterator[Watcher]:
    environ = {**os.environ, "FLX_URL": url, "FLX_TOKEN": access or token()}
    process = await asyncio.create_subprocess_exec(
        *CLIENTS[client],
        *args,
        "--transport",
        transport,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Watcher(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def happen(daemon: SmallDaemon, count: int) -> dict[str, list[int]]:
    """So many events, of all topics in turn; the sequence numbers by topic."""
    written: dict[str, list[int]] = {topic: [] for topic in TOPICS}
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)]
        if topic.endswith(".log"):
            await daemon.log("x", b"line %d" % number)
            written[topic].append(len(daemon.logs["x"]))
        else:
            written[topic].append(await daemon.publish(topic, {"n": number}))
        # So that the gateway tells it in many small pieces, while connections come and go.
        await asyncio.sleep(0.005)
    return written


@clients
def test_each_event_comes_once_however_often_the_connection_is_lost(folder: Path, client: str, transport: str) -> None:
    async def story() -> None:
        daemon, chance = SmallDaemon(), random.Random(client + transport)
        budgets = [chance.randint(200, 9_000) for _ in range(7)]
        async with contextlib.AsyncExitStack() as rest:
            await rest.enter_async_context(serving(daemon, folder / "d.sock"))
            first = await rest.enter_async_context(running(folder / "d.sock", folder))
            proxy = await rest.enter_async_context(cutting(first.port, budgets))
            # Of the log too: the small daemon tells no status of its execution, by which a real one knows new logs.
            begin = encode(Position("e1", 0, {"x": 0}))
            watcher = await rest.enter_async_context(watching(client, transport, proxy.url, *TOPICS, "--from", begin))
            writing = asyncio.create_task(happen(daemon, EVENTS))
            await watcher.until(lambda: len(watcher.lines) >= EVENTS)
            written = await writing
            assert written == {topic: watcher.heard(topic) for topic in TOPICS}
            assert len(budgets) == proxy.cuts
            # The gateway itself dies, and another takes its place that remembers nothing.
            await first.kill()
            more = await happen(daemon, 30)
            second = await rest.enter_async_context(running(folder / "d.sock", folder))
            proxy.target = second.port
            await watcher.until(lambda: len(watcher.lines) >= EVENTS + 30)
            assert {topic: written[topic] + more[topic] for topic in TOPICS} == {
                topic: watcher.heard(topic) for topic in TOPICS
            }
            assert [] == watcher.gaps

    asyncio.run(story())


@clients
def test_what_cannot_be_had_any_more_is_a_declared_gap(folder: Path, client: str, transport: str) -> None:
    async def story() -> None:
        daemon = SmallDaemon()
        async with contextlib.AsyncExitStack() as rest:
            server = await rest.enter_async_context(serving(daemon, folder / "d.sock"))
            gateway = await rest.enter_async_context(running(folder / "d.sock", folder))
            proxy = await rest.enter_async_context(cutting(gateway.port))
            begin = encode(Position("e1", 0))
            watcher = await rest.enter_async_context(watching(client, transport, proxy.url, "*", "--from", begin))
            await daemon.publish("pipeline_events", {"n": 1})
            await watcher.until(lambda: bool(watcher.heard("pipeline_events")))
            # A restored database: the same numbers, but another history.
            await stop(server)
            daemon.epoch, daemon.journal = "e2", []
            await rest.enter_async_context(serving(daemon, folder / "d.sock"))
            proxy.cut_all()
            await watcher.until(lambda: bool(watcher.gaps))
            await daemon.publish("pipeline_events", {"n": 2})
            await watcher.until(lambda: len(watcher.heard("pipeline_events")) >= 2)
            assert ["event", "gap", "event"] == [line["type"] for line in watcher.lines]
            assert ["epoch"] == watcher.gaps
            assert ["e1", "e2"] == [line["epoch"] for line in watcher.lines if line["type"] == "event"]
            # Before the daemon: it would be asked for a new connection while it closes.
            await gateway.kill()

    asyncio.run(story())


# What is asked for, with which token, and what is said about it.
HOPELESS: list[tuple[str, dict[str, Any], str]] = [
    ("pipeline_events", {"ttl_s": -60}, "token"),
    ("no_such_topic", {}, "no such topic"),
    ("pipeline_events", {"roles": ("nobody",)}, "does not permit"),
    # It ends while the client is connected, or on its way on a slow machine.
    ("pipeline_events", {"ttl_s": 3}, "token"),
]


@clients
def test_what_does_not_help_is_not_tried_again(folder: Path, client: str, transport: str) -> None:
    """A token that is no good or has ended, a topic that is none or that may not be heard: one line, exit code 1."""

    async def said(url: str, topic: str, claims: dict[str, Any]) -> str:
        async with watching(client, transport, url, topic, access=token(**claims)) as watcher, asyncio.timeout(30):
            out, err = await watcher.process.communicate()
        assert (1, b"", 1) == (watcher.process.returncode, out, err.count(b"\n"))
        return err.decode().lower()

    async def story() -> None:
        async with serving(SmallDaemon(), folder / "d.sock"), running(folder / "d.sock", folder) as gateway:
            found = await asyncio.gather(*(said(gateway.url, topic, claims) for topic, claims, _ in HOPELESS))
        for (_, _, expected), line in zip(HOPELESS, found, strict=True):
            assert expected in line

    asyncio.run(story())
