"""When a token should be replaced: read from the token itself, which only the service can verify.

Rules:
- Pure; what is no JWT has no time.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

MARGIN_S: Final = 30.0
_SHARE: Final = 0.25


class _Claims(msgspec.Struct):
    exp: float | None = None


def expiry_of(token: str) -> float | None:
    """The claim `exp` of a JWT (RFC 7519, section 4.1.4), in seconds since 1970; None when it says none."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header, payload, signature
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=_Claims).exp
    except (ValueError, binascii.Error, msgspec.DecodeError):
        return None


def renewal_in_s(expiry_s: float, now_s: float) -> float:
    """In how many seconds to come again with a new token: 30 s before the end, or later when little is left."""
    left_s = max(expiry_s - now_s, 0.0)
    return left_s - min(MARGIN_S, left_s * _SHARE)
