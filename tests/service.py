"""A real `flx serve` for tests: start, speak to it, end it, and hold that nothing is left.

Strategy: the service is the installed command in a process of its own, on a free port, with its data folder inside the
test's project copy. What a test needs of it (addresses, tokens, one-line commands) hangs on `Service`.

Rules:
- A test never sleeps until the service is ready: `start` returns when `GET /ready` says so.
- `stop` fails the test when a process, a socket or the address file outlives the service.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
from tests.gateway_process import children_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).resolve().parent.parent
PLUGIN_KINDS = ("extractors", "loaders", "utilities")
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


def flx(*args: str) -> list[str]:
    """The command line of `flx ARGS…` with the tests' own interpreter."""
    return [sys.executable, "-m", "flx_api", *args]


def copy_project(destination: Path, *, plugins: Path) -> Path:
    """A private copy of the demo project that shares the plugin environments prepared in `plugins` by symlinks."""
    shutil.copytree(ROOT / "examples" / "nyc-flights", destination)
    (destination / ".meltano").mkdir()
    (destination / "output").mkdir(exist_ok=True)
    for kind in PLUGIN_KINDS:
        (destination / ".meltano" / kind).symlink_to(plugins / ".meltano" / kind)
    return destination


def processes_of(folder: Path) -> list[str]:
    """The processes that work in a folder or were told about it, as `pid command`; this one and its parents apart."""
    needle = os.fsencode(folder)
    mine = {os.getpid(), os.getppid()}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            told = needle in words or needle in (entry / "environ").read_bytes()
            if words and (told or os.fsencode((entry / "cwd").readlink()).startswith(needle)):
                found.append(f"{entry.name} {words.replace(bytes(1), b' ').decode(errors='replace').strip()}")
        except OSError:
            continue  # it ended meanwhile, or is not ours to look at
    return found


class Service:
    """One running service."""

    def __init__(self, project: Path, *, environ: dict[str, str] | None = None, args: tuple[str, ...] = ()) -> None:
        self.project = project
        self.data_dir = project / ".flx"
        self.log = project.parent / f"{project.name}-serve.log"
        self._args = args
        # The demo project has a schedule: it must not fire into a test that happens to run at midnight.
        ours = {"FLX_PROJECT": str(project), "FLX_API_PORT": "0", "FLX_SCHEDULES": "off", "FLX_REALTIME_PORT": "0"}
        self._environ = {**os.environ, **ours, **(environ or {})}
        self._http: httpx.Client | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Service:
        """Start it and wait until it is ready."""
        self.launch()
        self.until_ready()
        return self

    def launch(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                flx("serve", *self._args),
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until_ready(self) -> None:
        """Wait until it says where it is."""
        self.until((self.data_dir / "endpoints.json").exists, "it is not ready")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something of a service that starts; fails the test when that ends, or when it takes too long."""
        assert self._process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not condition():
            assert self._process.poll() is None, f"flx serve ended early:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what}:\n{self.log.read_text()}"
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self._process is not None
        return self._process.pid

    def child(self, module: str) -> int:
        """The process of the supervisor's child that runs a module."""
        (found,) = [pid for pid in children_of(self.pid) if module in Path(f"/proc/{pid}/cmdline").read_text()]
        return found

    @property
    def workers(self) -> list[int]:
        """The processes of the gateway's workers; none while it is being started again."""
        try:
            return children_of(self.child("gateway_process"))
        except (OSError, ValueError):
            return []

    def workers_at(self, ports: Iterable[int]) -> dict[int, int]:
        """The worker that holds the other end of a client's connection, by the client's port."""
        listed = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        # Our end names the same ports the other way round, so only the remote one is looked at.
        inodes = {f"socket:[{words[9]}]": int(words[2].rpartition(":")[2], 16) for words in listed}
        wanted = set(ports)
        return {
            port: pid
            for pid in self.workers
            for descriptor in Path(f"/proc/{pid}/fd").iterdir()
            if descriptor.is_symlink() and (port := inodes.get(str(descriptor.readlink()), 0)) in wanted
        }

    @property
    def endpoints(self) -> dict[str, Any]:
        """What the service wrote down about itself."""
        found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        return found

    @property
    def url(self) -> str:
        """The gateway's base URL."""
        return str(self.endpoints["url"])

    @property
    def ws_url(self) -> str:
        """The gateway's WebSocket base URL."""
        return str(self.endpoints["ws_url"])

    def token(self, *roles: str, sub: str = "tester", tenant: str = "default", ttl_s: int = 3600, **more: Any) -> str:
        """A token that the service accepts; the role is admin when none is given."""
        now = int(time.time())
        who = {"sub": sub, "roles": list(roles or ("admin",)), "tenant": tenant}
        claims: dict[str, Any] = {"iss": "flx", "aud": "flx-api", **who}
        claims |= {"iat": now, "exp": now + ttl_s, "jti": f"test-{time.time_ns()}", **more}
        return jwt.encode(claims, (self.data_dir / "secret.key").read_bytes(), algorithm="HS256")

    @property
    def http(self) -> httpx.Client:
        """A client with an admin's token; closed when the service ends."""
        if self._http is None:
            headers = {"Authorization": f"Bearer {self.token()}"}
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        return self._http

    def command(self, name: str, args: dict[str, Any] | None = None, **options: Any) -> Any:
        """Call a command and return its result; fails the test when the answer is a problem."""
        answer = self.http.post("/v1/execute", json={"command": name, "args": args or {}, **options})
        assert answer.is_success, f"{name}: {answer.status_code} {answer.text}"
        return answer.json()["result"]

    def wait(self, execution: str, timeout_s: float = 90) -> dict[str, Any]:
        """The execution when it is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.http.get(f"/v1/executions/{execution}/wait", params={"timeout_ms": 20_000})
            assert answer.status_code in {200, 202}, answer.text
            if answer.status_code == 200:
                found: dict[str, Any] = answer.json()
                return found
            assert time.monotonic() < deadline, f"{execution} is not over: {answer.text}"

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The supervisor's exit code."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """Kill -9 of the supervisor; what it leaves is the test's subject."""
        assert self._process is not None
        self.disconnect()
        self._process.kill()
        self._process.wait()
        self._process = None

    def disconnect(self) -> None:
        """Close the client; the next use opens a new one (the address may have changed)."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def stop(self) -> int:
        """End it as Ctrl-C would, and hold that nothing is left."""
        self.disconnect()
        if self._process is None:
            return 0
        # A service that uses a daemon elsewhere names no socket.
        named = self.endpoints["daemon_socket"] if (self.data_dir / "endpoints.json").exists() else ""
        runtime = Path(named).parent if named else None
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.ended()
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            pytest.fail(f"flx serve did not end in {STOP_TIMEOUT_S} s:\n{self.log.read_text()}")
        self._process = None
        left = processes_of(self.project)
        assert [] == left, f"left running: {left}"
        assert not (self.data_dir / "endpoints.json").exists(), "the address file was left"
        assert runtime is None or not runtime.exists(), "the runtime directory was left"
        return code

    def kill_all(self) -> None:
        """End whatever is left of it after a failed test."""
        for line in processes_of(self.project):
            with_pid = int(line.split()[0])
            try:
                os.kill(with_pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self._process is not None:
            self._process.wait()
            self._process = None
