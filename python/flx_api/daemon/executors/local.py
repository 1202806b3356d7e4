"""Runs as processes of this machine, forked from a warm Meltano.

Strategy: a run is a session led by a keeper process (see `flx_api.daemon.zygote`). The executor makes its folder,
its environment and its command line, has the child made, and from then on follows it by pid and start time alone, the
same way whether it was started a moment ago or by a daemon that has since been killed. The end of the keeper is the end
of the run; what the keeper wrote is how it ended.

Rules:
- `spawn` writes the process down in the run's folder before it returns; `release` is the only thing that opens a gate.
- Meltano's database is brought up to date once before the first run, so that first runs do not race in making it.
- `settle` makes the same of every end: an empty session, a true row in Meltano's database, no secrets on the disk.
- File and database work happens in threads; nothing here holds up the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from flx_api.daemon import meltano_database
from flx_api.daemon.executors.zygote_process import ZygoteProcess
from flx_api.daemon.processes import (
    ProcessWatch,
    age_s,
    boot_id,
    empty_session,
    identify,
    is_alive,
    kill_session,
    session_empty,
    signal_group,
)
from flx_api.daemon.run_environment import fixed_environment, machine_environment, run_environment
from flx_api.daemon.run_folder import RunFolder, RunFolders
from flx_api.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from io import FileIO

    from flx_api.daemon.executors import ExitRecord, ProcessIdentity, RunSpec

_GATE_OPEN = b"g"
_MIGRATING_COMMAND = ("job", "list")
_COMMAND_S = 120.0
_LAST_WORDS_S = 2.0
_KILLED = "The run was killed. (set by flx-api)"

log = structlog.stdlib.get_logger(__name__)


class MeterCommand(msgspec.Struct, frozen=True):
    """What stands in front of a plugin's own command line to count what passes: see `flx_api.daemon.meter`."""

    python: Path
    script: Path
    native: Path

    def before_plugins(self, meter_dir: Path) -> list[str]:
        """The words before role, plugin and the plugin's own command line."""
        return [str(self.python), "-I", "-S", str(self.script), str(self.native), str(meter_dir)]


class CommandResult(msgspec.Struct, frozen=True):
    """The end of a Meltano command that is not a run."""

    code: int
    stdout: bytes
    stderr: bytes


class LocalRun:
    """A run that has a process on this machine."""

    def __init__(self, identity: ProcessIdentity, records: RunFolder, gate: FileIO | None = None) -> None:
        self.identity = identity
        self.folder: Path = records.path
        self._records = records
        self._gate = gate
        self._watch = ProcessWatch(identity)

    @property
    def age_s(self) -> float | None:
        """How long ago its process was made, whatever became of the wall clock since; None when nobody knows."""
        return age_s(self.identity)

    async def release(self) -> None:
        """Open the gate: the identity is committed, the run may begin."""
        gate, self._gate = self._gate, None
        if gate is None:
            return
        with gate, contextlib.suppress(BrokenPipeError):  # it died waiting; `wait` will say so
            gate.write(_GATE_OPEN)

    async def wait(self) -> ExitRecord | None:
        """The exit record once the process has ended; None when it vanished without one."""
        await self._watch.wait()
        return await asyncio.to_thread(lambda: self._records.exit_record)

    async def cancel(self, grace_s: float) -> None:
        """SIGTERM to the whole group, SIGKILL after the grace, return when its session is empty."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.close()
        # The keeper ends when Meltano has; plugins get the rest of the grace.
        if signal_group(self.identity, signal.SIGTERM) and not await session_empty(self.identity, grace_s):
            # The keeper last: it still writes down by which signal Meltano went.
            await asyncio.to_thread(kill_session, self.identity, spare_leader=True)
            await session_empty(self.identity, _LAST_WORDS_S)
        if not await empty_session(self.identity):
            log.warning("a process of the run cannot be killed", run=self.folder.name)
        await self._watch.wait()


class LocalExecutor:
    """Starts runs on this machine, finds them again, clears up after them.

    Args:
        project_root: the Meltano project.
        data_dir: where run folders and catalogues are kept.
        runtime_dir: for files that live no longer than the daemon.
        meltano: Meltano's own environment, with `bin/python` and `bin/meltano`.
        environ: the daemon's environment; runs see what the allow-list lets through.
        dotenv_names: the names in the project's `.env`, asked for each run.
        settings_env_names: the environment names of plugins' settings, asked for each run.
        run_env: `FLX_RUN_ENV`, names or globs.
        database_uri: Meltano's database as the project configures it, asked for each run; None: as the environment
            says, or the default.
        meter: put in front of every plugin; None runs unmetered.
        use_fork: fork runs from a warm process where the system can; False starts a fresh one per run.
        nice: how many steps runs stand back behind everything else on this machine.
    """

    def __init__(
        self,
        project_root: Path,
        data_dir: Path,
        runtime_dir: Path,
        meltano: Path,
        environ: Mapping[str, str],
        *,
        dotenv_names: Callable[[], Collection[str]] = tuple,
        settings_env_names: Callable[[], Collection[str]] = tuple,
        run_env: Collection[str] = (),
        database_uri: Callable[[], str | None] = lambda: None,
        meter: MeterCommand | None = None,
        use_fork: bool = True,
        nice: int = 0,
    ) -> None:
        self._root = project_root
        self._meltano = meltano
        self._environ = dict(environ)
        self._dotenv_names = dotenv_names
        self._settings_env_names = settings_env_names
        self._run_env = tuple(run_env)
        self._meter = meter
        self._nice = nice
        self._shared = project_root / environ.get("MELTANO_SYS_DIR_ROOT", ".meltano")
        self._configured_database = database_uri
        self._folders = RunFolders(data_dir, self._shared)
        self._boot_id = boot_id()
        self._zygote = ZygoteProcess(
            meltano,
            runtime_dir,
            machine_environment(environ, self._run_env),
            use_fork=use_fork,
            label=str(project_root),
        )
        self._migrating = asyncio.Lock()
        self._migrated: tuple[str, int, int] | None = None
        self._warming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make ready in the background; returns at once."""
        self._warming = asyncio.get_running_loop().create_task(self._make_ready())

    async def warm(self) -> None:
        """Return when the next run starts at full speed: for benchmarks and readiness detail."""
        await self._zygote.warm()
        await self._ensure_database()

    async def spawn(self, spec: RunSpec) -> LocalRun:
        """A process for the attempt that waits at its gate.

        Raises:
            Conflict: the attempt had a process before.
            Unavailable: no process can be made.
        """
        await self._ensure_database()
        records = await asyncio.to_thread(self._folders.prepare, spec)
        try:
            return await self._spawn(spec, records)
        except BaseException:
            await asyncio.to_thread(records.remove_system)
            raise

    async def attach(self, attempt_id: str, identity: ProcessIdentity) -> LocalRun | None:
        """The run of an earlier daemon if it is still alive, else None."""
        records = self._folders.of(attempt_id)
        process = await asyncio.to_thread(lambda: records.process)
        if (process is not None and process.boot_id != self._boot_id) or not is_alive(identity):
            return None
        return LocalRun(identity, records)

    async def settle(self, attempt_id: str, *, run_started: bool) -> ExitRecord | None:
        """After the end, whatever it was: leave no process, no lying row, no secret. Safe to repeat."""
        records = self._folders.of(attempt_id)
        identity = await asyncio.to_thread(records.identity, self._boot_id)
        if identity is not None:
            if await empty_session(identity):
                try:
                    await asyncio.to_thread(records.write_gone, self._boot_id)
                except OSError as error:  # a full disk must not keep secrets on it
                    log.warning("a run's end could not be noted", run=attempt_id, reason=repr(error))
            else:
                log.warning("a process of the run cannot be killed", run=attempt_id)
        record = await asyncio.to_thread(lambda: records.exit_record)
        if run_started or records.was_released:
            await self._repair(attempt_id, record)
        await asyncio.to_thread(self._clear, records, record)
        return record

    async def leftovers(self) -> list[str]:
        """Attempts whose private folder, with its secrets, still exists. A restarted daemon settles the dead ones."""
        return await asyncio.to_thread(self._folders.with_leftovers)

    async def forget_catalogues(self, extractor: str) -> None:
        """The extractor was installed or changed: its next run discovers anew."""
        await asyncio.to_thread(self._folders.forget_catalogues, extractor)

    async def command(self, *argv: str, within_s: float = _COMMAND_S) -> CommandResult:
        """Any other `meltano ...` of the project, in the shared system folder, as on a terminal.

        Raises:
            DeadlineExceeded: it took too long and was killed.
            Unavailable: no process can be made.
        """
        request = {"argv": argv, "cwd": str(self._root), "env": self._run_environ(self._shared, {})}
        with _unnamed_file() as output, _unnamed_file() as errors:
            answer, report = await self._zygote.ask("command", request, [output, errors])
            identity = identify(answer.pid)
            try:
                answer = await report.line(within_s) or answer
            except TimeoutError as error:
                raise DeadlineExceeded("Meltano took too long.") from error
            finally:
                report.close()
                if identity is not None:
                    await empty_session(identity)
            code = -signal.SIGKILL if answer.code is None else answer.code
            return CommandResult(code, _content(output), _content(errors))

    async def close(self) -> None:
        """Stop the executor's own processes; runs are not touched."""
        if self._warming is not None:
            self._warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._warming
        await self._zygote.close()

    @property
    def _database_uri(self) -> str:
        configured = self._configured_database() or self._environ.get("MELTANO_DATABASE_URI")
        return meltano_database.resolve_uri(configured, self._shared, self._root, self._environ)

    async def _make_ready(self) -> None:
        try:
            await self.warm()
        except (OSError, Unavailable) as error:
            log.warning("not warm", reason=repr(error))

    async def _spawn(self, spec: RunSpec, records: RunFolder) -> LocalRun:
        request = {
            "argv": command_line(spec),
            "cwd": str(self._root),
            "env": self._run_environ(records.system, spec.overrides),
            "folder": str(records.path),
            "nice": self._nice,
            "meter": self._meter.before_plugins(records.meter) if self._meter else None,
        }
        gate_read, gate_write = os.pipe()
        gate = os.fdopen(gate_write, "wb", buffering=0)
        try:
            try:
                answer, report = await self._zygote.ask("run", request, [gate_read])
            finally:
                os.close(gate_read)
            report.close()
            identity = identify(answer.pid)
            if identity is None:
                raise Unavailable("The run's process ended at once.")  # noqa: TRY301
            await asyncio.to_thread(records.write_process, identity, self._boot_id)
            return LocalRun(identity, records, gate)
        except BaseException:
            gate.close()
            raise

    def _run_environ(self, system_dir: Path, overrides: Mapping[str, str]) -> dict[str, str]:
        allowed = run_environment(
            self._environ,
            dotenv_names=self._dotenv_names(),
            settings_env_names=self._settings_env_names(),
            run_env=self._run_env,
            overrides=overrides,
        )
        wanted = allowed.get("MELTANO_CLI_LOG_LEVEL", "").lower()
        return allowed | fixed_environment(
            project_root=self._root,
            system_dir=system_dir,
            database_uri=self._database_uri,
            absent_file=self._shared / "flx-api-has-no-logging.yaml",
            log_level="debug" if wanted == "debug" else "info",
        )

    async def _ensure_database(self) -> None:
        """Bring Meltano's database to its present revision before runs do it all at once."""
        uri = self._database_uri
        path = meltano_database.sqlite_file(uri)
        if self._migrated == (uri, *_file_id(path)):
            return
        async with self._migrating:
            if self._migrated == (uri, *_file_id(path)):
                return
            wanted = await asyncio.to_thread(meltano_database.latest_revision, self._meltano)
            found = await asyncio.to_thread(meltano_database.sqlite_revision, path) if path else None
            if wanted is None or found != wanted:
                result = await self.command(*_MIGRATING_COMMAND)
                if result.code:
                    # Not ours to judge: the run meets the same trouble and says so in its own log.
                    log.warning("Meltano's database could not be prepared", code=result.code)
                    return
            self._migrated = (uri, *_file_id(path))

    async def _repair(self, attempt_id: str, record: ExitRecord | None) -> None:
        """Meltano's rows of a killed run. A failure here must not keep secrets on the disk."""
        try:
            uri = self._database_uri
            if path := meltano_database.sqlite_file(uri):
                rows = await asyncio.to_thread(meltano_database.fail_rows, path, attempt_id, datetime.now(UTC), _KILLED)
            elif record is None or record.code < 0:
                request = {"database_uri": uri, "run_id": attempt_id, "error": _KILLED}
                answer, report = await self._zygote.ask("repair", request)
                report.close()
                rows = answer.rows
            else:
                rows = 0
        except Exception as error:  # noqa: BLE001 (any driver's error)
            log.warning("Meltano's row could not be repaired", run=attempt_id, reason=repr(error))
        else:
            if rows:
                log.info("Meltano's row repaired", run=attempt_id, rows=rows)

    def _clear(self, records: RunFolder, record: ExitRecord | None) -> None:
        if not records.system.exists():
            return
        spec = records.spec
        try:
            if record is not None and record.code == 0 and spec is not None:
                self._folders.keep_catalogues(records, spec.environment)
        except OSError as error:  # the next run discovers anew; what matters is that the secrets go
            log.warning("a catalogue could not be kept", run=records.path.name, reason=repr(error))
        finally:
            records.remove_system()


def command_line(spec: RunSpec) -> list[str]:
    """The words after `meltano` for a run. Values are joined to their options: none can pass for an option itself."""
    words = ["--log-format=json"]
    if spec.environment is not None:
        words.append(f"--environment={spec.environment}")
    words += ["run" if spec.elt is None else "elt", "--no-install", f"--run-id={spec.attempt_id}"]
    if spec.full_refresh:
        words.append("--full-refresh")
    if spec.elt is not None:
        # It knows no time limit: the supervisor's own ends it.
        return [*words, f"--state-id={spec.elt.state_id}", f"--transform={spec.elt.transform}", "--", *spec.blocks]
    if spec.timeout_s is not None:
        words.append(f"--timeout={spec.timeout_s}")
    if spec.state_id_suffix is not None:
        words.append(f"--state-id-suffix={spec.state_id_suffix}")
    return [*words, "--", *spec.blocks]


def _file_id(path: str | None) -> tuple[int, int]:
    """Which file it is; a database that was deleted and made anew is another. Zeros where there is no file."""
    if path is None:
        return (0, 0)
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return (-1, -1)
    return (found.st_dev, found.st_ino)


@contextlib.contextmanager
def _unnamed_file() -> Iterator[int]:
    """A file without a name for a command's output, which has no bound that a pipe would need a reader for."""
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def _content(descriptor: int) -> bytes:
    """All of an unnamed file."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
