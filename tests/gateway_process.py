"""A gateway as it is shipped: a real process of Granian, or of the lane, with the settings of a test."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import jwt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "a-secret-of-the-tests-that-is-long-enough"
# Below those that the kernel gives to outgoing connections, of which some are always under way.
_ASKED_FOR = 20_000, 32_768


def token(subject: str = "anna", roles: tuple[str, ...] = ("admin",), ttl_s: float = 3600, **claims: Any) -> str:
    """A token that the gateway of a test accepts."""
    now = time.time()
    payload = {"iss": "flx", "aud": "flx-api", "sub": subject, "roles": list(roles)}
    times = {"iat": int(now), "exp": int(now + ttl_s)}
    return jwt.encode({**payload, **times, **claims}, SECRET, algorithm="HS256")


def bearer(subject: str = "anna", roles: tuple[str, ...] = ("admin",)) -> dict[str, str]:
    """The header of a request."""
    return {"authorization": f"Bearer {token(subject, roles)}"}


def basic() -> str:
    """Credentials of a kind that is not accepted."""
    return "Basic " + base64.b64encode(b"anna:secret").decode()


def free_port() -> int:
    """A port that was free a moment ago on every address, and that is given to nobody who does not ask for it."""
    for port in random.sample(range(*_ASKED_FOR), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise AssertionError


def children_of(pid: int) -> list[int]:
    """The child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


class GatewayProcess:
    """One running gateway."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    async def kill(self) -> None:
        """End it at once, the workers first: they would outlive their parent."""
        for pid in (*children_of(self.process.pid), self.process.pid):
            os.kill(pid, signal.SIGKILL)
        await self.process.wait()

    async def end(self) -> None:
        """End it as a supervisor does, unless it has ended."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(15):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    async def ready(self, status: int = 200, within_s: float = 45.0) -> httpx.Response:
        """Wait until /ready says so."""
        async with httpx.AsyncClient(base_url=self.url) as client, asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    response = await client.get("/ready")
                    if response.status_code == status:
                        return response
                await asyncio.sleep(0.02)


def _command(listening: socket.socket, settings: dict[str, str], server: str) -> list[str]:
    """The command line of a server with our application on the port of a socket, which the lane inherits."""
    if server == "own":
        return [sys.executable, "-m", "flx_api.cli.gateway_process", str(os.getpid()), str(listening.fileno())]
    port = listening.getsockname()[1]
    tls = settings.get("enable_ssl") == "true"
    certificate, key = settings.get("ssl_cert_file", ""), settings.get("ssl_key_file", "")
    if server == "uvicorn":
        command = [
            "-m", "uvicorn", "--factory", "--host", "127.0.0.1", "--port", str(port),
            "--loop", "uvloop", "--http", "h11", "--ws", "websockets-sansio", "--lifespan", "on",
            "--no-server-header", "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip
        files = ["--ssl-certfile", certificate, "--ssl-keyfile", key]
    else:
        interface = "asgi" if settings.get("interface", "asgi") == "asgi" else "rsgi"
        command = [
            "-m", "granian", "--interface", interface, "--loop", "uvloop", "--factory",
            "--host", "127.0.0.1", "--port", str(port), "--ws",
            "--workers-kill-timeout", "10", "--log-level", "warning",
        ]  # fmt: skip
        files = ["--ssl-certificate", certificate, "--ssl-keyfile", key]
    return [sys.executable, *command, *(files if tls else ()), "flx_api.main:app_factory"]


@contextlib.asynccontextmanager
async def running(
    daemon_socket: Path,
    data: Path,
    settings: dict[str, str] | None = None,
    *,
    ready: bool = True,
    server: Literal["granian", "uvicorn", "own"] = "granian",
) -> AsyncIterator[GatewayProcess]:
    """A gateway beside a daemon's socket."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listening.getsockname()[1]
    settings = settings or {}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLX_")}
    environ |= {
        "FLX_JWT_SECRET_KEY": SECRET,
        "FLX_DATA_DIR": str(data),
        "FLX_REALTIME_PORT": "off",
        "FLX_INTERNAL_DAEMON_SOCKET": str(daemon_socket),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **{f"FLX_{name.upper()}": value for name, value in settings.items()},
    }
    command, inherited = _command(listening, settings, server), [listening.fileno()]
    if server != "own":
        listening.close()
        inherited = []
    process = await asyncio.create_subprocess_exec(*command, env=environ, pass_fds=inherited)
    listening.close()
    gateway = GatewayProcess(process, port)
    try:
        if ready:
            await gateway.ready()
        yield gateway
    finally:
        await gateway.end()
