"""The body of a request: counted while it comes, and only of the kind that is understood.

Rules:
- A body that says it is too large is refused before it is read, one that does not say as soon as it is.
- Reading stops at Content-Length: asking once more costs a second hop through the server's threads.
- A body that does not arrive in time ends the request.
- Two ways to tell where a body ends are one too many: a proxy before us may have believed the other one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from flx_api.errors import InvalidRequest

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Exchange

BODY_TIMEOUT_S: Final = 25.0
CLIENT_GONE: Final = 499
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_JSON: Final = frozenset({b"application/json", b"application/json;charset=utf-8"})


class ClientGone(Exception):
    """The client went away; nobody waits for an answer."""


async def take_body(exchange: Exchange, limit: int) -> bytes:
    """The whole body.

    Raises:
        InvalidRequest: payload_too_large, unsupported_encoding, unsupported_media_type, not in time, cut off, or of two
            lengths.
    """
    headers = exchange.headers
    if has_two_lengths(exchange):
        detail = "Content-Length and Transfer-Encoding exclude each other"
        raise InvalidRequest(detail)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise InvalidRequest(code="unsupported_encoding")
    length = _length(headers.get(b"content-length"))
    if length is not None and length > limit:
        raise InvalidRequest(code="payload_too_large")
    if length == 0 or (length is None and (exchange.method in _BODILESS or not _streams(exchange))):
        return b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _read(exchange, length, limit)
    except TimeoutError:
        raise InvalidRequest(code="request_timeout") from None
    if body and headers.get(b"content-type", b"").replace(b" ", b"").replace(b'"', b"").lower() not in _JSON:
        raise InvalidRequest(code="unsupported_media_type")
    return body


def has_two_lengths(exchange: Exchange) -> bool:
    """Whether both headers tell where the body ends, so that two readers may disagree on it.

    Granian does not let it come to this in HTTP/1.1: it drops the length, reads chunks and closes the connection after
    its answer (RFC 9112, 6.3). The rule must not depend on the server, though.
    """
    return b"content-length" in exchange.headers and b"transfer-encoding" in exchange.headers


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


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit():
        detail = "Content-Length is not a number"
        raise InvalidRequest(detail)
    return int(value)


def _streams(exchange: Exchange) -> bool:
    """Whether a body may follow although no length was said: chunked, or HTTP/2."""
    return b"transfer-encoding" in exchange.headers or exchange.scope.get("http_version", "1.1").startswith("2")
