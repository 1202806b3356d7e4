"""The servers of the realtime suite: ours by each transport, the bare sender, and the rivals.

Strategy: a `Hall` is where a fleet goes and what publishes there; all take the same command lines, those of
`bare-sender` (benches/native), and answer when the last event was published.

Rules:
- Ours is the gateway process with its one worker, with token check and limits; the rivals let everybody in.
- What cannot run here is `Unavailable` or `Missing`, and costs its rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.certificates import Authority

from benches import native, servers
from benches.fleet import Target, read_line
from benches.load import SERVER_CORE, token, tree_of
from benches.peers.packed import Command
from benches.servers import HERE, Unavailable
from flx_api import _core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benches.peer_tools import Peers

SHARED = "bench.a"
OWN = "bench.a.{}"
"""The topic that all hear, and the one that each client has for itself."""

BARE, CENTRIFUGE, WSE, GRANIAN = "bare sender", "centrifuge, batched", "wse-server, packed", "Granian, packed"
BATCH_MS = 100
_SUBJECTS = 1000
_START_S = 20.0
_PUBLISH_S = 90.0
_HEAD = 42
"""Bytes of an event beside its padding, about."""


class Ground(NamedTuple):
    """Where all of it happens: a folder for files, the daemon behind ours, the rivals, and our transport."""

    folder: Path
    daemon: str
    peers: Peers
    transport: str


class Hall(NamedTuple):
    """A running server of WebSockets. `publish` takes a command line and returns when all is published.

    `http` is where ours answers commands.
    """

    name: str
    target: Target
    pid: int
    publish: Callable[[str], None]
    http: str = ""

    def rss_kib(self) -> int:
        """Resident memory of its process tree, shared pages counted once."""
        return sum(_pss_kib(pid) for pid in tree_of(self.pid))


def check(transport: str) -> None:
    """Hold that this version has a transport.

    Raises:
        Unavailable: it does not.
    """
    if transport == "native" and not hasattr(_core, "RealtimeListener"):
        raise Unavailable("there is no native listener in this version")


def tokens(role: str = "viewer") -> list[str]:
    """Tokens of many subjects: nobody may have all connections."""
    return [token(f"subject-{number:05}", role=role) for number in range(_SUBJECTS)]


@contextlib.contextmanager
def ours(ground: Ground, *, port: int = 0, tls: bool = False) -> Iterator[Hall]:
    """Our gateway by the transport of the ground: native, asgi or rsgi; on this port, or on any; by TLS or not.

    Raises:
        Unavailable: this version does not have it.
    """
    transport, realtime_port = ground.transport, 0
    check(transport)
    more: dict[str, str] = {}
    if transport == "native":
        realtime_port = port or servers.free_port()
        more["FLX_REALTIME_PORT"] = str(realtime_port)
    ca = None
    if tls:
        authority = Authority(ground.folder / "authority")
        certificate, key = authority.sign("127.0.0.1")
        more |= {"FLX_ENABLE_SSL": "true", "FLX_SSL_CERT_FILE": str(certificate), "FLX_SSL_KEY_FILE": str(key)}
        ca = authority.file
    interface = "asgi" if transport == "native" else transport
    listener_port = 0 if transport == "native" else port
    with servers.ours(
        ground.folder, ground.daemon, interface=interface, settings=more, port=listener_port, ca=ca
    ) as server:
        http_address = server.url.removeprefix("http://").partition("/")[0]
        address = f"127.0.0.1:{realtime_port}" if realtime_port else http_address
        _until_listening(address, transport)
        # RSGI cannot tell a subprotocol, so batches are asked for by the query.
        path = "/ws/c-{}?protocol=flx.v1" if transport == "rsgi" else "/ws/c-{}"
        target = Target(address, path, "batched", tokens(), ca=None if ca is None else str(ca))
        yield Hall(
            f"ours, {transport}", target, server.pid, lambda line: _publish_here(http_address, line, ca), http_address
        )


@contextlib.contextmanager
def bare() -> Iterator[Hall]:
    """The bare epoll sender."""
    port = servers.free_port()
    with _commanded(BARE, [native.program("bare-sender"), str(port)], port, "batched") as hall:
        yield hall


@contextlib.contextmanager
def centrifuge(peers: Peers) -> Iterator[Hall]:
    """The server on the centrifuge library, with its own batching."""
    port = servers.free_port()
    command = [peers.centrifuge(), str(port), str(BATCH_MS)]
    with _commanded(CENTRIFUGE, command, port, "centrifuge", environ={"GOMAXPROCS": "1"}) as hall:
        yield hall


@contextlib.contextmanager
def wse(peers: Peers) -> Iterator[Hall]:
    """wse-server, whose application packs events."""
    port = servers.free_port()
    command = [peers.wse(), "-m", "benches.peers.wse_fanout", str(port)]
    with _commanded(WSE, command, port, "batched", path="/wse") as hall:
        yield hall


@contextlib.contextmanager
def granian(folder: Path) -> Iterator[Hall]:
    """Granian, whose application packs events and bounds its sends."""
    port = servers.free_port()
    command = [
        *(sys.executable, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--loop", "uvloop", "--log-level", "warning", "benches.peers.granian_fanout:application"),
    ]
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    log = folder / "granian-fanout.log"
    with servers.running(GRANIAN, command, port, log=log, environ=environ, path="/") as server:
        address = f"127.0.0.1:{port}"
        yield Hall(GRANIAN, Target(address, "/ws/{}", "batched"), server.pid, lambda line: _post(address, "/", line))


def end(hall: Hall) -> None:
    """Kill a server at once, as the kernel would."""
    os.killpg(hall.pid, signal.SIGKILL)


@contextlib.contextmanager
def _commanded(
    name: str,
    command: Sequence[str],
    port: int,
    dialect: str,
    *,
    path: str = "/ws/{}",
    environ: dict[str, str] | None = None,
) -> Iterator[Hall]:
    """A program on the server's core that takes commands on its standard input."""
    process = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), *command],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **(environ or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def publish(line: str) -> None:
        stdin.write(line.encode() + b"\n")
        read_line(stdout.fileno(), b"", _PUBLISH_S)

    address = f"127.0.0.1:{port}"
    try:
        _until_listening(address, name)
        yield Hall(name, Target(address, path, dialect), process.pid, publish)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _until_listening(address: str, name: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise Unavailable(f"{name} does not listen") from None
            time.sleep(0.02)
        else:
            return


def _publish_here(address: str, line: str, ca: Path | None) -> None:
    """Publish through the product: `event.publish` on a topic of the gateway alone."""
    command = Command.parse(line)
    args: dict[str, Any] = {"topic": SHARED, "data": "x" * max(0, command.size - _HEAD)}
    if command.name == "lone":
        for number in range(command.count):
            if number:
                time.sleep(1 / command.per_s)
            _post(address, "/v1/commands/event.publish", json.dumps(args | {"count": 1}), ca)
        return
    args |= {"count": command.count, "per_s": command.per_s}
    if command.name == "unshared":
        args |= {"topics": command.topics} | ({"native": True} if command.native else {})
    _post(address, "/v1/commands/event.publish", json.dumps(args), ca)


def _post(address: str, path: str, body: str, ca: Path | None = None) -> None:
    """Post and wait for the answer; one that does not come in time shows in what the fleet got."""
    connection = servers.dial(address, _PUBLISH_S, ca)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token('publisher', role='admin')}"}
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        told = answer.read()
        if answer.status != 200:
            raise Unavailable(f"publishing was answered with {answer.status}: {told[:200]!r}")
    except TimeoutError:
        return
    finally:
        connection.close()


def _pss_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
