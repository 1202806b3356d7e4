"""A Meltano project whose plugins are small scripts, and a bench to run it on: for tests of what happens around a run.

Strategy: the plugins are real Singer plugins without an environment of their own, so that a run costs half a second and
a test decides what they do, by files in the project: the tap says that it has started by making `started-<pid>` and, if
`hold` exists, goes on only when it is gone. Everything a test waits for is such a file, a row, or the end of a process.

Rules:
- Nothing is waited for by time. `until` polls a condition and fails the test at its deadline.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import uvloop

from flx_api.daemon.executors import RunSpec
from flx_api.daemon.executors.local import LocalExecutor
from flx_api.daemon.processes import session_members

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from flx_api.daemon.executors import ExitRecord
    from flx_api.daemon.executors.local import LocalRun

DEADLINE_S = 60.0

TAP = '''#!/usr/bin/env python3
"""Two records, a state; waits while `hold` exists; other behaviour by TAP_SCRIPTED_MODE."""
import json, os, pathlib, signal, subprocess, sys, time
if "--discover" in sys.argv:
    print(json.dumps({"streams": []}))
    sys.exit()
here = pathlib.Path(os.environ["MELTANO_PROJECT_ROOT"])
mode = os.environ.get("TAP_SCRIPTED_MODE", "")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setpgid(0, 0)
if mode == "helper":
    subprocess.Popen(["sleep", "600"], process_group=0, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
(here / "environment.json").write_text(json.dumps(dict(os.environ)))
(here / f"started-{os.getpid()}").touch()
schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
print(json.dumps({"type": "SCHEMA", "stream": "s", "schema": schema, "key_properties": []}), flush=True)
while (here / "hold").exists():
    time.sleep(0.005)
for n in range(2):
    print(json.dumps({"type": "RECORD", "stream": "s", "record": {"n": n}}))
print(json.dumps({"type": "STATE", "value": {"bookmarks": {"s": 1}}}), flush=True)
'''

TARGET = '''#!/usr/bin/env python3
"""Appends the records to rows.jsonl and echoes the state."""
import json, os, pathlib, sys
here = pathlib.Path(os.environ["MELTANO_PROJECT_ROOT"])
with (here / "rows.jsonl").open("a") as rows:
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "RECORD":
            rows.write(json.dumps(message["record"]) + "\\n")
        elif message["type"] == "STATE":
            print(json.dumps(message["value"]), flush=True)
'''

UTILITY = '''#!/usr/bin/env python3
"""A command that goes on while `hold` exists."""
import os, pathlib, time
here = pathlib.Path(os.environ["MELTANO_PROJECT_ROOT"])
(here / f"started-{os.getpid()}").touch()
while (here / "hold").exists():
    time.sleep(0.005)
'''

MELTANO_YML = """default_environment: dev
project_id: scripted
send_anonymous_usage_stats: false
environments: [{name: dev}, {name: prod}]
plugins:
  extractors:
  - {name: tap-scripted, namespace: tap_scripted, executable: ./tap.py, capabilities: [state, discover, catalog]}
  loaders:
  - {name: target-scripted, namespace: target_scripted, executable: ./target.py}
  utilities:
  - {name: tool, namespace: tool, executable: ./tool.py, commands: {work: work}}
"""

BLOCKS = ("tap-scripted", "target-scripted")


def make_project(folder: Path) -> Path:
    """The scripted project, new."""
    folder.mkdir(parents=True)
    (folder / "meltano.yml").write_text(MELTANO_YML)
    for name, text in (("tap.py", TAP), ("target.py", TARGET), ("tool.py", UTILITY)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)
    return value


class Bench:
    """A project, a data folder, and executors over them."""

    def __init__(
        self, project: Path, meltano: Path, *, use_fork: bool = True, environ: dict[str, str] | None = None
    ) -> None:
        self.project = project
        self.meltano = meltano
        self.use_fork = use_fork
        self.data_dir = project.parent / "data"
        self.environ = {**os.environ, **(environ or {})}
        self._executors: list[LocalExecutor] = []

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        """A test's story on the loop the daemon uses; its executors are closed whatever happens."""

        async def closed() -> None:
            try:
                await story
            finally:
                for executor in self._executors:
                    await executor.close()

        uvloop.run(closed())

    def executor(self, **options: Any) -> LocalExecutor:
        """A new executor, as a daemon that has just started makes it."""
        executor = LocalExecutor(
            self.project,
            self.data_dir,
            self.project.parent / "runtime",
            self.meltano,
            self.environ,
            use_fork=self.use_fork,
            **options,
        )
        self._executors.append(executor)
        return executor

    def spec(self, *blocks: str, **options: Any) -> RunSpec:
        """A new attempt."""
        blocks = blocks or BLOCKS
        extractors = tuple(name for name in blocks if name.startswith("tap-"))
        return RunSpec(str(uuid.uuid4()), "execution", blocks, extractors=extractors, **options)

    def hold(self) -> None:
        """Plugins wait from now on."""
        (self.project / "hold").touch()

    def let_go(self) -> None:
        """Plugins go on."""
        (self.project / "hold").unlink()

    def plugin_started(self) -> int:
        """The pid of a plugin that has come to its work."""
        found = until(lambda: list(self.project.glob("started-*")), "a plugin")
        return int(found[0].name.removeprefix("started-"))

    def rows(self) -> int:
        """Records at the destination."""
        path = self.project / "rows.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def meltano_rows(self, attempt_id: str) -> list[tuple[str, str | None, dict[str, Any], str | None]]:
        """Meltano's own rows of a run: state, end, payload, trigger."""
        with closing(sqlite3.connect(self.project / ".meltano" / "meltano.db")) as connection:
            rows = connection.execute(
                "SELECT state, ended_at, payload, trigger FROM runs WHERE run_id = ?", (uuid.UUID(attempt_id).hex,)
            ).fetchall()
        return [(state, ended, json.loads(payload), trigger) for state, ended, payload, trigger in rows]

    def events(self, run: LocalRun) -> list[str]:
        """The events of the run's log; every line of it must be JSON."""
        log = run.folder / "log.jsonl"
        return [str(json.loads(line).get("event")) for line in log.read_text().splitlines()] if log.exists() else []

    async def complete(self, executor: LocalExecutor, spec: RunSpec) -> tuple[LocalRun, ExitRecord | None]:
        """Spawn, release, wait, settle."""
        run = await executor.spawn(spec)
        await run.release()
        record = await run.wait()
        assert await executor.settle(spec.attempt_id, run_started=True) == record
        return run, record

    def assert_settled(self, run: LocalRun) -> None:
        """No process, no secrets."""
        assert session_members(run.identity) == []
        assert not (run.folder / "sys").exists()
