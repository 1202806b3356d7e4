"""The question whether a gateway is ready."""

from __future__ import annotations

import selectors
import socket
import threading

import pytest

from flx_api.cli.readiness import Probe
from flx_api.config import Settings


@pytest.mark.parametrize(("status", "expected"), [("200 OK", True), ("503 Service Unavailable", False)])
def test_the_answer_is_the_status(status: str, expected: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = Probe(Settings(trusted_hosts=("api.example",)), listener)
        assert probe.step() is None, "nobody serves yet: the question waits"
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            asked.append(connection.recv(1024))
            connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with selectors.DefaultSelector() as selector:
            selector.register(probe.socket, selectors.EVENT_READ)
            selector.select(5)
        assert expected == probe.step()
        thread.join()
        probe.close()
        assert asked[0].startswith(b"GET /ready HTTP/1.1\r\nHost: api.example\r\n")


def test_a_dropped_connection_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = Probe(Settings(), listener)
        probe.step()
        connection, _ = listener.accept()
        connection.close()
        assert probe.step() in {False, None}
        probe.close()
