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
    from types import TracebackType

    from flx_api.gateway.alarms import Alarms
    from flx_api.gateway.exchange import Exchange

BODY_TIMEOUT_S: Final = 25.0
CLIENT_GONE: Final = 499
_JSON: Final = frozenset({b"application/json", b"application/json;charset=utf-8"})


class ClientGone(Exception):
    """The client went away; nobody waits for an answer."""


class Reading:
    """What the present task reads of a body within: `InvalidRequest` (request_timeout) when that takes too long.

    Args:
        alarms: how long it may take.
    """

    __slots__ = ("_alarms", "_is_over", "_task")

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._task = alarms.task()
        self._is_over = False

    def __enter__(self) -> None:
        """Begin to read."""
        self._alarms.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have read, or tell why not."""
        self._alarms.clear(self)
        if self._is_over and isinstance(error, asyncio.CancelledError):
            # What was cancelled was the reading, and not the request.
            if self._task is not None:
                self._task.uncancel()
            raise InvalidRequest(code="request_timeout") from None

    def ring(self) -> None:
        """It takes too long."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()


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
    with Reading(alarms):
        body = await _read(exchange, length, limit)
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
