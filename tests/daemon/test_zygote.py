"""The script of the warm process, as far as it goes without Meltano: the keeper at its gate."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import msgspec

from flx_api.daemon.executors.zygote_process import SCRIPT

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_that_nobody_hears_of_leaves_the_gate_to_its_successor(tmp_path: Path) -> None:
    gate_read, gate_write = os.pipe()
    report_read, report_write = os.pipe()
    os.close(report_read)
    with tempfile.TemporaryFile() as request:
        request.write(msgspec.json.encode({"folder": str(tmp_path), "cwd": "/", "env": {}, "argv": []}))
        request.flush()
        descriptors = (request.fileno(), gate_read, report_write)
        words = [sys.executable, "-I", str(SCRIPT), "once", "run", *map(str, descriptors)]
        ended = subprocess.run(words, pass_fds=descriptors, check=False, timeout=10, stderr=subprocess.DEVNULL)
    os.close(report_write)
    os.write(gate_write, b"g")
    os.close(gate_write)
    assert ended.returncode == 1
    assert os.read(gate_read, 2) == b"g"
    os.close(gate_read)
    assert list(tmp_path.iterdir()) == []
