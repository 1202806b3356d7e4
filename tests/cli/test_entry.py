"""The entry of the command line: `flx serve` alone does what it does with options, only without their parser."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.service import flx

if TYPE_CHECKING:
    from pathlib import Path

# What `flx serve` would do, up to the supervisor; then which modules that took.
_START = """
import sys
from flx_api.cli import entry, supervisor
supervisor.Supervisor.run = lambda self: print(self._settings.api_port, "typer" in sys.modules) or 7
sys.argv = {argv!r}
entry.main()
"""


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["flx", "serve"], "8123 False"), (["flx", "serve", "--port", "9000"], "9000 True")],
)
def test_serve_is_the_same_with_and_without_options(argv: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _START.format(argv=argv)],
        env={"FLX_API_PORT": "8123", "FLX_PROJECT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (7, said) == (done.returncode, done.stdout.strip()), done.stderr


@pytest.mark.parametrize("options", [[], ["--host", "127.0.0.1"]], ids=["none", "some"])
def test_a_bad_setting_is_one_line_either_way(options: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        flx("serve", *options),
        env={"FLX_PROJECT": str(tmp_path), "FLX_WORKERS": "many"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    assert done.stderr.startswith("FLX_WORKERS: ")
