"""Responses: the only place that builds a problem document or knows a header that every response carries.

Rules:
- A problem never echoes input; its words come from `flx_api.errors`.
- Bodies are `bytes` (the server sends nothing for a `str`), and a response is two messages.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flx_api._core import reasons
from flx_api.errors import (
    CODES,
    FlxError,
    Internal,
    InvalidRequest,
    NotFound,
    RateLimited,
    TokenRejected,
    Unauthenticated,
    Unavailable,
)
from flx_api.models.envelope import ItemProblem, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flx_api.limits.policies import NativePolicy

Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"
PROBLEM: Final = b"application/problem+json"
STRICT_CSP: Final = b"default-src 'none'; frame-ancestors 'none'"

_SECURITY: Final[Headers] = [
    (b"server", b"flx"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]
# Only over TLS: over a clear connection browsers ignore it, as they must.
_STRICT_TRANSPORT: Final = (b"strict-transport-security", b"max-age=31536000")
_encode = msgspec.json.Encoder().encode
# Stands for the request id while a document is prepared; no document holds it by itself.
_GAP: Final = "\N{SNOWMAN}request-id\N{SNOWMAN}"

Prepared = tuple[int, Headers, bytes, bytes]
"""Status, headers, and the body before and after the request id."""


def _invalid(detail: str) -> Callable[[], FlxError]:
    return lambda: InvalidRequest(detail)


def _coded(code: str) -> Callable[[], FlxError]:
    return lambda: InvalidRequest(code=code)


def _unavailable() -> FlxError:
    detail = "The limits that all gateways share cannot be asked now"
    return Unavailable(detail, retry_after_s=1)


# Refusals of the core that are not a token's fault.
_OF_REASON: Final[dict[str, Callable[[], FlxError]]] = {
    "missing_token": Unauthenticated,
    "invalid_request": _invalid("The Authorization header is given twice or is malformed"),
    "rate_limited": RateLimited,
    "lease_awaited": _unavailable,
    "lease_unavailable": _unavailable,
    "invalid_host": _coded("invalid_host"),
    "not_found": NotFound,
    "two_lengths": _invalid("Content-Length and Transfer-Encoding exclude each other"),
    "two_keys": _invalid("The Idempotency-Key header is given twice"),
    "invalid_length": _invalid("Content-Length is not a number"),
    "payload_too_large": _coded("payload_too_large"),
    "unsupported_encoding": _coded("unsupported_encoding"),
    "unsupported_media_type": _coded("unsupported_media_type"),
}
# Prepared for each policy and for each route.
_ELSEWHERE: Final = frozenset({"rate_limited", "method_not_allowed"})


def not_allowed(allow: str) -> Prepared:
    """The answer to a method that a route does not have."""
    return prepared(NotFound(code="method_not_allowed"), (b"allow", allow.encode()))


def problem(error: FlxError, request_id: str) -> tuple[int, Headers, bytes]:
    """The problem document of an error: status, its own headers, body."""
    spec = CODES[error.code]
    document = _document(error, request_id)
    headers: Headers = [(b"content-type", PROBLEM)]
    if spec.http == HTTPStatus.UNAUTHORIZED:
        given = isinstance(error, TokenRejected)
        headers.append((b"www-authenticate", b'Bearer error="invalid_token"' if given else b"Bearer"))
    retry_after = _retry_after(error)
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    return spec.http, headers, _encode(document)


def item_problem(error: FlxError, request_id: str) -> ItemProblem:
    """The same of one operation of many, which has no headers of its own."""
    said = msgspec.structs.asdict(_document(error, request_id))
    return ItemProblem(**said, retry_after=_retry_after(error))


def _document(error: FlxError, request_id: str) -> Problem:
    spec = CODES[error.code]
    return Problem(
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


def _retry_after(error: FlxError) -> int | None:
    """Whole seconds, at least one; told whenever the status asks for it."""
    seconds = error.retry_after_s
    if seconds is None and error.spec.http in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return 1
    return None if seconds is None else max(1, -int(-seconds // 1))


class PolicyRefusals:
    """The errors that refusals of the core stand for.

    Args:
        policies: as the core was given them.
    """

    def __init__(self, policies: Sequence[NativePolicy]) -> None:
        self._details = [
            f"The policy {name} allows {limit} in {-(-window_ms // 1000)} s"
            for name, _, limit, window_ms, _, _ in policies
        ]

    def refusal(self, reason: str, limited: tuple[int, int] | None = None) -> FlxError:
        """The error of a reason; `limited` is the index of the policy and the seconds to wait, when one was used up."""
        if limited is not None and reason == "rate_limited":
            policy, retry_after_s = limited
            return RateLimited(self._details[policy], retry_after_s=retry_after_s)
        kind = _OF_REASON.get(reason)
        return kind() if kind is not None else TokenRejected(reason)

    def prepared(self) -> list[Prepared]:
        """What each policy answers when it is used up."""
        return [prepared(RateLimited(detail)) for detail in self._details]

    def prepared_by_reason(self) -> dict[str, Prepared]:
        """What every other refusal of the core is answered with."""
        return {reason: prepared(self.refusal(reason)) for reason in reasons() if reason not in _ELSEWHERE}


def unexpected() -> FlxError:
    """A fault of ours, said without a word about it."""
    return Internal()


def prepared(error: FlxError, *more: tuple[bytes, bytes]) -> Prepared:
    """The problem document of an error with a gap for the request id, as the core takes it."""
    status, headers, body = problem(error, _GAP)
    before, after = body.split(_GAP.encode())
    if isinstance(error, RateLimited):
        # How long to wait is known only when it happens; the core says it then.
        headers = [pair for pair in headers if pair[0] != b"retry-after"]
    return status, [*headers, *more], before, after


def common_headers() -> tuple[Headers, tuple[bytes, bytes], tuple[bytes, bytes]]:
    """What every response carries: always, unless it has a policy of its own, and over TLS only."""
    return _SECURITY, (b"content-security-policy", STRICT_CSP), _STRICT_TRANSPORT


def origin_of(scope: Mapping[str, Any]) -> bytes | None:
    """The page that asks, by its `Origin`."""
    return next((value for key, value in scope["headers"] if key == b"origin"), None)
