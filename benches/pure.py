"""The same decisions in plain Python, written as a good team would: the rival that needs no native code.

Strategy: `verify` is hmac and json with the checks of ours; `Gate.admit` is what `Admission.admit` does in one call:
walk the headers, look the token up (verified ones are remembered until they end), and ask every window. Windows keep
the time of each hit, so they are as exact as ours and not bounded in memory as ours are.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MOST: Final = 8192


class Refused(Exception):
    """The token is not acceptable."""


def verify(token: bytes, secret: bytes, now_s: float) -> dict[str, Any]:
    """The claims of an acceptable HS256 token.

    Raises:
        Refused: it is not.
    """
    if len(token) > _MOST:
        raise Refused
    signed, dot, signature = token.rpartition(b".")
    head, second, payload = signed.partition(b".")
    if not dot or not second or b"." in payload:
        raise Refused
    header = json.loads(_decoded(head))
    if header.get("alg") != "HS256" or "crit" in header:
        raise Refused
    if not hmac.compare_digest(hmac.digest(secret, signed, hashlib.sha256), _decoded(signature)):
        raise Refused
    claims: dict[str, Any] = json.loads(_decoded(payload))
    expires, audience = claims.get("exp"), claims.get("aud")
    if not isinstance(expires, int | float) or now_s >= expires or not isinstance(claims.get("sub"), str):
        raise Refused
    if claims.get("iss") != "flx" or "flx-api" not in ([audience] if isinstance(audience, str) else audience or ()):
        raise Refused
    return claims


class Gate:
    """Tokens and windows of one gateway.

    Args:
        secret: the HS256 key.
        policies: `(by, limit, window_ms)` each; `by` is "ip" or "subject".
    """

    def __init__(self, secret: bytes, policies: Sequence[tuple[str, int, int]]) -> None:
        self._secret = secret
        self._verified: dict[bytes, dict[str, Any]] = {}
        self._windows: list[tuple[str, int, int, dict[str, deque[int]]]] = [
            (by, limit, window_ms * 1_000_000, {}) for by, limit, window_ms in policies
        ]

    def admit(
        self, headers: Iterable[tuple[bytes, bytes]], client_ip: str, now_s: float, now_ns: int
    ) -> tuple[int, dict[str, Any] | None, int]:
        """Status, claims and what is left in the tightest window."""
        credentials = None
        for name, value in headers:
            if name == b"authorization":
                if credentials is not None:
                    return 400, None, 0
                credentials = value
        if credentials is None or credentials[:7].lower() != b"bearer ":
            return 401, None, 0
        token = credentials[7:]
        claims = self._verified.get(token)
        if claims is None:
            try:
                claims = self._verified[token] = verify(token, self._secret, now_s)
            except (Refused, ValueError):
                return 401, None, 0
        elif now_s >= claims["exp"]:
            del self._verified[token]
            return 401, None, 0
        return self._charge(claims, client_ip, now_ns)

    def _charge(self, claims: dict[str, Any], client_ip: str, now_ns: int) -> tuple[int, dict[str, Any] | None, int]:
        logs = []
        least = 1 << 62
        for by, limit, window_ns, kept in self._windows:
            key = client_ip if by == "ip" else claims["sub"]
            log = kept.get(key)
            if log is None:
                log = kept[key] = deque()
            while log and now_ns - log[0] >= window_ns:
                log.popleft()
            left = limit - len(log)
            if left <= 0:
                return 429, None, 0
            least = min(least, left)
            logs.append(log)
        for log in logs:
            log.append(now_ns)
        return 200, claims, least - 1


def _decoded(part: bytes) -> bytes:
    if part.endswith(b"="):
        raise Refused
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
