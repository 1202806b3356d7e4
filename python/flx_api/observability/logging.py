"""Our own log: one line an event on stderr, JSON for machines, coloured text for a terminal.

Rules:
- An event is a fixed sentence or word; what varies is in its fields.
- Fields whose names say that they hold a secret are not written, whoever passes them by mistake.
- Libraries that use the standard `logging` end up in the same lines, from warnings on.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import Processor

_SECRET_WORDS = ("password", "secret", "token", "authorization", "cookie", "credential", "api_key")
HIDDEN = "(hidden)"


def set_up(level: str, *, stream: TextIO | None = None, as_json: bool | None = None) -> None:
    """Configure the process's log; to be called once, by whoever composes the process.

    Args:
        level: debug, info, warning or error.
        stream: where to; stderr when not given.
        as_json: one JSON object a line; when not given, unless the stream is a terminal.
    """
    out = stream or sys.stderr
    if as_json is None:
        as_json = not out.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]
    if as_json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    else:
        # The renderer's own choice shows the locals of every frame: tokens and keys among them.
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Forward()], level=max(number, logging.WARNING), force=True)


def hide_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
    """Replace the values of fields that are named like secrets."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = HIDDEN
    return event


class _Forward(logging.Handler):
    """Passes records of the standard library on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)


def _to_json(event: Any, **_options: Any) -> str:  # noqa: ANN401 - structlog's own shape
    return msgspec.json.encode(event, enc_hook=repr).decode()
