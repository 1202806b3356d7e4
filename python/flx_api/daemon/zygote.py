"""A warm Meltano that forks one run after another; also the runner of a single run where forking is not wanted.

This file is a script for Meltano's own Python: standard library and Meltano only, never the package it lies in.

Strategy: importing Meltano costs two seconds, forking a process that has imported it a few milliseconds. `serve`
imports once, then waits on a control socket; each request comes with its descriptors (the request itself, the gate,
the report) and is answered by a child. `once` does the same for one request in a fresh process. A run is two processes:

    keeper   makes the session, starts Meltano, waits for it, writes exit.json. It ignores SIGTERM, so that a run that
             is asked to stop still leaves its record, and it sees by which signal Meltano died if it did.
    Meltano  waits at the gate, becomes `meltano ...` in every respect, and dies with its keeper.

Rules:
- The serving process never parses a request, finds a project, starts a thread or opens a database: what a child
  inherits is Meltano as imported, nothing more. It refuses to fork when it has more than one thread.
- When the control socket closes the daemon is gone: the serving process ends, its children go on.
- A gate that closes without its byte means that nobody wrote down that this run exists: leave without a trace.
- The environment arrives with the request and replaces the inherited one wholly.
"""

# ruff: noqa: ANN401, BLE001, PLC0415, PTH104, PTH118, PTH123, PTH208, T201
# Meltano is imported when its turn has come, and only what a child needs of the standard library (pathlib is not);
# the hooks stand in for untyped functions; whatever goes wrong in a child ends that child and nothing else.

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any

LINUX = sys.platform == "linux"
GATE_OPEN = b"g"
READY = b"ready"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# sched_setattr(2) is not in Python, and in C libraries only of late.
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
LONG_TURN_NS = 12_000_000

# Modules Meltano imports only while it runs. Imported once here they cost no run anything.
LAZY_MODULES = (
    "alembic.command",
    "alembic.config",
    "alembic.runtime.migration",
    "alembic.script",
    "anyio.to_thread",
    "anyio._backends._asyncio",
    "ctypes",
    "encodings.ascii",
    "meltano.core.block.extract_load",
    "meltano.core.block.plugin_command",
    "meltano.core.meltano_file",
    "meltano.core.migration_service",
    "meltano.core.plugin.singer",
    "meltano.core.plugin.utility",
    "meltano.core.state_store.azure",
    "meltano.core.state_store.google",
    "meltano.core.state_store.s3",
    "meltano.migrations.utils.dialect_typing",
    "ruamel.yaml.mergevalue",
    "sqlalchemy.dialects.mssql",
    "sqlalchemy.dialects.sqlite",
    "sqlite3",
    "tzdata.zoneinfo",
)
ROLES = {"extractors": "extractor", "loaders": "loader", "mappers": "mapper"}


# --- the serving process ---------------------------------------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """Import Meltano, say so, then fork a child per request until the socket closes."""
    gc.disable()
    import_meltano()
    gc.collect()
    gc.freeze()
    # Children are not collected one by one: their end is seen by pidfd and told by exit.json.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    control.sendall(READY)
    while True:
        kind, descriptors, _, _ = socket.recv_fds(control, 64, 8)
        if not kind:
            os._exit(0)
        report = descriptors[-1]
        try:
            refuse_threads()
            child = os.fork()
        except (OSError, RuntimeError) as error:
            tell(report, {"error": str(error)})
        else:
            if child == 0:
                control.close()
                become(kind.decode(), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def import_meltano() -> None:
    """Everything a run will need, without looking at any project."""
    import importlib

    importlib.import_module("meltano.cli")
    for name in LAZY_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def refuse_threads() -> None:
    """A lock held by another thread at the fork stays held in the child for ever."""
    if LINUX and len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("the serving process has more than one thread")


def become(kind: str, descriptors: list[int]) -> None:
    """What a child is for; never returns."""
    code = 1
    try:
        gc.enable()
        request_fd, *others = descriptors
        request = read_request(request_fd)
        if kind == "run":
            code = keep_run(request, gate=others[0], report=others[1])
        elif kind == "command":
            code = run_command(request, output=others[0], errors=others[1], report=others[2])
        elif kind == "repair":
            code = repair(request, report=others[0])
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def read_request(descriptor: int) -> dict[str, Any]:
    """The request, from an unlinked file that holds nothing else."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        request: dict[str, Any] = json.load(file)
        return request


def tell(report: int, message: dict[str, Any]) -> bool:
    """One line to whoever asked; False when it has gone away."""
    try:
        os.write(report, json.dumps(message).encode() + b"\n")
    except OSError:
        return False
    return True


def leave(code: int) -> None:
    """End this process at once, its output flushed: nothing of the serving process may run in a child."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


# --- the keeper ------------------------------------------------------------------------------------------------------


def keep_run(request: dict[str, Any], gate: int, report: int) -> int:
    """Start Meltano behind the gate, report, wait for its end, write the exit record."""
    become_leader()
    started_read, started_write = os.pipe()
    # Held back until both processes have their handlers: a stop request between the two reaches both or none.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        inner = os.fork()
    except OSError as error:
        tell(report, {"error": str(error)})
        return 1
    if inner == 0:
        os.close(report)
        os.close(started_read)
        run_meltano(request, gate, started_write)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.close(started_write)
    if not tell(report, {"pid": os.getpid()}):
        # Given up for dead, and another process was made that waits at this same gate: its byte is not for us.
        os.kill(inner, signal.SIGKILL)
        return 1
    os.close(report)
    stand_back(request["nice"])

    _, status, usage = os.wait4(inner, 0)
    started = os.read(started_read, 64)
    if not started:
        # Stopped at its gate. If that had been opened the run did begin, only it came to nothing.
        if not was_opened(gate):
            return 0
        started = str(now_us()).encode()
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and -code not in STOP_SIGNALS:
        kill_stragglers()
    write_exit_record(
        request["folder"],
        {
            "code": code,
            "started_us": int(started),
            "ended_us": now_us(),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 6),
            "max_rss_kib": usage.ru_maxrss if LINUX else usage.ru_maxrss // 1024,
        },
    )
    return code if code >= 0 else 128 - code


def stand_back(steps: int) -> None:
    """Where the kernel shares processors out by sessions, niceness counts within one only: say it for the session too.

    See sched(7), "The autogroup feature". Who is not root may do so ten times a second on the whole machine.
    """
    for _ in range(5 if steps else 0):
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as group:
                group.write(str(steps))
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return
        else:
            return


def take_long_turns() -> None:
    """Ask for long turns on a processor, so that whoever wakes meanwhile and takes shorter ones comes at once.

    Niceness says how much a run gets; once it has its turn, others wait for the end of it, 3 ms or more. Linux from
    6.12 on breaks off the turn of who asked for a longer one than who wakes; before, the number is not looked at. It
    needs no rights, and plugins inherit it.
    """
    number = SCHED_SETATTR.get(os.uname().machine) if LINUX else None
    if number is None:
        return
    try:
        policy = os.sched_getscheduler(0)
    except OSError:
        return  # musl has no such call, and a container may forbid it
    if policy not in {os.SCHED_OTHER, os.SCHED_BATCH}:
        return  # whoever started the service has chosen
    import ctypes

    size, flags, priority = 48, 0, 0
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = struct.pack("=IIQiIQQQ", size, policy, flags, nice, priority, LONG_TURN_NS, 0, 0)
    # Where it is forbidden nothing is lost but that.
    ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, wanted, 0)


def was_opened(gate: int) -> bool:
    """Whether the gate holds its byte, unread."""
    os.set_blocking(gate, False)
    try:
        return os.read(gate, 1) == GATE_OPEN
    except BlockingIOError:
        return False


def become_leader() -> None:
    """A session of its own, signals as a fresh process has them."""
    with contextlib.suppress(PermissionError):  # already the leader: started by itself
        os.setsid()
    reset_signals()


def reset_signals() -> None:
    """Undo what the serving process or the daemon set up."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def kill_stragglers() -> None:
    """Meltano was killed: its plugins would go on, and a target would commit half of the data."""
    if not LINUX:
        return
    mine = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != mine:
            with contextlib.suppress(OSError):
                if os.getsid(int(name)) == mine:
                    os.kill(int(name), signal.SIGKILL)


def write_exit_record(folder: str, record: dict[str, Any]) -> None:
    """Whole or not at all, also when the power goes."""
    path = os.path.join(folder, "exit.json")
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


# --- Meltano ---------------------------------------------------------------------------------------------------------


def run_meltano(request: dict[str, Any], gate: int, started: int) -> None:
    """Wait at the gate, then be `meltano <arguments>` of the project; never returns."""
    code = 1
    try:
        keeper = os.getppid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(0)
        reset_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        pass_gate(gate, started)
        os.nice(request["nice"])
        if request["nice"]:
            take_long_turns()
        log = os.open(os.path.join(request["folder"], "log.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        settle_in(request, log, log)
        code = call_cli(request["argv"], request.get("meter"))
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def pass_gate(gate: int, started: int) -> None:
    """Wait for the gate. Taking its byte and telling the keeper are one step that no stop request can part."""
    waiting = select.poll()
    waiting.register(gate, select.POLLIN)
    waiting.poll()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if os.read(gate, 1) != GATE_OPEN:
        os._exit(0)
    os.write(started, str(now_us()).encode())
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def settle_in(request: dict[str, Any], output: int, errors: int, kept: tuple[int, ...] = ()) -> None:
    """Standard streams, folder and environment of the new life; every other descriptor is closed."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    # Listed rather than counted up to the limit, which may be a billion.
    for name in os.listdir("/dev/fd"):
        if int(name) not in {0, 1, 2, *kept}:
            with contextlib.suppress(OSError):
                os.close(int(name))
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()


def call_cli(argv: list[str], meter: list[str] | None = None) -> int:
    """Meltano's own entry point; its exit code."""
    import atexit

    sys.argv = ["meltano", *argv]
    from meltano.cli import main  # type: ignore[import-not-found, unused-ignore]

    install_hooks(meter)
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = exit_code(stop)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # noqa: SLF001 (what the interpreter calls before it ends)
    return code


def exit_code(stop: SystemExit) -> int:
    """As the interpreter would have it: nothing is 0, a number is itself, a text is printed and 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1


def install_hooks(meter: list[str] | None) -> None:
    """Keep our own variables from plugins and put the meter in front of each, where Meltano starts them.

    A Meltano in which these two names are gone runs unmetered; the ledger then says that nothing was counted.
    """
    import itertools
    import shutil

    from meltano.core.plugin_invoker import PluginInvoker  # type: ignore[import-not-found, unused-ignore]

    plain_env, plain_args = PluginInvoker.env, PluginInvoker.exec_args
    order = itertools.count()

    def env(self: Any) -> dict[str, Any]:
        # The project's .env reaches plugins past the environment of this process.
        return {name: value for name, value in plain_env(self).items() if not name.startswith("FLX_")}

    def exec_args(self: Any, *args: Any, command: str | None = None, env: dict[str, Any] | None = None) -> list[str]:
        argv: list[str] = plain_args(self, *args, command=command, env=env)
        # Without an environment nothing is started: the words are wanted for a message.
        if env is None or shutil.which(argv[0], path=env.get("PATH")) is None:
            return argv
        # Meltano asks for the words as it starts a plugin, one after the other from the extractor to the loader. Which
        # of them comes to run first is chance.
        words = (ROLES.get(str(self.plugin.type), "utility"), self.plugin.name, str(next(order)))
        return [*(meter or ()), *words, "--", *argv]

    PluginInvoker.env = env
    if meter:
        PluginInvoker.exec_args = exec_args


# --- other requests --------------------------------------------------------------------------------------------------


def run_command(request: dict[str, Any], output: int, errors: int, report: int) -> int:
    """Any `meltano ...` whose output is wanted: its exit code goes to the report."""
    become_leader()
    tell(report, {"pid": os.getpid()})
    settle_in(request, output, errors, kept=(report,))
    code = call_cli(request["argv"])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    tell(report, {"code": code})
    return code


def repair(request: dict[str, Any], report: int) -> int:
    """Set Meltano's rows of a run that was killed to FAIL, through Meltano's own model and database driver."""
    import uuid

    from meltano.core.job import Job, State  # type: ignore[import-not-found, unused-ignore]
    from sqlalchemy import create_engine, select
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import NullPool

    engine = create_engine(request["database_uri"], poolclass=NullPool)
    with Session(engine) as session:
        query = select(Job).where(Job.run_id == uuid.UUID(request["run_id"]), Job.state == State.RUNNING)
        jobs = list(session.scalars(query))
        for job in jobs:
            job.fail(error=request["error"])
        session.commit()
    tell(report, {"code": 0, "rows": len(jobs)})
    return 0


# --- the system ------------------------------------------------------------------------------------------------------


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere there is nothing like it and nothing is lost but speed of cleaning up."""
    if LINUX:
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main() -> None:
    """`serve <fd> <whose>` or `once <kind> <fd>...`."""
    mode, *words = sys.argv[1:]
    if mode == "serve":
        serve(socket.socket(fileno=int(words[0])))
    elif mode == "once":
        become(words[0], [int(word) for word in words[1:]])


if __name__ == "__main__":
    main()
