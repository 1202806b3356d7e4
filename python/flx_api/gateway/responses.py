"""Responses: the only place that builds a problem document or knows a header that every response carries.

Rules:
- A problem never echoes input; its words come from `flx_api.errors`.
- Bodies are `bytes` (the server sends nothing for a `str`), and a response is two messages.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.errors import CODES, FlxError, Internal, RateLimited, TokenRejected, Unauthenticated
from flx_api.models.envelope import Problem

if TYPE_CHECKING:
    from flx_api._core import Decision
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.exchange import Exchange

Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"
PROBLEM: Final = b"application/problem+json"
STRICT_CSP: Final = b"default-src 'none'; frame-ancestors 'none'"

_SECURITY: Final[Headers] = [
    (b"server", b"flx"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
]
# Only over TLS: over a clear connection browsers ignore it, as they must.
_STRICT_TRANSPORT: Final = (b"strict-transport-security", b"max-age=31536000")
_encode = msgspec.json.Encoder().encode


def problem(error: FlxError, request_id: str) -> tuple[int, Headers, bytes]:
    """The problem document of an error: status, its own headers, body."""
    spec = CODES[error.code]
    document = Problem(
        type=f"urn:flx:error:{error.code}",
        title=spec.title,
        status=spec.http,
        code=error.code,
        detail=error.detail,
        request_id=request_id,
        retryable=spec.retryable,
        errors=error.errors,
        suggestions=error.suggestions,
    )
    headers: Headers = [(b"content-type", PROBLEM)]
    if spec.http == HTTPStatus.UNAUTHORIZED:
        given = isinstance(error, TokenRejected)
        headers.append((b"www-authenticate", b'Bearer error="invalid_token"' if given else b"Bearer"))
    retry_after = error.retry_after_s
    if retry_after is None and spec.http in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        retry_after = 1
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, -int(-retry_after // 1))))
    return spec.http, headers, _encode(document)


def refused(decision: Decision) -> FlxError:
    """The error that a decision of the core stands for."""
    match decision.status:
        case HTTPStatus.TOO_MANY_REQUESTS:
            detail = f"The policy {decision.policy} allows {decision.limit} in {decision.window_s:g} s"
            return RateLimited(detail, retry_after_s=decision.retry_after_s)
        case HTTPStatus.UNAUTHORIZED if decision.reason == "missing_token":
            return Unauthenticated()
        case HTTPStatus.UNAUTHORIZED:
            return TokenRejected(decision.reason or "unknown")
        case _:
            return FlxError("The Authorization header is given twice or is malformed", code="invalid_request")


def unexpected() -> FlxError:
    """A fault of ours, said without a word about it."""
    return Internal()


def rate_limit_headers(decision: Decision) -> Headers:
    """The fields of the IETF draft for the policy that is nearest to its end."""
    if decision.policy is None:
        return []
    name = decision.policy
    return [
        (b"ratelimit-policy", f'"{name}";q={decision.limit};w={int(decision.window_s)}'.encode()),
        (b"ratelimit", f'"{name}";r={decision.remaining};t={int(decision.reset_s)}'.encode()),
    ]


def finish(exchange: Exchange, headers: Headers, cors: Cors) -> Headers:
    """A response's own headers and those that every response carries."""
    headers = [*headers, *_SECURITY, (b"x-request-id", exchange.request_id.encode())]
    if not any(key == b"content-security-policy" for key, _ in headers):
        headers.append((b"content-security-policy", STRICT_CSP))
    if exchange.scope.get("scheme") == "https":
        headers.append(_STRICT_TRANSPORT)
    if exchange.decision is not None:
        headers += rate_limit_headers(exchange.decision)
    if cors.active:
        headers += cors.headers(exchange.origin)
    return headers
