"""Making access tokens. The daemon issues, gateways verify.

Rules:
- `issue` is pure: settings, the moment and the id are arguments. `flx token mint` calls it too.
- HS256 with the service's one key; RFC 7519 claims `iss aud sub roles tenant jti iat exp`.
"""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TTL_S = 3600


class Issued(NamedTuple):
    """A token, its id and how long it is good."""

    token: str
    jti: str
    expires_in: int


def issue(
    key: bytes,
    *,
    issuer: str,
    audience: str,
    subject: str,
    roles: Sequence[str],
    tenant: str,
    now_s: int,
    jti: str,
    ttl_s: int = TTL_S,
) -> Issued:
    """A signed access token for a subject, good from `now_s` for `ttl_s` seconds."""
    import jwt  # noqa: PLC0415 - only a login needs it, every start would pay for it

    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "roles": list(roles),
        "tenant": tenant,
        "jti": jti,
        "iat": now_s,
        "exp": now_s + ttl_s,
    }
    return Issued(jwt.encode(claims, key, algorithm="HS256"), jti, ttl_s)


def key_set(key: bytes) -> bytes:
    """The key as a JSON Web Key Set, for `flx_api._core.TokenVerifier`. It holds the secret: never show it."""
    octets = base64.urlsafe_b64encode(key).rstrip(b"=").decode()
    return msgspec.json.encode({"keys": [{"kty": "oct", "alg": "HS256", "use": "sig", "k": octets}]})


class TokenIssuer:
    """Issues tokens of this service.

    Args:
        key: the HS256 key.
        issuer: `iss`.
        audience: `aud`.
        clock: microseconds since the epoch.
    """

    def __init__(self, key: bytes, issuer: str, audience: str, clock: Callable[[], int]) -> None:
        self._key = key
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def issue(self, subject: str, roles: Sequence[str], tenant: str) -> Issued:
        """An access token for a subject, good for an hour."""
        return issue(
            self._key,
            issuer=self._issuer,
            audience=self._audience,
            subject=subject,
            roles=roles,
            tenant=tenant,
            now_s=self._clock() // 1_000_000,
            jti=secrets.token_urlsafe(16),
        )

    def __repr__(self) -> str:
        """Without the key."""
        return f"<TokenIssuer {self._issuer}>"
