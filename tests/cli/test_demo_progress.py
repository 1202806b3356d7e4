"""Live counts where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from flx_api.cli.demo_progress import StreamProgress


def test_a_pipe_gets_lines_not_bars() -> None:
    out = io.StringIO()
    with StreamProgress(Console(file=out, width=100)) as progress:
        progress.status("running")
        progress.status("running")
        progress.update({"role": "extractor", "streams": {"planes": {"records": 3322, "bytes": 1}}})
        progress.update({"role": "loader", "streams": {"planes": {"records": 1, "bytes": 1}}})
        progress.status("succeeded")
    assert ["  running", "  planes 3,322", "  succeeded"] == out.getvalue().splitlines()
