"""The body of a request: counted while it comes, and only of the kind that is understood.

What the headers say about it (two lengths, an encoding, a length over the limit, another media type) was judged when
the request was admitted.

Rules:
- A body that says it is too large is refused before it is read, one that does not say as soon as it is.
- Reading stops at Content-Length: asking once more costs a second hop through the server's threads.
- A body that does not arrive in time ends the request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from flx_api.errors import InvalidRequest

if TYPE_CHECKING:
    from flx_api.gateway.alarms import Alarms
    from flx_api.gateway.exchange import Exchange

BODY_TIMEOUT_S: Final = 25.0
CLIENT_GONE: Final = 499
_JSON: Final = frozenset({b"application/json", b"application/json;charset=utf-8"})


class ClientGone(Exception):
    """The client went away; nobody waits for an answer."""


class Reading:
    """The task that reads a body, and whether it was told to stop."""

    __slots__ = ("_task", "is_over")

    def __init__(self, task: asyncio.Task[None] | None) -> None:
        self._task = task
        self.is_over = False

    def ring(self) -> None:
        """It takes too long."""
        self.is_over = True
        if self._task is not None:
            self._task.cancel()

    def go_on(self) -> None:
        """What was cancelled was the reading, and not the request."""
        if self._task is not None:
            self._task.uncancel()


async def take_body(exchange: Exchange, limit: int, alarms: Alarms) -> bytes:
    """The whole body.

    Args:
        exchange: the request.
        limit: bytes.
        alarms: how long it may take.

    Raises:
        InvalidRequest: payload_too_large, unsupported_media_type, not in time, or cut off.
    """
    length = exchange.admitted.length
    if length == 0:
        return b""
    reading = Reading(alarms.task())
    alarms.set(reading)
    try:
        body = await _read(exchange, length, limit)
    except asyncio.CancelledError:
        if not reading.is_over:
            raise
        reading.go_on()
        raise InvalidRequest(code="request_timeout") from None
    finally:
        alarms.clear(reading)
    if body and length is None and not _is_json(exchange.headers.get(b"content-type", b"")):
        raise InvalidRequest(code="unsupported_media_type")
    return body


async def _read(exchange: Exchange, length: int | None, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            # Granian says this both when the client left and when its chunks cannot be read; the answer is for those.
            detail = "The body is malformed or ended too early"
            raise InvalidRequest(detail)
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise InvalidRequest(code="payload_too_large")
        chunks.append(chunk)
        if not message.get("more_body", False) or size == length:
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _is_json(media_type: bytes) -> bool:
    return media_type.replace(b" ", b"").replace(b'"', b"").lower() in _JSON
