"""Cross-origin requests: an exact allow-list, answered at the edge.

Rules:
- An origin is compared whole; `null` and anything not on the list gets no word about cross-origin access.
- `*` allows any origin but never credentials; tokens travel in a header, so credentials are not needed at all.
"""

from __future__ import annotations

from typing import Final

Headers = list[tuple[bytes, bytes]]

_EXPOSED: Final = b"etag, location, ratelimit, ratelimit-policy, retry-after, x-request-id"
_ACCEPTED: Final = (
    b"authorization, content-type, idempotency-key, if-match, if-none-match, last-event-id, traceparent, x-request-id"
)


class Cors:
    """The allow-list of one gateway."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)
        self.active = bool(origins)

    def _allowed(self, origin: bytes | None) -> bytes | None:
        if origin is None or origin == b"null":
            return None
        if self._any:
            return b"*"
        return origin if origin in self._origins else None

    def headers(self, origin: bytes | None) -> Headers:
        """What a response says to a page of this origin."""
        allowed = self._allowed(origin)
        vary = [] if self._any else [(b"vary", b"Origin")]
        if allowed is None:
            return vary
        return [*vary, (b"access-control-allow-origin", allowed), (b"access-control-expose-headers", _EXPOSED)]

    def table(self) -> tuple[Headers, dict[bytes, Headers], Headers | None]:
        """`headers` for the native core: of a page that may not ask, of each that may, of any other where all may."""
        anybody = self.headers(b"https://any.invalid") if self._any else None
        return self.headers(None), {origin: self.headers(origin) for origin in self._origins if origin != b"*"}, anybody

    def preflight(self, origin: bytes | None, methods: str) -> Headers:
        """What a preflight is told beside `headers`; nothing when the origin is not allowed."""
        if self._allowed(origin) is None:
            return []
        return [
            (b"access-control-allow-methods", methods.encode()),
            (b"access-control-allow-headers", _ACCEPTED),
            (b"access-control-max-age", b"600"),
        ]
