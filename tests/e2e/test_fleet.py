"""Ten thousand connections to one gateway: each is let in, and hears every event once and in order.

Strategy: the clients are as small as they can be, one protocol object each, and keep what they hear; what they heard
is looked at when all have it. How fast that is, is the business of the benchmarks.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.gateway_process import free_port, running, token
from tests.small_daemon import SmallDaemon, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

CONNECTIONS, AT_ONCE, SUBJECTS, EVENTS = 10_000, 100, 10, 20
TOPIC = "app.fleet"
WITHIN_S = 240
# Many: a burst of connections is what is tested, not a limit of it.
LIMITS = '[{"name": "per-client", "by": "ip", "limit": 10000000, "window": "60s"}]'


class Client(asyncio.Protocol):
    """One client: it asks for the upgrade, subscribes, and keeps the messages."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._read = b""
        self._transport: asyncio.Transport | None = None
        self._is_open = False
        self.subscribed = asyncio.get_running_loop().create_future()
        self.served = asyncio.get_running_loop().create_future()
        self.heard: list[int] = []
        self.others: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if not self._is_open:
            head, end, rest = self._read.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self.subscribed.set_exception(AssertionError(self._read[:300]))
                return
            self._is_open, self._read = True, rest
            self._say({"type": "subscribe", "event": TOPIC})
        while (message := self._message()) is not None:
            if message.startswith(b'{"t":'):
                self.heard += [event["n"] for event in json.loads(message)["d"]]
                if len(self.heard) >= EVENTS and not self.served.done():
                    self.served.set_result(None)
            elif message.startswith(b'{"type":"subscribed"'):
                self.subscribed.set_result(None)
            else:
                self.others.append(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.subscribed.done():
            self.subscribed.set_exception(exc or AssertionError("lost"))

    def close(self) -> None:
        """Be gone."""
        assert self._transport is not None
        self._transport.abort()

    def _say(self, message: object) -> None:
        payload = json.dumps(message).encode()
        assert self._transport is not None
        # A mask of zeros leaves the payload as it is.
        self._transport.write(bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    def _message(self) -> bytes | None:
        """The next whole frame's payload; the server's are neither masked nor in fragments."""
        if len(self._read) < 4:
            return None
        start, size = 2, self._read[1]
        if size == 126:
            start, size = 4, struct.unpack_from(">H", self._read, 2)[0]
        assert size < 65_536
        if len(self._read) < start + size:
            return None
        message, self._read = self._read[start : start + size], self._read[start + size :]
        return message


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths are limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="flx") as name:
        yield Path(name)


def test_ten_thousand_clients_hear_every_event_once_and_in_order(folder: Path) -> None:
    port = free_port()
    settings = {"realtime_port": str(port), "rate_limits": LIMITS}
    tokens = [token(f"subject-{number}") for number in range(SUBJECTS)]
    room = asyncio.Semaphore(AT_ONCE)

    def request(number: int) -> bytes:
        lines = [
            f"GET /ws/client-{number} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
            "Sec-WebSocket-Protocol: flx.v1",
            f"Authorization: Bearer {tokens[number % SUBJECTS]}",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    async def join(number: int) -> Client:
        async with room:
            loop = asyncio.get_running_loop()
            _, client = await loop.create_connection(lambda: Client(request(number)), "127.0.0.1", port)
            await client.subscribed
            return client

    async def story() -> None:
        daemon = SmallDaemon()
        async with (
            asyncio.timeout(WITHIN_S),
            serving(daemon, folder / "d.sock"),
            running(folder / "d.sock", folder, settings),
        ):
            clients = await asyncio.gather(*(join(number) for number in range(CONNECTIONS)))
            for number in range(EVENTS):
                await daemon.publish(TOPIC, {"n": number})
            await asyncio.gather(*(client.served for client in clients))
            assert {tuple(client.heard) for client in clients} == {tuple(range(EVENTS))}
            assert not any(b'"gap"' in message for client in clients for message in client.others)
            for client in clients:
                client.close()

    asyncio.run(story())
