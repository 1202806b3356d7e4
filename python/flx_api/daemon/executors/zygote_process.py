"""The daemon's side of `flx_api.daemon.zygote`: keeps a warm Meltano process and asks it for children.

Strategy: a request is one datagram on a Unix socket pair with its descriptors attached: the request itself in an
unlinked file (it holds secrets and may be large), whatever the kind needs, and the write end of a report pipe made for
this request alone. So answers need no matching, and a zygote that dies with a request in its hands closes the pipe: the
request is made again to its successor, which is safe because a child does nothing before its gate opens. Where forking
is not wanted or not possible, the same script serves the same request in a fresh process.

Rules:
- The zygote's environment holds nothing of ours: a child's /proc/<pid>/environ is for ever that of the zygote.
- It is a session of its own (a terminal's interrupt is not for it) and ends when its socket closes.
- A new Meltano in its environment folder means a new zygote; a changed project does not.
- A zygote that does not get warm is tried again, each time later; meanwhile requests take the slow way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from flx_api.daemon.processes import reap
from flx_api.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping, Sequence

SCRIPT = Path(__file__).parent.parent / "zygote.py"
CAN_FORK = sys.platform == "linux"

_ANSWER_S = 60.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_STOP_S = 2.0

log = structlog.stdlib.get_logger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """One line of a report: the child's pid, its exit code, or why there is none."""

    pid: int = 0
    code: int | None = None
    rows: int = 0
    error: str = ""


class Report:
    """The read end of a request's report pipe."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._fd = descriptor
        self._buffer = b""

    async def line(self, within_s: float) -> Answer | None:
        """The next line; None when the other side closed without one. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within_s):
            while b"\n" not in self._buffer:
                readable: asyncio.Future[None] = loop.create_future()
                loop.add_reader(self._fd, _set, readable)
                try:
                    await readable
                finally:
                    loop.remove_reader(self._fd)
                data = os.read(self._fd, 4096)
                if not data:
                    return None
                self._buffer += data
        first, _, self._buffer = self._buffer.partition(b"\n")
        return msgspec.json.decode(first, type=Answer)

    def close(self) -> None:
        """Nothing more is wanted."""
        os.close(self._fd)


class ZygoteProcess:
    """A warm Meltano process, restarted when it dies. `label` ends its command line, for those who list processes."""

    def __init__(
        self, meltano: Path, runtime_dir: Path, environ: Mapping[str, str], *, use_fork: bool, label: str = ""
    ) -> None:
        self._label = label
        self._meltano = meltano
        self._python = meltano / "bin" / "python"
        self._log_path = runtime_dir / "zygote.log"
        self._runtime_dir = runtime_dir
        self._environ = dict(environ)
        self._use_fork = use_fork and CAN_FORK
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._installed: tuple[int, ...] = ()
        self._warm = asyncio.Event()
        self._launching = asyncio.Lock()
        self._delay_s = 0.0
        self._not_before = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The warm process, if there is one."""
        return self._process.pid if self._process and self._control else None

    async def warm(self) -> None:
        """Return when a child can be had at once. Without forking that is never, and this returns at once."""
        if self._use_fork:
            await self._launch()
            await self._warm.wait()

    async def ask(
        self, kind: str, request: Mapping[str, object], descriptors: Sequence[int] = ()
    ) -> tuple[Answer, Report]:
        """A child for the request and its first answer. The caller closes the report.

        Raises:
            Unavailable: no process can be made.
        """
        with _request_file(request, self._runtime_dir) as request_fd:
            for _ in range(2):
                if not await self._launch():
                    break
                answered = await self._ask_warm(kind, [request_fd, *descriptors])
                if answered is None:
                    continue  # the zygote died under the request; nothing was done
                if not answered[0].error:
                    return answered
                answered[1].close()
                log.warning("zygote refused to fork", reason=answered[0].error)
                break
            return await self._ask_fresh(kind, [request_fd, *descriptors])

    async def close(self) -> None:
        """End the zygote. Its children are not touched."""
        self._closed.set()
        self._drop()
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def _ask_warm(self, kind: str, descriptors: list[int]) -> tuple[Answer, Report] | None:
        control = self._control
        if control is None:
            return None
        read_end, write_end = os.pipe()
        report = Report(read_end)
        try:
            try:
                await self._send(control, kind, [*descriptors, write_end])
            finally:
                os.close(write_end)
            answer = await report.line(_ANSWER_S)
        except OSError as error:  # TimeoutError is one: a zygote that does not answer is of no use
            report.close()
            log.warning("zygote does not answer", reason=repr(error))
            self._kill()
            return None
        except BaseException:
            report.close()
            raise
        if answer is None:
            report.close()
            return None
        return answer, report

    async def _ask_fresh(self, kind: str, descriptors: list[int]) -> tuple[Answer, Report]:
        read_end, write_end = os.pipe()
        report = Report(read_end)
        passed = [*descriptors, write_end]
        try:
            try:
                process = await asyncio.to_thread(self._spawn, ["once", kind, *map(str, passed)], passed)
            finally:
                os.close(write_end)
            # From here it is followed and reaped by its pid, as every run is.
            process.returncode = 0
            answer = await report.line(_ANSWER_S)
        except OSError as error:
            report.close()
            log.warning("no process for Meltano", reason=repr(error))
            raise Unavailable("Meltano cannot be started.") from error
        except BaseException:
            report.close()
            raise
        if answer is None or answer.error:
            report.close()
            reap(process.pid)
            log.warning("Meltano's process ended at once", reason=answer.error if answer else self._last_words())
            raise Unavailable("Meltano cannot be started.")
        return answer, report

    async def _send(self, control: socket.socket, kind: str, descriptors: list[int]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                socket.send_fds(control, [kind.encode()], descriptors)
            except BlockingIOError:
                writable: asyncio.Future[None] = loop.create_future()
                loop.add_writer(control, _set, writable)
                try:
                    await writable
                finally:
                    loop.remove_writer(control)
            else:
                return

    async def _launch(self) -> bool:
        """See to it that a zygote lives, warm or warming. False when there is none to be had now."""
        if not self._use_fork or self._closed.is_set():
            return False
        async with self._launching:
            installed = self._signature()
            if self._control is not None:
                if installed == self._installed:
                    return True
                log.info("Meltano changed; a new zygote takes over")
                self._drop()
            loop = asyncio.get_running_loop()
            if loop.time() < self._not_before:
                return False
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                ours.setblocking(False)  # noqa: FBT003
                try:
                    self._process = await asyncio.to_thread(
                        self._spawn, ["serve", str(theirs.fileno()), self._label], [theirs.fileno()]
                    )
                except OSError as error:
                    ours.close()
                    log.warning("no zygote", reason=repr(error))
                    self._postpone()
                    return False
            self._control, self._installed = ours, installed
            loop.add_reader(ours, self._on_control, ours)
            return True

    def _on_control(self, control: socket.socket) -> None:
        """READY, or the end of the zygote."""
        try:
            message = control.recv(64)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            self._warm.set()
            self._delay_s = 0.0
            return
        was_warm = self._warm.is_set()
        self._drop()
        if self._closed.is_set():
            return
        if not was_warm:
            self._postpone()
        log.warning("zygote ended", warm=was_warm, reason=self._last_words())
        self._in_background(self._launch_later())

    async def _launch_later(self) -> None:
        """Launch when the delay is over, unless closing comes first."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), self._not_before - asyncio.get_running_loop().time())
        await self._launch()

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _postpone(self) -> None:
        self._delay_s = min(max(_FIRST_DELAY_S, 2 * self._delay_s), _LONGEST_DELAY_S)
        self._not_before = asyncio.get_running_loop().time() + self._delay_s

    def _drop(self) -> None:
        """Forget the zygote; it ends when it sees its socket closed."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._process is not None:
            self._in_background(asyncio.to_thread(_stop, self._process))
            self._process = None
        self._warm.clear()

    def _kill(self) -> None:
        if self._process is not None and self._control is not None:
            self._process.kill()
        self._drop()

    def _spawn(self, words: list[str], descriptors: list[int]) -> subprocess.Popen[bytes]:
        """Meltano's Python on our script. Isolated, or the folder of the script would be searched for modules."""
        self._runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log_path.open("wb" if words[0] == "serve" else "ab") as output:
            return subprocess.Popen(  # noqa: S603
                [str(self._python), "-I", str(SCRIPT), *words],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=self._environ,
                start_new_session=words[0] == "serve",
            )

    def _signature(self) -> tuple[int, ...]:
        """Changes when something is installed into Meltano's environment."""
        return tuple(path.stat().st_mtime_ns for path in sorted(self._meltano.glob("lib/python*/site-packages")))

    def _last_words(self) -> str:
        """The last line the zygote wrote: the reason, when an import failed."""
        with contextlib.suppress(OSError, IndexError):
            return self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-1]
        return ""


@contextlib.contextmanager
def _request_file(request: Mapping[str, object], folder: Path) -> Iterator[int]:
    """The request in a file without a name: in memory where the system can."""
    body = msgspec.json.encode(request)
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            descriptor = os.dup(file.fileno())
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(descriptor, view) :]
        yield descriptor
    finally:
        os.close(descriptor)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself; if not (stuck in an import), make it."""
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
