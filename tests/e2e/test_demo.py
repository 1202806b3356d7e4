"""`flx demo` from the beginning to the end, in the folder whose plugins are prepared."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.service import flx, processes_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_the_demo_verifies_both_pipelines(prepared_plugins: Path, meltano_env: Path) -> None:
    environ = {**os.environ, "FLX_MELTANO": str(meltano_env)}
    command = flx("demo", "--dir", str(prepared_plugins))
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=280)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "Both pipelines verified: 30,911 and 30,911 records" in done.stdout
    assert "Traceback" not in done.stderr
    assert [] == processes_of(prepared_plugins)
    # The numbers came from the service; here are the files themselves.
    written = (prepared_plugins / "output").glob("*.jsonl")
    assert 30_911 == sum(len(file.read_text("utf-8").splitlines()) for file in written)
