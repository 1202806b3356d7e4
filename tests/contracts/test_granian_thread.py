"""What `flx_api.gateway.server_thread` rests on, with a real Granian: that it is asked, and what it finds there.

A Granian that does otherwise would only be slower, and nobody would see it; here it is seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.service import ROOT
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def granian(interface: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = ["--interface", interface, "--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop"]
    process = subprocess.Popen(
        [sys.executable, "-m", "granian", *words, "--log-level", "error", "tests.granian_thread_app:app"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.mark.parametrize("interface", ["asgi", "rsgi"])
def test_requests_are_seen_before_they_become_tasks(interface: str) -> None:
    with granian(interface) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        asked = {path: client.get(path).text for path in ("/thread", "/decided", "/else", "/raise")}
        undecided = {"/else": "task, None", "/raise": "task, None"}
        assert {"/thread": "thread", "/decided": "task, decided", **undecided} == asked
        assert (200, "") == (client.head("/thread").status_code, client.head("/thread").text)
        with connect(f"ws://127.0.0.1:{port}/ws") as websocket:
            assert "task" == websocket.recv()
