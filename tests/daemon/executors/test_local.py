"""The command line of a run and of the meter."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import NoReturn

import pytest

from flx_api.daemon.executors import ProcessIdentity, RunSpec
from flx_api.daemon.executors.local import LocalExecutor, MeterCommand, command_line
from flx_api.daemon.processes import boot_id
from flx_api.daemon.run_folder import RunFolder, RunFolders


def test_the_plainest_run() -> None:
    assert command_line(RunSpec("id", "e", ("tap-x", "target-y"))) == [
        "--log-format=json",
        "run",
        "--no-install",
        "--run-id=id",
        "--",
        "tap-x",
        "target-y",
    ]


def test_every_option_holds_its_value_and_blocks_are_never_options() -> None:
    spec = RunSpec("id", "e", ("--force",), "--prod", full_refresh=True, timeout_s=5, state_id_suffix="--x")
    assert command_line(spec) == [
        "--log-format=json",
        "--environment=--prod",
        "run",
        "--no-install",
        "--run-id=id",
        "--full-refresh",
        "--timeout=5",
        "--state-id-suffix=--x",
        "--",
        "--force",
    ]


def test_the_meters_words() -> None:
    command = MeterCommand(Path("/bin/python"), Path("/meter.py"), Path("/core.so"))
    assert command.before_plugins(Path("/run/meter")) == [
        "/bin/python",
        "-I",
        "-S",
        "/meter.py",
        "/core.so",
        "/run/meter",
    ]


@pytest.mark.parametrize(("kind", "step"), [(RunFolder, "write_gone"), (RunFolders, "keep_catalogues")])
def test_a_full_disk_does_not_keep_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, step: str
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "full")

    async def story() -> None:
        executor = LocalExecutor(tmp_path, tmp_path / "data", tmp_path / "runtime", tmp_path / "meltano", {})
        attempt = "01a206aa-53a3-7000-a4e6-f0d4172f219d"
        records = RunFolders(tmp_path / "data", tmp_path / ".meltano").of(attempt)
        records.system.mkdir(parents=True)
        (records.system / "tap.config.json").write_text("secret")
        records.write_spec(RunSpec(attempt, attempt, ("tap-x", "target-y")))
        # A pid beyond what the kernel gives out: the process is gone.
        records.write_process(ProcessIdentity(2**22 + 1, 1), boot_id())
        (records.path / "exit.json").write_text('{"code":0,"started_us":1,"ended_us":2}')
        monkeypatch.setattr(kind, step, full)
        record = await executor.settle(attempt, run_started=False)
        assert record is not None
        assert record.code == 0
        assert not records.system.exists()

    asyncio.run(story())
