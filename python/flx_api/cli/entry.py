"""`flx`: where the command line begins, and where what goes wrong becomes one line and an exit code.

Strategy: `flx serve` without options, which is how services are started, is done at once. The parser of options costs a
tenth of a service's start and is imported only where there are some.

Rules:
- A `StartupError` is one line on stderr and exit code 2, a refusal of the service one line and exit code 1; a traceback
  is a bug.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from flx_api.errors import FlxError, StartupError

_COMPLAINTS = 1
_STARTUP = 2
_INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    try:
        if sys.argv[1:] == ["serve"]:
            serve({})
        from flx_api.cli.main import app  # noqa: PLC0415 - see the head of the file

        app()
    except StartupError as error:
        print(error, file=sys.stderr)
        raise SystemExit(_STARTUP) from None
    except FlxError as error:
        print(f"{error.code}: {error.detail}", file=sys.stderr)
        raise SystemExit(_COMPLAINTS) from None
    except BrokenPipeError:  # `flx logs … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(_COMPLAINTS) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except Exception as error:
        from flx_api.cli.client import CommandFailed  # noqa: PLC0415 - only what fails needs to know

        if not isinstance(error, CommandFailed):
            raise
        print(error, file=sys.stderr)
        raise SystemExit(_COMPLAINTS) from None


def serve(overrides: dict[str, object]) -> NoReturn:
    """Serve a Meltano project until a signal.

    Args:
        overrides: settings by name, in the place of those of the environment; None leaves one as it is.

    Raises:
        StartupError: nothing was started.
        SystemExit: when it is over.
    """
    from flx_api.cli.supervisor import Supervisor  # noqa: PLC0415 - most commands have no use for it
    from flx_api.config import load  # noqa: PLC0415

    raise SystemExit(Supervisor(load(os.environ, overrides), overrides, say).run())


def say(line: str) -> None:
    """Tell the person at the terminal something."""
    print(line, flush=True)
