"""The real daemon as a process on TCP, for tests of what lies between it and a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.daemon.daemon_parts import PROJECT
from tests.gateway_process import SECRET, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = "shared-by-gateway-and-daemon"
_CODE = """
import os, sys
from flx_api.config import load
from flx_api.daemon.main import run_daemon
from flx_api.errors import StartupError
try:
    settings = load(os.environ)
    sys.exit(run_daemon(settings, tcp=settings.listening, ready_fd=int(sys.argv[1]), environ=os.environ))
except StartupError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


class DaemonProcess:
    """One daemon and the folder it works in; it keeps its port when it is started again."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "daemon.log"
        self.process: asyncio.subprocess.Process
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meltano.yml").write_text(PROJECT, encoding="utf-8")
        (folder / "meltano").mkdir(exist_ok=True)
        (folder / "token").write_text(TOKEN, encoding="ascii")
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("FLX_")}
        self._environ |= {
            "FLX_PROJECT": str(folder),
            "FLX_MELTANO": str(folder / "meltano"),
            "FLX_JWT_SECRET_KEY": SECRET,
            "FLX_FORK": "never",
            "FLX_GRPC_LISTEN": f"127.0.0.1:{self.port}",
            "FLX_GRPC_TOKEN_FILE": str(folder / "token"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **{f"FLX_{name.upper()}": value for name, value in (settings or {}).items()},
        }

    async def start(self) -> bool:
        """Start it; whether it became ready."""
        reader, writer = os.pipe()
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _CODE, str(writer), env=self._environ, pass_fds=[writer], stderr=log, stdout=log
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            return await asyncio.to_thread(pipe.read) == b"ready\n"

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM, within_s: float = 20) -> int:
        """Send it a signal, and wait for its end; the exit code."""
        if self.process.returncode is None:
            self.send(number)
        async with asyncio.timeout(within_s):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running(folder: Path, settings: dict[str, str] | None = None) -> AsyncIterator[DaemonProcess]:
    """A daemon that is ready; killed at the end."""
    daemon = DaemonProcess(folder, settings)
    assert await daemon.start(), daemon.log.read_text()
    try:
        yield daemon
    finally:
        with contextlib.suppress(ProcessLookupError):
            await daemon.end(signal.SIGKILL)
