"""The daemon's composition root and its life, readable from top to bottom.

Strategy: everything is made here once, in the order in which it is needed, and closed in reverse order: lock → journal
(migrated) → executor and executions (what an earlier daemon left is adopted or settled) → revocations known → gRPC
server → ready → schedules fire.

Rules:
- One daemon for each data folder, held by a lock that ends with the process.
- SIGTERM and SIGINT: gateways are told (GOAWAY), no new runs, runs are cancelled and written down, commands get their
  replies, then streams end, then the journal is closed.
  A daemon that is killed leaves its runs alive; the next one adopts them.
- What cannot start says why in one line (`StartupError`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uvloop

from flx_api.config import secret_of
from flx_api.daemon import meltano_database
from flx_api.daemon.dispatch import Dispatcher
from flx_api.daemon.executions import Executions
from flx_api.daemon.executions.meltano_state import read_states
from flx_api.daemon.executors.local import LocalExecutor, MeterCommand
from flx_api.daemon.handlers import HANDLERS, Services
from flx_api.daemon.identity import project_id_of
from flx_api.daemon.journal import DEFAULT_TENANT, Journal
from flx_api.daemon.listener import Address, Listener
from flx_api.daemon.lock import DataLock
from flx_api.daemon.project import ProjectCache
from flx_api.daemon.revocations import Revocations
from flx_api.daemon.scheduler import Scheduler
from flx_api.daemon.server import DaemonService, services_of
from flx_api.daemon.tokens import TokenIssuer
from flx_api.daemon.trust import SocketTrust, TokenTrust
from flx_api.daemon.users import Users
from flx_api.errors import FlxError, ProjectInvalid, StartupError
from flx_api.events.ephemeral_log import EphemeralLog
from flx_api.models.event import SystemEvent
from flx_api.observability.logging import set_up
from flx_api.proto import http2, tls

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from flx_api.config import Settings
    from flx_api.daemon.project import ProjectModel
    from flx_api.daemon.trust import Trust

# The journal's thread has waited for the disk and only wants to say so: the loop lets it by sooner than Python's 5 ms.
_SWITCH_S = 0.0005
_HEAD_START_S = 0.1
_CHANGES_END_S = 2.0
# For clients to hear that the daemon stops and to have their replies; `flx serve` has stopped its gateway before.
_DRAIN_S = 5.0
_LOCAL_DRAIN_S = 0.5
# Room for verified tokens of direct clients: some thousands.
_TOKEN_BYTES = 8 * 1024 * 1024
# Meltano's name for states in its own database, which is also its default.
_SYSTEM_DATABASE = "systemdb"

log = structlog.stdlib.get_logger("flx.daemon")


def run_daemon(
    settings: Settings,
    *,
    socket_path: Path | None = None,
    tcp: tuple[str, int] | None = None,
    ready_fd: int | None = None,
    ready: Callable[[], None] = lambda: None,
    environ: Mapping[str, str],
) -> int:
    """Run a daemon until SIGTERM or SIGINT.

    Args:
        settings: all settings; `meltano` must name an environment.
        socket_path: where to listen, trusting whoever can open it.
        tcp: host and port to listen on in its place.
        ready_fd: an open descriptor that is told `ready` and closed.
        ready: called when commands are accepted.
        environ: the process's environment, of which runs see what the allow-list lets through.

    Returns:
        The exit code.

    Raises:
        StartupError: it cannot start.
    """
    if (socket_path is None) == (tcp is None):
        msg = "the daemon needs either a socket or a TCP address"
        raise StartupError(msg)
    set_up(settings.log_level)
    sys.setswitchinterval(_SWITCH_S)
    address = Address(socket_path=socket_path) if tcp is None else Address(host=tcp[0], port=tcp[1])

    def tell_ready() -> None:
        ready()
        if ready_fd is not None:
            with contextlib.suppress(OSError):
                os.write(ready_fd, b"ready\n")
                os.close(ready_fd)

    if tcp is not None:
        # Before anything else is begun: whatever is wrong with the files is one line.
        tls.of_daemon(settings)
    settings.data_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with DataLock(settings.data_path), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_live(settings, address, tell_ready, environ))
    return 0


async def _live(settings: Settings, address: Address, ready: Callable[[], None], environ: Mapping[str, str]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        journal = await _open_journal(settings, environ)
        stack.push_async_callback(journal.close)
        projects = ProjectCache(settings.project_dir, environ)
        executor = _executor(settings, address, projects, environ)
        stack.push_async_callback(executor.close)
        executions = Executions(
            journal,
            projects,
            executor,
            settings,
            clock=_now_us,
            read_states=_states_reader(settings, projects, environ),
        )
        users = Users(journal, _now_us)
        stack.callback(users.close)
        revocations = Revocations(journal, _now_us)
        services = Services(
            journal=journal,
            projects=projects,
            executions=executions,
            settings=settings,
            tokens=TokenIssuer(secret_of(settings), settings.jwt_issuer, settings.jwt_audience, _now_us),
            users=users,
            revocations=revocations,
            ephemeral=EphemeralLog(secrets.token_hex(8), _now_us),
            clock=_now_us,
            started_us=_now_us(),
            meltano_version=partial(_meltano_version, settings.meltano),
            stopping=stop.is_set,
        )
        dispatcher = Dispatcher(services, HANDLERS)
        await executions.start()
        stack.push_async_callback(dispatcher.close, _CHANGES_END_S)
        daemon = DaemonService(services, dispatcher, _trust(settings, address, revocations))
        guarded, health = services_of(daemon)
        http2.install()
        listener = Listener(guarded, address, settings)
        listens = await listener.listen()
        stack.push_async_callback(listener.stop)
        stack.push_async_callback(daemon.idle, _DRAIN_S if address.socket_path is None else _LOCAL_DRAIN_S)
        # Runs end before streams do, so that watchers see them end. Executions refuse new runs from here on.
        stack.push_async_callback(executions.close, cancel_runs=True)
        await _tell(journal, SystemEvent("started", "The daemon accepts commands."))
        scheduler = Scheduler(journal, projects, executions, settings, _now_us)
        # Before runs end: no schedule fires into a daemon that stops.
        stack.push_async_callback(scheduler.close)
        log.info("daemon ready", epoch=journal.epoch, seq=journal.seq, listens=listens)
        ready()
        # Last: Meltano's import takes a core for a second or more, and nobody who waits for us waits for that. The
        # gateway, which is about to say that all is ready, gets its answers first.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAD_START_S):
                await stop.wait()
        await executor.start()
        scheduler.start()
        # The first request that needs the model should find it read; a broken project is told when it is asked for.
        with contextlib.suppress(ProjectInvalid):
            await asyncio.to_thread(projects.current)
        await stop.wait()
        log.info("daemon stopping")
        health.set(False)
        listener.part()
        await _tell(journal, SystemEvent("stopping", "The daemon ends its runs and stops."))


async def _open_journal(settings: Settings, environ: Mapping[str, str]) -> Journal:
    try:
        return await Journal.open(settings.database, project_id_of(settings, environ), _now_us)
    except FlxError as error:
        # What the driver says names no password.
        reason = str(getattr(error.__cause__, "orig", None) or "").partition("\n")[0]
        msg = f"FLX_DATABASE_URL: {error.detail}" + (f": {reason}" if reason else "")
        raise StartupError(msg) from error


async def _tell(journal: Journal, event: SystemEvent) -> None:
    # Without storage the daemon still answers; `system.status` says what is wrong.
    with contextlib.suppress(FlxError):
        await journal.write(lambda tx: tx.emit("system_events", event, tenant=DEFAULT_TENANT))


def _trust(settings: Settings, address: Address, revocations: Revocations) -> Trust:
    if address.socket_path is not None:
        return SocketTrust()
    from flx_api._core import Revocations as NativeRevocations  # noqa: PLC0415 - needed over TCP only
    from flx_api.auth.keys import verifier  # noqa: PLC0415 - as above

    revoked = NativeRevocations()
    revocations.learn(revoked)
    # A key file of another issuer counts here too; an address does not, since the daemon fetches nothing.
    # A client without a stream shows its token with each call.
    verify = verifier(settings).remembering(_TOKEN_BYTES).verify_full
    gateways = frozenset(settings.grpc_gateway_names) if settings.grpc_ca_file is not None else None
    return TokenTrust(_shared_token(settings.grpc_token_file), verify, time.time, revoked, gateways)


def _shared_token(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        token = Path(file).read_bytes().strip()
    except OSError:
        token = b""
    if not token:
        msg = "FLX_GRPC_TOKEN_FILE: the file cannot be read or is empty"
        raise StartupError(msg)
    return token


def _executor(
    settings: Settings, address: Address, projects: ProjectCache, environ: Mapping[str, str]
) -> LocalExecutor:
    if settings.meltano is None:
        msg = "FLX_MELTANO: names no environment with Meltano (`flx serve` and `flx daemon` make one)"
        raise StartupError(msg)
    runtime_dir = address.socket_path.parent if address.socket_path is not None else settings.data_path / "runtime"
    runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return LocalExecutor(
        settings.project_dir,
        settings.data_path,
        runtime_dir,
        Path(settings.meltano),
        environ,
        dotenv_names=lambda: _of_model(projects, lambda model: model.dotenv_names),
        settings_env_names=lambda: _of_model(projects, lambda model: model.settings_env_names()),
        run_env=settings.run_env,
        database_uri=lambda: _database_uri(projects),
        meter=_meter(),
        use_fork=settings.fork == "auto",
        nice=settings.run_nice,
    )


def _of_model(projects: ProjectCache, names: Callable[[ProjectModel], Collection[str]]) -> Collection[str]:
    try:
        return names(projects.current())
    except ProjectInvalid:
        return ()


def _database_uri(projects: ProjectCache) -> str | None:
    try:
        return projects.current().database_uri
    except ProjectInvalid:
        return None


def _states_reader(settings: Settings, projects: ProjectCache, environ: Mapping[str, str]) -> Callable[..., Any]:
    root = settings.project_dir
    shared = root / environ.get("MELTANO_SYS_DIR_ROOT", ".meltano")

    def read(state_ids: tuple[str, ...]) -> Any:  # noqa: ANN401 - what read_states returns
        # Asked for each run: the project may name another database by then, and the start waits for no YAML.
        try:
            model = projects.current()
        except ProjectInvalid:
            return None
        if (model.state_backend_uri or _SYSTEM_DATABASE) != _SYSTEM_DATABASE:
            return None
        uri = meltano_database.resolve_uri(model.database_uri, shared, root, environ)
        return read_states(meltano_database.sqlite_file(uri), state_ids)

    return read


def _meter() -> MeterCommand | None:
    """What counts behind plugins; None without the native module, and every verdict then says so."""
    native = find_spec("flx_api._core")
    if native is None or native.origin is None:
        return None
    return MeterCommand(Path(sys.executable), Path(__file__).with_name("meter.py"), Path(native.origin))


def _meltano_version(folder: str | None) -> str | None:
    """The version of Meltano in an environment, by the name of its metadata folder."""
    if folder is None:
        return None
    found = next(Path(folder).glob("lib/python*/site-packages/meltano-*.dist-info"), None)
    return found.name.removeprefix("meltano-").removesuffix(".dist-info") if found else None


def _now_us() -> int:
    return time.time_ns() // 1000
