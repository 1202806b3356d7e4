"""`flx serve`: one daemon and one gateway, started together, kept running, stopped in order.

Strategy: a single-threaded loop over a selector. Signals arrive as bytes on a pipe (`set_wakeup_fd`), the daemon's
readiness as an end of its own pipe, the gateway's as the answer to `GET /ready`; restarts and deadlines are the loop's
timeout. The listening socket is made here and inherited by the gateway, so a port that is taken is said at once, and
connections wait in the queue while a crashed gateway is started again.

Rules:
- Signals are handled here and nowhere else in the supervisor; children are reaped here and nowhere else.
- Before the service was ready once, a child's end is the service's end. After that a child is started again.
- What is not there yet (a daemon elsewhere) is waited for, and said. A reason is said once.
- Stopping: gateway (drains), then daemon (cancels runs), then whatever a dead daemon left us as the subreaper.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from typing import TYPE_CHECKING, TextIO

from flx_api import _core
from flx_api.cli import meltano, runtime
from flx_api.cli.children import DAEMON_SOCKET, Child, describe, environ_of, orphans
from flx_api.cli.readiness import Probe
from flx_api.errors import StartupError
from flx_api.limits import shared_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from socket import socket

    from flx_api.config import Settings

# Everything is over within 10 s and the drain: 3 for open requests, the cancel grace (5 by default), the rest for the
# daemon itself.
_GATEWAY_STOP_S = 3.0
_DAEMON_STOP_S = 1.7
_PROBE_PAUSE_S = 0.01
# What is not ready for the same reason for so long waits for something; until then it is just starting.
_PATIENCE_S = 2.0
_PATIENT_PROBE_PAUSE_S = 0.2
_STARTUP_EXIT = 2


class Supervisor:
    """The processes of one service.

    Args:
        settings: what is in force.
        overrides: what the command line said, for the children's environment.
        say: prints a line for the person who started the service.
    """

    def __init__(self, settings: Settings, overrides: dict[str, object], say: Callable[[str], None]) -> None:
        self._settings = settings
        self._overrides = overrides
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._daemon = Child("daemon", "flx_api.cli.daemon_process")
        self._gateway = Child("gateway", "flx_api.cli.gateway_process")
        self._own_daemon = settings.grpc_daemon_host is None
        self._probe: Probe | None = None
        self._probe_at: float | None = None
        self._ready = False
        self._waits_for = ""
        self._waits_since = 0.0
        self._said: set[str] = set()
        self._stopping = False
        self._exit_code = 0
        self._signals = -1
        self._runtime_dir: Path
        self._listener: socket
        self._realtime: socket | None = None
        self._shared: int
        self._environ: dict[str, str]

    def run(self) -> int:
        """Serve until a signal, and return the exit code.

        Raises:
            StartupError: nothing was started; the line names the setting.
        """
        runtime.check_limits(self._settings)
        runtime.check_certificate(self._settings)
        other = runtime.running_service(self._settings)
        if other is not None:
            msg = f"FLX_DATA_DIR: a service (process {other.pid}) already uses {self._settings.data_path}"
            raise StartupError(msg)
        self._listener = runtime.listen(self._settings)
        with contextlib.ExitStack() as stack:
            stack.callback(self._listener.close)
            self._realtime = runtime.reserve_realtime(self._settings)
            if self._realtime is not None:
                stack.callback(self._realtime.close)
            stack.callback(self._selector.close)
            if self._own_daemon:
                runtime.check_project(self._settings)
            runtime.prepare_data_folder(self._settings)
            stack.enter_context(runtime.hold(self._settings))
            folder = None
            if self._own_daemon:
                folder = meltano.ensure(meltano.environment_folder(self._settings), self._say)
            self._environ = environ_of(self._settings, self._overrides, meltano=folder)
            if self._realtime is not None:
                self._environ["FLX_REALTIME_PORT"] = str(self._realtime.getsockname()[1])
            self._runtime_dir = runtime.make_runtime_dir(self._settings, self._environ)
            stack.callback(runtime.remove_runtime_dir, self._runtime_dir)
            if self._own_daemon:
                self._environ[DAEMON_SOCKET] = str(self._runtime_dir / "daemon.sock")
            self._shared = shared_memory.create()
            stack.callback(os.close, self._shared)
            self._environ[shared_memory.SHARED_MEMORY] = str(self._shared)
            self._listen_to_signals()
            _core.become_subreaper()
            stack.callback(runtime.remove_endpoints, self._settings)
            self._loop()
            self._sweep()
        return self._exit_code

    def _loop(self) -> None:
        now = time.monotonic()
        if self._own_daemon:
            self._start_daemon(now)
        self._start_gateway(now)
        while not self._stopping or self._alive():
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            self._keep_time()

    # ---- starting ----

    def _start_daemon(self, now: float) -> None:
        # The daemon writes to this pipe when it is ready; we only need to know when it is not going to.
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            self._daemon.start(now, [self._environ[DAEMON_SOCKET], str(writer)], self._environ, [writer])
        finally:
            os.close(writer)
        self._selector.register(reader, selectors.EVENT_READ, lambda: self._on_daemon(reader))

    def _start_gateway(self, now: float) -> None:
        listening = self._listener.fileno()
        self._gateway.start(now, [str(listening)], self._environ, [listening, self._shared])
        if not self._ready:
            self._ask()

    def _on_daemon(self, reader: int) -> None:
        self._selector.unregister(reader)
        os.close(reader)

    def _ask(self) -> None:
        self._probe_at = None
        try:
            self._probe = Probe(self._settings, self._listener)
        except OSError:
            self._probe_at = time.monotonic() + _PROBE_PAUSE_S
            return
        self._probe.step()  # the request waits in the socket until the gateway reads it
        self._selector.register(self._probe.socket, selectors.EVENT_READ, self._on_answer)

    def _on_answer(self) -> None:
        if self._probe is None:
            return
        answer = self._probe.step()
        if answer is None:
            return
        reason = self._probe.reason
        self._drop_probe()
        if answer:
            self._on_ready()
        else:
            self._on_not_ready(reason)

    def _on_not_ready(self, reason: str) -> None:
        now = time.monotonic()
        if reason != self._waits_for:
            self._waits_for, self._waits_since = reason, now
        if now - self._waits_since < _PATIENCE_S:
            self._probe_at = now + _PROBE_PAUSE_S
            return
        self._probe_at = now + _PATIENT_PROBE_PAUSE_S
        if reason and reason not in self._said:
            self._said.add(reason)
            place = ""
            if not self._own_daemon and reason.startswith("daemon: "):
                settings = self._settings
                place = f" (FLX_GRPC_DAEMON_HOST={settings.grpc_daemon_host}, port {settings.grpc_daemon_port})"
            _complain(f"not ready yet, trying on: {reason}{place}")

    def _drop_probe(self) -> None:
        if self._probe is not None:
            self._selector.unregister(self._probe.socket)
            self._probe.close()
            self._probe = None
        self._probe_at = None

    def _on_ready(self) -> None:
        self._ready = True
        url, ws_url = runtime.urls_of(self._settings, self._listener)
        endpoints = runtime.Endpoints(
            url=url,
            ws_url=ws_url,
            daemon_socket=self._environ.get(DAEMON_SOCKET, ""),
            pid=os.getpid(),
            data_dir=str(self._settings.data_path),
            project=str(self._settings.project_dir),
            realtime_url="" if self._realtime is None else runtime.urls_of(self._settings, self._realtime)[1],
        )
        runtime.write_endpoints(self._settings, endpoints)
        self._say(_banner(endpoints))

    # ---- signals, time and children ----

    def _listen_to_signals(self) -> None:
        self._signals, writer = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the byte on the pipe is what counts
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)

    def _on_signals(self) -> None:
        numbers = os.read(self._signals, 4096)
        if signal.SIGCHLD in numbers:
            self._reap()
        if any(number in numbers for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
            if self._stopping:  # asked twice: no more patience
                self._gateway.kill()
                self._daemon.kill()
            self._stop()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in (self._daemon, self._gateway):
                if child.pid == pid:
                    self._on_end(child, status)

    def _on_end(self, child: Child, status: int) -> None:
        pause = child.ended(time.monotonic())
        if self._stopping:
            child.restart_at = None
            return
        if not self._ready:
            code = os.waitstatus_to_exitcode(status)
            if code != _STARTUP_EXIT:  # with that one, the child has said why in one line
                _complain(f"the {child.name} ended before it was ready ({describe(status)})")
            self._exit_code = code if code == _STARTUP_EXIT else 1
            self._stop()
            return
        _complain(f"the {child.name} ended ({describe(status)}); starting it again in {pause:.1f} s")

    def _timeout(self) -> float | None:
        moments = [self._probe_at] + [m for c in (self._daemon, self._gateway) for m in (c.restart_at, c.kill_at)]
        known = [moment for moment in moments if moment is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._probe_at is not None and now >= self._probe_at:
            self._ask()
        for child, start in ((self._daemon, self._start_daemon), (self._gateway, self._start_gateway)):
            if child.restart_at is not None and now >= child.restart_at:
                start(now)
            if child.kill_at is not None and now >= child.kill_at:
                _complain(f"the {child.name} did not end in time; killing it")
                child.kill()
        if self._stopping and self._gateway.pid is None and self._daemon.pid is not None and not self._daemon.kill_at:
            self._daemon.stop(now + self._settings.cancel_grace_s + _DAEMON_STOP_S)

    # ---- stopping ----

    def _alive(self) -> bool:
        return self._gateway.pid is not None or self._daemon.pid is not None

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        runtime.remove_endpoints(self._settings)
        self._drop_probe()
        self._daemon.restart_at = None
        self._gateway.stop(time.monotonic() + self._settings.drain_s + _GATEWAY_STOP_S)

    def _sweep(self) -> None:
        """End what is left to us: only a daemon that was killed leaves something."""
        for pid in orphans():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                group = os.getpgid(pid)
                if group != os.getpgrp():
                    os.killpg(group, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def _banner(endpoints: runtime.Endpoints) -> str:
    return "\n".join(
        (
            f"FLX API serves {endpoints.project}",
            f"  API        {endpoints.url}        documentation: {endpoints.url}/docs",
            f"  WebSocket  {endpoints.ws_url}/ws/{{client_id}}",
            *([f"  Native     {endpoints.realtime_url}/ws/{{client_id}}"] if endpoints.realtime_url else []),
            f"  Data       {endpoints.data_dir}",
            f"  Token      flx token mint --sub me --role admin --project {endpoints.project}",
            "Ctrl-C stops it.",
        )
    )


def _complain(line: str, stream: TextIO | None = None) -> None:
    print(f"flx serve: {line}", file=stream or sys.stderr, flush=True)
