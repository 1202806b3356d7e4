"""Real Meltano runs for tests of the row ledger: a project with small scripted plugins, run through the executor.

Strategy: every run goes the product's own way (LocalExecutor, the hook in Meltano, the meter shell, the native meter),
then the records it left become a ledger. A scripted plugin is an executable in the project without a venv, so a test
says in five lines how a tap or target misbehaves.

Rules:
- A run is waited for by its end, never by time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from flx_api.daemon.executors import ExitRecord, RunSpec
from flx_api.daemon.executors.local import LocalExecutor, MeterCommand
from flx_api.daemon.ledger import History, PlannedBlock, build_ledger
from flx_api.daemon.meter_records import CountEvent, Invocation, MeterFollower, read_invocations
from flx_api.daemon.run_folder import RunFolders
from flx_api.models.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from flx_api.models.ledger import StreamLedger

WAIT_S = 60.0
DAEMON = Path(__file__).resolve().parents[2] / "python" / "flx_api" / "daemon"


def native_module() -> Path:
    """The native module's file."""
    spec = importlib.util.find_spec("flx_api._core")
    assert spec is not None, "flx_api._core is not built"
    assert spec.origin is not None
    return Path(spec.origin)


class Outcome(msgspec.Struct, frozen=True):
    """What one run left."""

    exit: ExitRecord | None
    ledger: Ledger
    invocations: tuple[Invocation, ...]
    folder: Path

    @property
    def streams(self) -> dict[str, StreamLedger]:
        """Streams of all blocks by name."""
        return {stream.stream: stream for block in self.ledger.blocks for stream in block.streams}

    @property
    def codes(self) -> set[str]:
        """The codes of all warnings."""
        return {warning.code for warning in self.ledger.warnings}

    @property
    def log(self) -> str:
        """Meltano's log."""
        return (self.folder / "log.jsonl").read_text()


class Runs:
    """Runs of one project, one after the other."""

    def __init__(self, project: Path, meltano_env: Path) -> None:
        self.project = project
        self._meltano = meltano_env

    def run(
        self,
        *blocks: str,
        full_refresh: bool = False,
        first_run: bool = False,
        history: History | None = None,
        during: Callable[[Path], None] | None = None,
        overrides: dict[str, str] | None = None,
    ) -> Outcome:
        """Run `meltano run BLOCKS` and read its ledger. `during` is called with the meter folder once released."""
        return asyncio.run(self._run(blocks, full_refresh, first_run, history, during, overrides or {}))

    async def _run(
        self,
        blocks: tuple[str, ...],
        full_refresh: bool,
        first_run: bool,
        history: History | None,
        during: Callable[[Path], None] | None,
        overrides: dict[str, str],
    ) -> Outcome:
        data_dir, runtime_dir = self.project / ".flx", self.project / ".flx-run"
        for folder in (data_dir, runtime_dir):
            folder.mkdir(exist_ok=True)
        meter = MeterCommand(python=Path(sys.executable), script=DAEMON / "meter.py", native=native_module())
        executor = LocalExecutor(self.project, data_dir, runtime_dir, self._meltano, dict(os.environ), meter=meter)
        attempt = str(uuid.uuid4())
        plugins = [word for word in blocks if ":" not in word]
        spec = RunSpec(attempt, attempt, blocks, "dev", full_refresh, overrides=overrides)
        records = RunFolders(data_dir, self.project / ".meltano").of(attempt)
        try:
            run = await executor.spawn(spec)
            await run.release()
            if during is not None:
                await asyncio.to_thread(during, records.meter)
            record = await run.wait()
            await executor.settle(attempt, run_started=True)
        finally:
            await executor.close()
        state_id = f"dev:{plugins[0]}-to-{plugins[-1]}"
        plan = [
            PlannedBlock(
                extractor=plugins[0],
                loader=plugins[-1],
                mappers=tuple(plugins[1:-1]),
                state_id=state_id,
                first_run=first_run,
                full_refresh=full_refresh,
            )
        ]
        invocations = read_invocations(records.meter)
        code = None if record is None else record.code
        ledger = build_ledger(plan, invocations, exit_code=code, history={state_id: history or {}})
        return Outcome(record, ledger, invocations, records.path)


def script(path: Path, body: str) -> Path:
    """An executable Python script."""
    path.write_text(f"#!{sys.executable} -I\n" + textwrap.dedent(body))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def loaders_of_its_own(project: Path) -> Path:
    """Turn the project's shared loaders folder into a private one whose entries are links."""
    folder = project / ".meltano" / "loaders"
    shared = folder.resolve()
    folder.unlink()
    folder.mkdir()
    for entry in shared.iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


def uv(meltano_env: Path, *args: str) -> None:
    """Meltano's own uv."""
    done = subprocess.run(
        [meltano_env / "bin" / "uv", *args],
        env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"cannot be installed here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr


def install(meltano_env: Path, venv: Path, *requirements: str) -> Path:
    """A virtual environment with these packages."""
    uv(meltano_env, "venv", "--quiet", "--python", sys.executable, str(venv))
    uv(meltano_env, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), *requirements)
    return venv


def replace_loader(project: Path, name: str, venv: Path) -> None:
    """Give a project another virtual environment for one of its loaders."""
    folder = loaders_of_its_own(project) / name
    folder.unlink(missing_ok=True)
    folder.mkdir()
    (folder / "venv").symlink_to(venv)


def follow_counts(folder: Path, enough: Callable[[CountEvent], bool]) -> CountEvent:
    """Follow a run's meter folder until a count event is enough."""
    follower, pause, deadline = MeterFollower(folder), threading.Event(), time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for event in follower.poll():
            if enough(event):
                return event
        pause.wait(0.02)  # between two looks, as the daemon does it
    pytest.fail("the expected count did not come")


def shorten(project: Path, stream: str, rows: int) -> None:
    """Keep the first rows of one of the demo project's files."""
    path = project / "data" / f"{stream}.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: rows + 1]))


TAP_HEAD = """
import json, os, signal, sys
if "--discover" in sys.argv:
    print(json.dumps({"streams": []})); sys.exit(0)
def say(**message):
    sys.stdout.write(json.dumps(message) + "\\n")
def schema(stream, keys=()):
    say(type="SCHEMA", stream=stream, schema={"properties": {"id": {"type": "integer"}}}, key_properties=list(keys))
def rows(stream, first, last):
    for number in range(first, last):
        say(type="RECORD", stream=stream, record={"id": number})
def state(**bookmarks):
    say(type="STATE", value={"bookmarks": bookmarks})
"""


def scripted_project(project: Path, tap: str = "", target: str = "") -> Path:
    """Add `tap-scripted` and `target-scripted` to a project's meltano.yml, with these bodies."""
    script(project / "tap-scripted", TAP_HEAD + textwrap.dedent(tap))
    script(project / "target-scripted", "import json, sys\n" + textwrap.dedent(target))
    manifest = (project / "meltano.yml").read_text()
    manifest = manifest.replace(
        "  extractors:\n",
        "  extractors:\n  - {name: tap-scripted, namespace: tap_scripted, executable: ./tap-scripted,"
        " capabilities: [state], settings: []}\n",
    ).replace(
        "  loaders:\n",
        "  loaders:\n  - {name: target-scripted, namespace: target_scripted, executable: ./target-scripted,"
        " settings: []}\n",
    )
    (project / "meltano.yml").write_text(manifest)
    return project
