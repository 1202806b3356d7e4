"""The command line of a run and of the meter."""

from __future__ import annotations

from pathlib import Path

from flx_api.daemon.executors import RunSpec
from flx_api.daemon.executors.local import MeterCommand, command_line


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
