"""One plugin process under the meter: start it, pass its output on while counting, leave a record, end as it ended.

Strategy: one thread and one loop. The plugin is our child, in our process group; a pipe of 1 MiB carries its stdout to
us, 256 KiB at a time, and each chunk is first written on (so that the reader works while we count) and then counted.
What was seen goes to a file of its own in the run's folder, one line per record, each line one O_APPEND write. Around
a loader the destination is counted (`destinations`): before the loader starts and after it has ended, so that nothing
this run does can fall outside of the two counts.

Rules:
- Start-up is part of every run: builtin and small C modules only (`_signal`, `_json`), no `json`, `signal`,
  `subprocess`, `typing`; what a loader or a config needs is imported when it is needed, after an extractor was started.
- Bytes pass unchanged. A reader that goes away closes our reading end too, so the plugin meets EPIPE as without us.
- A fault of the meter (a full disk, no native module, a counter that raises) costs records, never the run.
- No secret is written: records hold names, numbers and fixed sentences. The exception is a STATE, which Meltano itself
  keeps; configuration never appears.
- The plugin dies when we die (PDEATHSIG) and we die when Meltano dies.
"""

# Pathlib, with what it imports, would be part of every start.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore] # `signal` costs 9 ms for its enums
import fcntl
import os
import select
import time

TYPE_CHECKING = False  # type checkers know it by its name; importing `typing` costs as much as all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import NoReturn

    from flx_api._core import Meter
    from flx_api.daemon.destinations import Before

CHUNK = 256 * 1024
PIPE_BYTES = 1024 * 1024
TICK_S = 0.25
# Most taps write and flush line by line. Passed on as they come, each line would wake us and then Meltano's event loop:
# on 336,776 rows that was an eighth of the run's CPU. So after a small read we let a few milliseconds' lines gather in
# the pipe (which holds 1 MiB, so the plugin never waits), and Meltano reads them at once.
GATHER_S = 0.004
SMALL_BYTES = 64 * 1024
# Distinct keys remembered for one invocation; beyond it upserts are `unverified`, memory stays bounded.
MAX_KEYS = 1_000_000
# The native meter gives a stream's keys up when too many wait to be fetched.
UNDRAINED_BYTES = 32 * 1024 * 1024
MAX_STATE_BYTES = 16 * 1024 * 1024
FORWARDED = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
PRODUCERS = ("extractor", "mapper")


def main(argv: list[str]) -> NoReturn:
    """Run one plugin invocation and end as the plugin ended."""
    try:
        divider = argv.index("--")
        native_so, folder, role, plugin, *order = argv[1:divider]
        command = argv[divider + 1 :]
    except ValueError:
        command = []
    if not command:
        os.write(2, b"usage: meter.py NATIVE_SO METER_DIR ROLE PLUGIN [ORDER] -- argv...\n")
        os._exit(2)
    # Until the plugin runs, a signal ends us as it would have ended the plugin.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # inherited as ignored, it would take the plugin's status away
    native = load_native(native_so)
    if native is not None:
        native.die_with_parent()
    leave(Invocation(native, folder, role, plugin, command, order=order_of(order)).run())


def load_native(path: str) -> ModuleType | None:
    """The native module from its file, or None: a run must not fail for want of a counter."""
    try:
        # The loader classes are frozen into the interpreter; `importlib.util` would cost 8 ms.
        import importlib._bootstrap_external as loaders  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
        from importlib._bootstrap import module_from_spec  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

        spec = loaders.spec_from_file_location("flx_api._core", path)
        if spec is None or spec.loader is None:
            return None
        module: ModuleType = module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError, AttributeError, SyntaxError):
        return None
    return module


def leave(status: int) -> NoReturn:
    """End as the plugin did: its exit code, or by the signal that ended it (`status` negative)."""
    if status >= 0:
        os._exit(status)
    import resource  # noqa: PLC0415 (rare)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the plugin's core dump is enough
    number = -status
    if number not in (_signal.SIGKILL, _signal.SIGSTOP):
        _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def purpose_of(role: str, argv: list[str]) -> str:
    """What an invocation is for: `sync` is the only one whose output is counted."""
    if role not in ("extractor", "mapper", "loader"):
        return "other"
    for word in argv[1:]:
        name = word.partition("=")[0]
        if name in ("--discover", "--about", "--test"):
            return name[2:]
        if name in ("--version", "--help"):
            return "other"
    return "sync"


def order_of(words: list[str]) -> int | None:
    """The place in Meltano's spawn order, when we were told one."""
    return int(words[0]) if words and words[0].isdecimal() else None


def config_path_of(argv: list[str]) -> str | None:
    """The resolved config file that Meltano hands to a plugin, from `--config PATH`, `--config=PATH` or `-c PATH`."""
    for index, word in enumerate(argv):
        if word.startswith("--config="):
            return word.partition("=")[2]
        if word in ("--config", "-c") and index + 1 < len(argv):
            return argv[index + 1]
    return None


def to_json(value: object) -> str:
    """JSON of plain values. The module `json` costs 14 ms of start-up for its regular expressions."""
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(to_json(str(key)) + ":" + to_json(item) for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(to_json(item) for item in value) + "]"
    from _json import encode_basestring_ascii  # noqa: PLC0415

    return encode_basestring_ascii(str(value))


def now_us() -> int:
    """Wall clock, microseconds since the epoch."""
    return time.time_ns() // 1000


class Records:
    """The meter file of one invocation: made with its number in spawn order, appended line by line."""

    def __init__(self, folder: str, role: str, plugin: str, order: int | None = None) -> None:
        self.number = -1
        self.stem = ""
        self._fd = -1
        self._keys_fd = -1
        try:
            self._open(folder, role, plugin, order)
        except OSError:
            self.close()

    def _open(self, folder: str, role: str, plugin: str, order: int | None) -> None:
        # Who comes here first is chance on a busy machine: a loader may overtake its extractor. The order we were told
        # is the one in which Meltano started us; without it the next free number is the best guess.
        number = sum(1 for name in os.listdir(folder) if name.startswith(".")) if order is None else order
        while True:
            # The number is reserved by a file of its own: names differ by plugin, so their O_EXCL would not collide.
            try:
                os.close(os.open(f"{folder}/.{number:03d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                break
            except FileExistsError:
                number += 1
        self.number = number
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in plugin)
        self.stem = f"{folder}/{number:03d}-{role}-{safe}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self.stem + ".jsonl", flags, 0o600)

    def write(self, record: dict[str, object]) -> None:
        """Append one record; after a fault nothing more is written, so that no later line follows a torn one."""
        if self._fd < 0:
            return
        line = (to_json(record) + "\n").encode()
        try:
            torn = os.write(self._fd, line) != len(line)
        except OSError:
            torn = True
        if torn:
            self.close()

    def write_keys(self, lines: bytes) -> bool:
        """Append newly seen keys; False when they cannot be kept."""
        if not lines:
            return True
        try:
            if self._keys_fd < 0:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
                self._keys_fd = os.open(self.stem + ".keys", flags, 0o600)
            return os.write(self._keys_fd, lines) == len(lines)
        except OSError:
            return False

    def close(self) -> None:
        """No more records."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class LastLine:
    """The counter of a loader's output: Singer states, one JSON value a line, of which the last one matters."""

    def __init__(self) -> None:
        self._tail = b""
        self._last: bytes | None = None
        self._lines = 0
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._bytes += len(chunk)
        data = self._tail + chunk
        end = data.rfind(b"\n")
        self._tail = data[end + 1 :][:MAX_STATE_BYTES]
        if end < 0:
            return
        lines = [line for line in data[:end].split(b"\n") if line.strip()]
        self._lines += len(lines)
        if lines:
            self._last = lines[-1]

    def finish(self) -> None:
        """The output has ended."""

    def snapshot(self) -> dict[str, object]:
        """In the shape of the native meter's snapshot."""
        return {
            "lines": self._lines,
            "bytes": self._bytes,
            "malformed": 0,
            "partial_bytes": len(self._tail),
            "states": self._lines,
            "last_state": None if self._last is None else self._last.decode("utf-8", "replace"),
            "streams": {},
        }


class Invocation:
    """One plugin process from its start record to its end record."""

    def __init__(
        self,
        native: ModuleType | None,
        folder: str,
        role: str,
        plugin: str,
        argv: list[str],
        *,
        order: int | None,
    ) -> None:
        self._native = native
        self._folder, self._role, self._plugin, self._argv = folder, role, plugin, argv
        self._purpose = purpose_of(role, argv)
        self._records = Records(folder, role, plugin, order)
        self._pid = 0
        self._gathers = role in PRODUCERS and self._purpose == "sync"
        self._meter: Meter | LastLine | None = None
        self._written: dict[str, int] = {}
        self._keys_kept = True

    def run(self) -> int:
        """Start, pass on, wait, record. Returns the exit code, negative for a signal."""
        # Before the start record: a record file without one is of an invocation that never was.
        start = {"kind": "start", "role": self._role, "plugin": self._plugin, "ts_us": now_us(), "pid": os.getpid()}
        self._records.write({**start, "purpose": self._purpose})
        counting = self._purpose == "sync"
        destination = self._destination("before", None) if counting and self._role == "loader" else None
        source = self._start()
        if counting and self._role in PRODUCERS and self._native is not None:
            self._meter = self._native.Meter(max_keys=MAX_KEYS)
        elif counting and self._role == "loader":
            self._meter = LastLine()
        if counting and self._role == "extractor":
            self._guard(self._record_missing_inputs)
        self._pump(source)
        status, cpu_s, max_rss = self._wait()
        if counting and self._role == "loader":
            self._destination("after", destination)
        snapshot = None
        if self._meter is not None:
            self._meter.finish()
            self._record_counts()
            snapshot = self._meter.snapshot()
        end: dict[str, object] = {"kind": "end", "ts_us": now_us(), "exit_code": status, "cpu_s": cpu_s}
        end |= {"max_rss_kib": max_rss, "keys_complete": self._keys_kept, "snapshot": snapshot}
        self._records.write(end)
        return status

    def _start(self) -> int:
        """Fork and execute the plugin; returns the reading end of its stdout."""
        source, sink = os.pipe()
        for fd in (source, 1):
            enlarge(fd)
        # A signal between fork and exec must reach the plugin, not our handler in its half-made process.
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED)
        shim = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_plugin(shim, sink, before)
        os.close(sink)
        self._pid = pid
        for number in FORWARDED:
            if _signal.getsignal(number) is not _signal.SIG_IGN:
                _signal.signal(number, self._forward)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        return source

    def _become_plugin(self, shim: int, sink: int, mask: set[int]) -> NoReturn:
        try:
            if self._native is not None and not self._native.die_with_parent(shim):
                os._exit(1)
            os.dup2(sink, 1)
            # Python ignores these two at its start, and an ignored signal stays ignored through exec.
            for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
            os.execvp(self._argv[0], self._argv)  # noqa: S606 (that is the job)
        except OSError as fault:
            os.write(2, f"{self._argv[0]}: {fault.strerror}\n".encode())
            os._exit(127 if isinstance(fault, FileNotFoundError) else 126)

    def _forward(self, number: int, _frame: object) -> None:
        """Hand a signal to the plugin and go on reading: what it still says belongs to the run."""
        if self._pid:
            os.kill(self._pid, number)

    def _pump(self, source: int) -> None:
        """Pass everything on until the plugin closes its stdout or our reader goes away."""
        poller = select.poll()
        poller.register(source, select.POLLIN)
        tick, dirty, undrained = time.monotonic(), False, 0
        while True:
            if dirty:
                wait = tick + TICK_S - time.monotonic()
                if wait <= 0 or undrained > UNDRAINED_BYTES or not poller.poll(wait * 1000):
                    self._record_counts()
                    tick, dirty, undrained = time.monotonic(), False, 0
            chunk = os.read(source, CHUNK)
            if not chunk:
                break
            try:
                write_all(1, chunk)
            except OSError:
                break  # the reader is gone; with our end closed the plugin will see it at its next write
            if self._meter is not None:
                self._meter.feed(chunk)
                dirty, undrained = True, undrained + len(chunk)
            if self._gathers and len(chunk) < SMALL_BYTES:
                time.sleep(GATHER_S)
        os.close(source)

    def _wait(self) -> tuple[int, float, int]:
        """Exit code (negative: signal), CPU seconds and the largest resident size of the plugin."""
        if hasattr(os, "waitid"):  # not everywhere off Linux
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        pid, self._pid = self._pid, 0  # from here on a signal has no one to go to, and the pid may be reused
        for number in FORWARDED:
            if _signal.getsignal(number) is not _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        _, status, usage = os.wait4(pid, 0)
        return os.waitstatus_to_exitcode(status), round(usage.ru_utime + usage.ru_stime, 6), usage.ru_maxrss

    def _record_counts(self) -> None:
        """A count record when something has changed, and the keys seen since the last one."""
        if self._meter is None or isinstance(self._meter, LastLine):
            return
        streams = self._meter.snapshot()["streams"]
        counts = {name: stream["records"] for name, stream in streams.items()}
        if counts != self._written:
            self._written = counts
            shown = {name: {"records": stream["records"], "bytes": stream["bytes"]} for name, stream in streams.items()}
            self._records.write({"kind": "count", "ts_us": now_us(), "streams": shown})
        lines = keys_lines(self._meter.drain_keys())
        self._keys_kept = self._keys_kept and self._records.write_keys(lines)

    def _destination(self, when: str, before: Before | None) -> Before | None:
        """Count the destination and record it; hands back what the second count needs of the first."""
        record: dict[str, object] = {"kind": "destination", "when": when, "ts_us": now_us(), "ok": False}
        record |= {"method": "none", "reason": "the destination could not be counted", "streams": {}}
        made: Before | None = None
        try:
            import destinations  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

            child_setup: Callable[[], None] | None = None if self._native is None else self._native.die_with_parent
            if when == "before":
                made = destinations.count_before(self._argv, config_path_of(self._argv), child_setup)
                record |= made.record()
            else:
                record |= destinations.count_after(before, self._folder, self._records.number, child_setup)
        except Exception as fault:  # noqa: BLE001 (a counter must never fail a run)
            record["reason"] = f"the destination could not be counted ({type(fault).__name__})"
        record["ts_us"] = now_us()
        self._records.write(record)
        return made

    def _record_missing_inputs(self) -> None:
        """Name the files that the extractor's config asks for and that do not exist now."""
        path = config_path_of(self._argv)
        if path is None:
            return
        import json  # noqa: PLC0415 (the plugin is starting meanwhile)

        import meter_inputs  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

        with open(path, encoding="utf-8") as file:
            missing = meter_inputs.missing_inputs(json.load(file))
        if missing:
            self._records.write({"kind": "inputs", "ts_us": now_us(), "missing": missing})

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as fault:  # noqa: BLE001 (a check must never fail a run)
            self._records.write({"kind": "fault", "ts_us": now_us(), "reason": type(fault).__name__})


def keys_lines(drained: list[tuple[str, bytes]]) -> bytes:
    """The drained keys as lines of the keys file: `["stream",[values...]]`."""
    pieces = []
    for stream, lines in drained:
        head = f"[{to_json(stream)},".encode()
        # A raw line break cannot stand inside JSON, so each one ends a key.
        pieces.append(head + lines.rstrip(b"\n").replace(b"\n", b"]\n" + head) + b"]\n")
    return b"".join(pieces)


def write_all(fd: int, chunk: bytes) -> None:
    """Write every byte; a pipe may take fewer than it was given."""
    done = os.write(fd, chunk)
    if done < len(chunk):
        view = memoryview(chunk)
        while done < len(chunk):
            done += os.write(fd, view[done:])


def enlarge(fd: int) -> None:
    """Give a pipe 1 MiB, so that a producer is not stopped while its reader is busy; other files are left alone."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (OSError, AttributeError):
        return  # no pipe, no Linux, or over the user's limit
