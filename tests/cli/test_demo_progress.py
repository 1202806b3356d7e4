"""Live counts where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from flx_api.cli.demo_progress import StreamProgress


def test_a_pipe_gets_lines_not_bars() -> None:
    out = io.StringIO()
    with StreamProgress(Console(file=out, width=100)) as progress:
        progress.status("a", "running")
        progress.status("a", "running")
        progress.update("a", {"role": "extractor", "streams": {"planes": {"records": 3322, "bytes": 1}}})
        progress.update("a", {"role": "loader", "streams": {"planes": {"records": 1, "bytes": 1}}})
        progress.update("b", {"role": "extractor", "streams": {"planes": {"records": 7, "bytes": 1}}})
        progress.status("a", "succeeded")
    expected = ["  a: running", "  a: planes 3,322", "  b: planes 7", "  a: succeeded"]
    assert expected == out.getvalue().splitlines()
