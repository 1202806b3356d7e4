"""The socket below a connection: found by its two addresses, and only that one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from flx_api.gateway.peer_socket import PeerSocket, address_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection, the accepted one first."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as there:
        here, _ = listener.accept()
        with here:
            yield here, there


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:8000", ("::1", 8000)),
        ("127.0.0.1", ("127.0.0.1", 0)),
        ("unix:/run/flx", ("unix:/run/flx", 0)),
        ("", ("", 0)),
    ],
)
def test_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert address == address_of(text)


def test_a_connection_is_found_and_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    found = PeerSocket.find(here.getsockname(), here.getpeername())
    assert found is not None
    found.cut()
    found.close()
    assert (b"", b"") == (there.recv(1), here.recv(1))
    assert here.fileno() >= 0


def test_another_connection_is_not_found(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    assert PeerSocket.find(here.getsockname(), ("127.0.0.1", 1)) is None
    assert PeerSocket.find(("127.0.0.1", 1), here.getpeername()) is None


def test_closing_the_duplicate_leaves_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    found = PeerSocket.find(here.getsockname(), here.getpeername())
    assert found is not None
    found.close()
    here.sendall(b"x")
    assert b"x" == there.recv(1)


def test_there_is_room_when_the_peer_has_read(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair

    async def story() -> None:
        found = PeerSocket.find(here.getsockname(), here.getpeername())
        assert found is not None
        await found.room()
        here.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += here.send(bytes(65_536))
        waiting = asyncio.create_task(found.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        there.settimeout(5)
        while sent:
            sent -= len(there.recv(min(sent, 1 << 20)))
        async with asyncio.timeout(5):
            await waiting
        found.close()

    asyncio.run(story())
