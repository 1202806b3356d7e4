"""One process at a time."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from flx_api.daemon.lock import DataLock
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path


def test_one_at_a_time(tmp_path: Path) -> None:
    with DataLock(tmp_path), pytest.raises(StartupError, match=r"^FLX_DATA_DIR: "), DataLock(tmp_path):
        pass
    with DataLock(tmp_path):
        pass


def test_a_process_that_is_killed_gives_it_back(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom flx_api.daemon.lock import DataLock\n"
        "with DataLock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StartupError), DataLock(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with DataLock(tmp_path):
        pass
