"""The gateway as the supervisor's child: `python -m flx_api.cli.gateway_process PARENT LISTENING_FD`.

Strategy: Granian's process server over the supervisor's listening socket. The application is imported here, before
Granian forks its workers, so that a worker starts (and is started again) without importing anything.

Rules:
- One listening socket for all workers: connections in its queue outlive any worker. Granian's own default, a socket per
  worker (SO_REUSEPORT), loses the queue of a worker that dies.
- Limits are those of security.md, section 3. They are written here once, and for the lane in `rust/lane/src/server.rs`.
- On the lane a server of our own has that socket, in each worker. Granian keeps the workers, their loop and their
  end, and listens on a socket that has no name.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from flx_api.cli.children import expect_parent, leave_out_optional_parts, spare_the_collector
from flx_api.config import Settings, load
from flx_api.errors import StartupError

_HEADER_READ_MS = 10_000
_H2_HEADER_LIST = 65_536
_H2_STREAMS = 100
_H2_STREAM_WINDOW = 65_536
_H2_CONNECTION_WINDOW = 1_048_576
_H2_KEEP_ALIVE_MS = 20_000
# Open connections a worker takes before it stops accepting; they then wait in the queue.
_BACKPRESSURE = 4096
# The supervisor gives the gateway 3 s; a worker that an open stream holds back is ended before that.
_WORKER_KILL_S = 2
# Beyond the setting's time between SIGUSR1 (the application says goodbye) and SIGTERM (Granian stops): for Close frames
# to leave. Nobody waits for what is over before.
_FAREWELL_S = 0.25


class Gateway(MPServer):
    """Granian on a socket it did not open."""

    def __init__(self, settings: Settings, listening: int) -> None:
        self._nobody: socket.socket | None = None
        if settings.interface == "lane":
            self._nobody = _nameless()
            listening = self._nobody.fileno()
        self._listening = listening
        self._drain_s = settings.drain_s
        certificate, key = Path(settings.ssl_cert_file or ""), Path(settings.ssl_key_file or "")
        is_secure = settings.enable_ssl and self._nobody is None
        # Each worker has the writer until it has drained; so the reader ends when all have.
        self._drained, self.draining = os.pipe()
        super().__init__(
            "flx_api.main",
            interface=Interfaces.RSGI if settings.interface == "rsgi" else Interfaces.ASGI,
            loop=Loops.uvloop,
            http=HTTPModes.auto,
            workers=settings.workers,
            backpressure=_BACKPRESSURE,
            http1_settings=HTTP1Settings(header_read_timeout=_HEADER_READ_MS),
            http2_settings=HTTP2Settings(
                initial_connection_window_size=_H2_CONNECTION_WINDOW,
                initial_stream_window_size=_H2_STREAM_WINDOW,
                keep_alive_interval=_H2_KEEP_ALIVE_MS,
                max_concurrent_streams=_H2_STREAMS,
                max_headers_size=_H2_HEADER_LIST,
            ),
            log_level=LogLevels.warning,
            log_access=False,
            ssl_cert=certificate if is_secure else None,
            ssl_key=key if is_secure else None,
            respawn_failed_workers=True,
            workers_kill_timeout=_WORKER_KILL_S,
        )

    def _init_shared_socket(self) -> None:
        # Granian's stubs leave out the constructor and say None for what is set later.
        holder: Any = SocketHolder
        shared = self._nobody or socket.socket(fileno=self._listening)
        shared.set_inheritable(True)
        self._ssp = None
        self._sfd: Any = self._listening
        self._shd: Any = holder(self._listening, self._nobody is not None, self.backlog)
        self._sso: Any = shared

    def _stop_workers(self) -> None:
        """Let the workers drain first: told to end, Granian cuts WebSockets without a Close frame."""
        if self.draining >= 0:
            os.close(self.draining)
            self.draining = -1
        for worker in self.wrks:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(worker.inner.pid, signal.SIGUSR1)
        select.select([self._drained], [], [], self._drain_s + _FAREWELL_S)
        super()._stop_workers()  # type: ignore[no-untyped-call]


def _nameless() -> socket.socket:
    """A socket that listens where nobody can connect to."""
    nobody = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with tempfile.TemporaryDirectory(prefix="flx-") as folder:
            nobody.bind(f"{folder}/s")
            nobody.listen(1)
    except OSError as error:
        detail = f"FLX_INTERFACE: lane needs a temporary folder with a short name: {error.strerror or error}"
        raise StartupError(detail) from None
    return nobody


def hand_over(app: Any, server: int, draining: int, interface: str) -> Any:  # noqa: ANN401 - an ASGI and RSGI one
    """In a worker: the application, ready before the fork. The worker ends with the server that forked it."""
    expect_parent(server)
    app.on_drained = partial(os.close, draining)
    spare_the_collector()
    return app if interface == "rsgi" else app.enter


def main() -> int:
    """Serve until told to end; 2 when the gateway cannot start, with one line that says why."""
    expect_parent(int(sys.argv[1]))
    leave_out_optional_parts()
    try:
        settings = load(os.environ)
        from flx_api.main import create_app  # noqa: PLC0415 - the application is heavy; the parent is known to live
        from flx_api.observability.logging import set_up  # noqa: PLC0415

        set_up(settings.log_level)
        app = create_app(settings)
        if settings.interface == "lane":
            app.lane_listens = int(sys.argv[2])
        gateway = Gateway(settings, int(sys.argv[2]))
        gateway.serve(
            target_loader=partial(hand_over, app, os.getpid(), gateway.draining, settings.interface), wrap_loader=False
        )
    except StartupError as error:
        print(error, file=sys.stderr)
        return 2
    except ssl.SSLError as error:
        # What the native listeners can use and the server cannot.
        print(f"FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: {error.reason or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
