"""The servers of the benchmark, ours and the rivals', each started on one core and checked before it is measured.

Strategy: a server is a command line pinned to the server core, an address, and the path that is asked for. All of them
serve `ROUTE` with the same tokens. Ours is the production gateway process itself, `flx_api.cli.gateway_process`,
started as the supervisor starts it; the daemon of one `flx serve` on a copy of the demo project stands behind all of
them and is not counted: it has no part in this route, but a gateway that has not heard of revocations lets nobody in.

Rules:
- Nothing is measured that has not refused a bad token with 401 and a client over its limit with 429.
- A server gets its best settings for this: they are in its file under `peers/`, with the reason.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.service import ROOT, Service, copy_project, processes_of

from benches.load import LOAD_CORE, SECRET, SERVER_CORE, TIGHT, token
from flx_api.config import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benches.peer_tools import Peers

HERE = Path(__file__).parent
ROUTE = os.environ.get("FLX_BENCH_ROUTE", "/v1/auth/whoami")
ROOMY = 100_000_000
# How much of the gateway is taken away from the benchmark's own route (`peers/our_app.py`).
Bare = Literal["0", "1", "headers"]
_START_S = 30.0


class Unavailable(Exception):
    """This server cannot be measured here, and why."""


class Server:
    """A running server: address, what is posted to it (else its path is got), root of its process tree.

    `ca` is the file of who signed its certificate, where it speaks TLS.
    """

    def __init__(
        self, name: str, url: str, process: subprocess.Popen[bytes], body: bytes | None = None, ca: Path | None = None
    ) -> None:
        self.name = name
        self.url = url
        self.body = body
        self.ca = ca
        self._process = process

    @property
    def pid(self) -> int:
        """The root of its process tree."""
        return self._process.pid

    def status(self, bearer: str | None) -> int:
        """What one request is answered with; 0 when nobody answers."""
        host, _, path = self.url.removeprefix("http://").partition("/")
        connection = dial(host, 5, self.ca)
        try:
            headers = {"Content-Type": "application/json"} if self.body is not None else {}
            headers |= {"Authorization": f"Bearer {bearer}"} if bearer else {}
            connection.request("GET" if self.body is None else "POST", "/" + path, self.body, headers)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()


def dial(address: str, timeout_s: float, ca: Path | None = None) -> http.client.HTTPConnection:
    """A connection for requests; with `ca` by TLS, and only to whom that authority has signed for."""
    if ca is None:
        return http.client.HTTPConnection(address, timeout=timeout_s)
    return http.client.HTTPSConnection(address, timeout=timeout_s, context=ssl.create_default_context(cafile=ca))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    *,
    log: Path,
    environ: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
    path: str = ROUTE,
    body: bytes | None = None,
    expect: int = 200,
    ca: Path | None = None,
) -> Iterator[Server]:
    """Start a command on the server core until it answers; end it at the end.

    Raises:
        Unavailable: it does not answer as expected.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *command],
            env=dict(environ) if environ is not None else None,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    server = Server(name, f"http://127.0.0.1:{port}{path}", process, body, ca)
    try:
        deadline = time.monotonic() + _START_S
        status = 0
        while status in {0, 503} and process.poll() is None and time.monotonic() < deadline:
            status = server.status(token("starter"))
            time.sleep(0.05)
        if status != expect:
            raise Unavailable(f"{name} answers {status} ({_last_line(log)})")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """The daemon of a real service, by its socket; it stays off the server's core."""
    with service(copy_project(folder / "service", plugins=ROOT / ".demo"), FLX_FORK="never") as running_service:
        yield str(running_service.endpoints["daemon_socket"])


@contextlib.contextmanager
def service(project: Path, **settings: str) -> Iterator[Service]:
    """A real service with our key on a project; it stays off the server's core."""
    service = Service(project, environ={"FLX_JWT_SECRET_KEY": SECRET.decode(), "FLX_LOG_LEVEL": "error", **settings})
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        service.start()
    finally:
        os.sched_setaffinity(0, everywhere)
    try:
        yield service
    finally:
        service.kill_all()


@contextlib.contextmanager
def lone_daemon(
    project: Path,
    socket: Path,
    *,
    module: str = "flx_api.cli.daemon_process",
    words: Sequence[str] = (),
    prefix: Sequence[str] = (),
    **settings: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Our daemon without a gateway, as the supervisor starts it: ready from the beginning, killed with its runs.

    Args:
        project: what it serves; it gets a data folder there.
        socket: where it listens.
        module: what runs.
        words: more arguments for that.
        prefix: what runs it, such as taskset.
        settings: its environment beside what it needs.

    Raises:
        Unavailable: it does not start.
    """
    (project / ".flx").mkdir(mode=0o700, exist_ok=True)
    read_fd, ready_fd = os.pipe()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLX_")},
        "PYTHONPATH": str(HERE.parent),
        "FLX_PROJECT": str(project),
        "FLX_MELTANO": os.environ.get("FLX_MELTANO", str(ROOT / ".venv-meltano")),
        "FLX_JWT_SECRET_KEY": SECRET.decode(),
        "FLX_LOG_LEVEL": "error",
        "FLX_SCHEDULES": "off",
        **settings,
    }
    file = socket.with_suffix(".log")
    with file.open("wb") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, str(os.getpid()), str(socket), str(ready_fd), *words],
            env=environ,
            pass_fds=[ready_fd],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(ready_fd)
    try:
        ready, _, _ = select.select([read_fd], [], [], _START_S)
        if not ready or not os.read(read_fd, 16):
            raise Unavailable(f"the daemon does not start ({_last_line(file)})")
        yield process
    finally:
        os.close(read_fd)
        for line in processes_of(project):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def ours(
    folder: Path,
    daemon: str,
    *,
    interface: str = "asgi",
    limit: int = ROOMY,
    path: str = ROUTE,
    bare: Bare = "0",
    prefix: Sequence[str] = (),
    body: bytes | None = None,
    settings: Mapping[str, str] | None = None,
    port: int = 0,
    ca: Path | None = None,
) -> Iterator[Server]:
    """Our gateway process with token check, two limits, metrics and request ids.

    Args:
        folder: where its data goes.
        daemon: the socket of a running daemon.
        interface: the face, as FLX_INTERFACE names it.
        limit: requests per minute of one subject.
        path: what is asked for; the benchmark's own routes are served by `peers/our_app.py`.
        bare: "1" takes token check, limits and metrics away (only there), "headers" all but the headers of the limits.
        prefix: what runs it, such as valgrind.
        body: what is posted; without it the path is got.
        settings: more settings.
        port: where it listens; 0: anywhere.
        ca: who signed its certificate, where the settings say that it speaks TLS.
    """
    data = Path(tempfile.mkdtemp(prefix=f"ours-{interface}-", dir=folder))
    limits = [
        {"name": "per-client", "by": "ip", "limit": ROOMY, "window": "60s"},
        {"name": "per-subject", "by": "subject", "limit": limit, "window": "60s"},
    ]
    module = "benches.peers.our_app" if path.startswith("/v1/bench/") else "flx_api.cli.gateway_process"
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLX_")},
            "PYTHONPATH": str(HERE.parent),
            "PYTHONHASHSEED": "0",
            "FLX_PROJECT": str(data),
            "FLX_JWT_SECRET_KEY": SECRET.decode(),
            "FLX_RATE_LIMITS": json.dumps(limits),
            "FLX_INTERNAL_DAEMON_SOCKET": daemon,
            "FLX_LOG_LEVEL": "error",
            "BENCH_BARE": bare,
            **(settings or {}),
        }
        if interface != "asgi":
            if "interface" not in Settings.__struct_fields__:
                raise Unavailable(f"ours, {interface}: this version has no FLX_INTERFACE")
            environ["FLX_INTERFACE"] = interface
        with running(
            f"ours, {interface}",
            [*prefix, sys.executable, "-m", module, str(os.getpid()), str(listener.fileno())],
            listener.getsockname()[1],
            log=data / "log",
            environ=environ,
            descriptors=[listener.fileno()],
            path=path,
            body=body,
            ca=ca,
        ) as server:
            # Only the gateway listens now: when it is killed, nobody does.
            listener.close()
            yield server


@contextlib.contextmanager
def hello(folder: Path, *, interface: str) -> Iterator[Server]:
    """Granian with an application that does nothing: the floor of our faces."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "granian", "--interface", interface, "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--loop", "uvloop", "--no-ws", "--log-level", "warning", "benches.peers.hello:application"),
    ]
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with running(
        f"Granian {interface}, bare", command, port, log=folder / f"hello-{interface}.log", environ=environ
    ) as server:
        yield server


@contextlib.contextmanager
def haproxy(folder: Path, peers: Peers, *, limit: int = ROOMY) -> Iterator[Server]:
    """HAProxy with token check and stick table."""
    command, environ = peers.haproxy()
    port = free_port()
    config = folder / f"haproxy-{limit}.cfg"
    config.write_text(
        filled("haproxy.cfg", PORT=port, SECRET=SECRET.decode(), ROUTE=ROUTE, LIMIT=limit), encoding="ascii"
    )
    with running(
        "HAProxy", [*command, "-db", "-f", str(config)], port, log=folder / f"haproxy-{limit}.log", environ=environ
    ) as server:
        yield server


@contextlib.contextmanager
def envoy(folder: Path, peers: Peers, *, limit: int = ROOMY) -> Iterator[Server]:
    """Envoy with token check (cached) and local limit."""
    port = free_port()
    write_keys(folder)
    config = folder / f"envoy-{limit}.yaml"
    config.write_text(
        filled(
            "envoy.yaml", PEERS=folder, PORT=port, ROUTE=ROUTE, LIMIT=limit, FILL="1s" if limit == ROOMY else "3600s"
        ),
        encoding="ascii",
    )
    command = [
        *(*peers.envoy(), "--concurrency", "1", "--disable-hot-restart", "--use-dynamic-base-id"),
        *("--log-level", "warning", "-c", str(config)),
    ]
    with running("Envoy", command, port, log=folder / f"envoy-{limit}.log", environ=dict(os.environ)) as server:
        yield server


@contextlib.contextmanager
def blacksheep(folder: Path, peers: Peers, *, limit: int = ROOMY) -> Iterator[Server]:
    """BlackSheep with its own JWT authentication and a limiter in Python, on Granian."""
    port = free_port()
    command = [
        *(peers.python, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--loop", "uvloop", "--no-ws", "--log-level", "warning"),
        "benches.peers.blacksheep_app:application",
    ]
    environ = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "BENCH_SECRET": SECRET.decode(),
        "BENCH_LIMIT": str(limit),
        "BENCH_ROUTE": ROUTE,
    }
    with running("BlackSheep", command, port, log=folder / f"blacksheep-{limit}.log", environ=environ) as server:
        yield server


def write_keys(folder: Path) -> None:
    """The one secret as the key set that Envoy reads."""
    keys = {"keys": [{"kty": "oct", "alg": "HS256", "k": urlsafe_b64encode(SECRET).rstrip(b"=").decode()}]}
    (folder / "jwks.json").write_text(json.dumps(keys), encoding="ascii")


def check(roomy: Server, tight: Server) -> None:
    """Hold that a server refuses what it must.

    Raises:
        Unavailable: it does not, so that its speed means nothing.
    """
    check_tokens(roomy)
    good = token("subject-00000")
    over = [tight.status(good) for _ in range(2 * TIGHT)]
    if over[-1] != 429:
        raise Unavailable(f"{tight.name} answers a client over its limit with {over[-1]}")


def check_tokens(server: Server) -> None:
    """Hold that a server knows a good token from a bad one.

    Raises:
        Unavailable: it does not.
    """
    good, bad = token("subject-00000"), token("subject-00000", secret=SECRET[::-1])
    found = [server.status(good), server.status(bad), server.status(None)]
    if found != [200, 401, 401]:
        raise Unavailable(f"{server.name} answers a good, a bad and no token with {found}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def filled(name: str, **values: object) -> str:
    """A file of `peers/` with its gaps filled."""
    text = (HERE / "peers" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text
