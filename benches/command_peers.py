"""Who carries a command beside us: Envoy's transcoder, the original stack, an echo, and clients without a gateway.

All of them speak to the same daemon (`benches.native`) by its Unix socket, from the server's core.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple, Self

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tests.redis_server import RedisServer

from benches import servers
from benches.load import LOAD_CORE, SECRET, SERVER_CORE, tree_cpu_s
from benches.servers import HERE, ROOMY, Server, Unavailable
from flx_api.proto.flx.v1 import daemon_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benches.native import BenchDaemon
    from benches.peer_tools import Peers

ARGS = {
    "pipeline": "nyc-flights",
    "environment": "prod",
    "from": "2026-01-01T00:00:00Z",
    "tags": ["nightly", "reporting"],
    "parameters": {"batch": 10_000, "full_refresh": False},
}
"""What a command says: as much as one of the platform's own does."""

EXECUTE = "/v1/execute"
BODY = json.dumps({"command": "system.echo", "args": ARGS}, separators=(",", ":")).encode()


def transcoded(body: bytes = json.dumps(ARGS, separators=(",", ":")).encode()) -> bytes:
    """The same command as a transcoder takes it: the contract's own message in protobuf's JSON."""
    frame = {"command": "system.echo", "args": base64.b64encode(body).decode()}
    return json.dumps(frame, separators=(",", ":")).encode()


@contextlib.contextmanager
def envoy(folder: Path, peers: Peers, daemon: BenchDaemon) -> Iterator[Server]:
    """Envoy with token check (cached), local limit and transcoding.

    Raises:
        Missing: there is none.
        Unavailable: it does not start.
    """
    servers.write_keys(folder)
    described = FileDescriptorSet()
    daemon_pb2.DESCRIPTOR.CopyToProto(described.file.add())
    (folder / "daemon.pb").write_bytes(described.SerializeToString())
    port = servers.free_port()
    config = folder / "envoy-transcoding.yaml"
    text = servers.filled(
        "envoy_transcoding.yaml", PEERS=folder, PORT=port, LIMIT=ROOMY, FILL="1s", DAEMON=daemon.socket
    )
    config.write_text(text, encoding="ascii")
    command = [
        *(*peers.envoy(), "--concurrency", "1", "--disable-hot-restart", "--use-dynamic-base-id"),
        *("--log-level", "warning", "-c", str(config)),
    ]
    with servers.running(
        "Envoy",
        command,
        port,
        log=folder / "envoy-transcoding.log",
        environ=dict(os.environ),
        path="/flx.v1.Daemon/Execute",
        body=transcoded(),
    ) as server:
        yield server


@contextlib.contextmanager
def echo(folder: Path) -> Iterator[Server]:
    """Granian on RSGI with an application that sends a request's body back, and nothing else.

    Raises:
        Unavailable: it does not start.
    """
    port = servers.free_port()
    command = [
        *(sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--loop", "uvloop", "--no-ws", "--log-level", "warning", "benches.peers.echo:application"),
    ]
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with servers.running(
        "bare RSGI echo", command, port, log=folder / "echo.log", environ=environ, path=EXECUTE, body=BODY
    ) as server:
        yield server


@contextlib.contextmanager
def original(folder: Path, peers: Peers, daemon: BenchDaemon) -> Iterator[Server]:
    """The original stack, with a Redis of its own on the load's core, which is not counted.

    Raises:
        Missing: it cannot be installed.
        Unavailable: it does not start.
    """
    place = folder / "redis"
    place.mkdir()
    redis = RedisServer(place)
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        redis.start()
    finally:
        os.sched_setaffinity(0, everywhere)
    try:
        port = servers.free_port()
        command = [
            *(peers.original(), "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
            "benches.peers.original_stack.app:application",
        ]
        environ = {
            **os.environ,
            "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'python'}",
            "BENCH_SECRET": SECRET.decode(),
            "BENCH_REDIS": f"redis+unix://{redis.socket}",
            "BENCH_DAEMON": daemon.socket,
        }
        with servers.running(
            "original stack", command, port, log=folder / "original.log", environ=environ, path=EXECUTE, body=BODY
        ) as server:
            yield server
    finally:
        redis.kill()


class Called(NamedTuple):
    """One round of a client: CPU of its process tree for each call, calls a second."""

    cpu_us: float
    rate: float


class NativeClients:
    """Clients that call the daemon without a gateway, from the server's core. Use it as a context manager.

    Args:
        folder: where the arguments of their command go.
        daemon: whom they call.
    """

    def __init__(self, folder: Path, daemon: BenchDaemon) -> None:
        self._body = folder / "args.json"
        self._body.write_bytes(json.dumps(ARGS, separators=(",", ":")).encode())
        self._daemon = daemon

    def __enter__(self) -> Self:
        """Start the process that all of them share."""
        script = str(HERE / "peers" / "native_clients.py")
        self._process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), sys.executable, script, self._daemon.socket, str(self._body)],
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._line()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def round(self, mode: str, seconds: float, callers: int) -> Called:
        """One round of a mode of `peers/native_clients.py`.

        Raises:
            Unavailable: it ended.
        """
        before = tree_cpu_s(self._process.pid)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode} {seconds} {callers}\n")
        self._process.stdin.flush()
        count, took_s = self._line().split()
        return Called((tree_cpu_s(self._process.pid) - before) / int(count) * 1e6, int(count) / float(took_s))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable("the native clients ended")
        return line
