"""The daemon as the supervisor's child: `python -m flx_api.cli.daemon_process PARENT SOCKET READY_FD`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flx_api.cli.children import expect_parent, leave_out_optional_parts, spare_the_collector
from flx_api.config import load
from flx_api.errors import StartupError


def main() -> int:
    """Run the daemon until it is told to end; 2 when it cannot start, with one line that says why."""
    expect_parent(int(sys.argv[1]))
    leave_out_optional_parts()
    from flx_api.daemon.main import run_daemon  # noqa: PLC0415 - after the parent is known to live

    try:
        settings = load(os.environ)
        return run_daemon(
            settings,
            socket_path=Path(sys.argv[2]),
            ready_fd=int(sys.argv[3]),
            ready=spare_the_collector,
            environ=os.environ,
        )
    except StartupError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
