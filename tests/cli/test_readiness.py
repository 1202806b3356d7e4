"""The question whether a gateway is ready."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

import pytest

from flx_api.cli.readiness import Probe
from flx_api.config import Settings

NOT_READY = '{"status":"not_ready","reasons":["daemon: away","events: none"],"checks":{}}'


@pytest.mark.parametrize(
    ("answer", "expected", "reason"),
    [
        ("200 OK\r\n\r\n", True, ""),
        (f"503 Service Unavailable\r\ncontent-length: {len(NOT_READY)}\r\n\r\n{NOT_READY}", False, "daemon: away"),
        ("503 Service Unavailable\r\n\r\n<html>", False, ""),
        ("503 Service Unavailable\r\n\r\n" + NOT_READY.replace("away", "x" * 100_000), False, ""),
        ("503 Service Unavailable", False, ""),
        ("404 Not Found\r\n\r\n{}", False, ""),
    ],
    ids=["ready", "not-ready", "no-json", "too-long", "no-body", "no-reasons"],
)
def test_the_answer_is_the_status_and_the_first_reason(answer: str, expected: bool, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = Probe(Settings(trusted_hosts=("api.example",)), listener)
        assert probe.step() is None, "nobody serves yet: the question waits"
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            asked.append(connection.recv(1024))
            with contextlib.suppress(ConnectionError):
                connection.sendall(f"HTTP/1.1 {answer}".encode())
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        said = None
        with selectors.DefaultSelector() as selector:
            selector.register(probe.socket, selectors.EVENT_READ)
            while said is None:
                assert selector.select(5), "nothing more comes, and there is no answer"
                said = probe.step()
        probe.close()
        thread.join()
        assert (expected, reason) == (said, probe.reason)
        assert asked[0].startswith(b"GET /ready HTTP/1.1\r\nHost: api.example\r\n")


def test_a_dropped_connection_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = Probe(Settings(), listener)
        probe.step()
        connection, _ = listener.accept()
        connection.close()
        assert probe.step() in {False, None}
        probe.close()
