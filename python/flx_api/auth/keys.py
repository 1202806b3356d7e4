"""The keys of a gateway: those that tokens are verified with, as the native core takes them, and the one of tickets.

Strategy: keys come in realms, each an issuer with its keys, its leeway and its audience. Our own realm is the shared
HS256 key; `FLX_JWT_JWKS` adds another one. The key that a token was signed with decides its realm, so no issuer speaks
for another.

Rules:
- The set holds secrets: it goes from here to the core and nowhere else. `public_keys` is what others may see.
- A symmetric key is never published.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from flx_api._core import TokenVerifier
from flx_api.config import file_keys_of, secret_of
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from flx_api.config import Settings


_TICKETS: Final = b"flx-api websocket tickets v1"


class Realm(NamedTuple):
    """An issuer, as `flx_api._core.TokenVerifier.of` takes it."""

    keys: bytes
    issuer: str | None
    audience: str | None
    leeway_s: int
    typ: str | None
    algorithms: tuple[str, ...]
    secrets: bool


def verifier(settings: Settings, fetched: bytes | None = None) -> TokenVerifier:
    """What verifies the tokens of our own and of the configured other issuer.

    Args:
        settings: all settings.
        fetched: the key set that came from the address in `FLX_JWT_JWKS`; None as long as none has come.

    Raises:
        StartupError: the keys cannot be used, by themselves or beside each other.
    """
    try:
        made = TokenVerifier.of(given := realms(settings, fetched))
        empty = fetched is not None and TokenVerifier.of(given[1:]).key_count == 0
    except ValueError as error:
        setting = "FLX_JWT_SECRET_KEY" if settings.jwt_jwks is None else "FLX_JWT_JWKS"
        raise StartupError(f"{setting}: {error}") from None
    if empty:
        msg = "FLX_JWT_JWKS: holds no key for verifying that FLX_JWT_ALGORITHMS allows"
        raise StartupError(msg)
    if made.key_count == 0 and settings.jwks_address is None:
        msg = "FLX_JWT_ALGORITHMS: allows the algorithm of no key"
        raise StartupError(msg)
    return made


def realms(settings: Settings, fetched: bytes | None = None) -> tuple[Realm, ...]:
    """The issuers whose tokens are accepted, our own first.

    Raises:
        StartupError: there is no key, or the other issuer's file cannot be read.
    """
    audience, algorithms = settings.jwt_audience, settings.jwt_algorithms
    own = Realm(key_set(settings), settings.jwt_issuer, audience, 0, None, algorithms, secrets=True)
    keys = fetched if settings.jwks_address else file_keys_of(settings)
    if keys is None:
        return (own,)
    issuer, leeway_s = settings.jwt_jwks_issuer or settings.jwt_issuer, settings.jwt_jwks_leeway_s
    # A secret may lie in a file of this machine; one that a server hands out is none.
    return (own, Realm(keys, issuer, audience, leeway_s, None, algorithms, secrets=settings.jwks_address is None))


def key_set(settings: Settings) -> bytes:
    """Our own JWK set: the shared HS256 key.

    Raises:
        StartupError: there is no key.
    """
    secret = base64.urlsafe_b64encode(secret_of(settings)).rstrip(b"=").decode()
    return msgspec.json.encode({"keys": [{"kty": "oct", "alg": "HS256", "use": "sig", "k": secret}]})


def ticket_key(settings: Settings) -> bytes:
    """The key of tickets: derived, so that a ticket is never a token, nor a token a ticket.

    Raises:
        StartupError: there is no key.
    """
    return hmac.digest(secret_of(settings), _TICKETS, hashlib.sha256)


def public_keys(settings: Settings) -> tuple[dict[str, Any], ...]:
    """The keys that may be published: none. Our own is symmetric, and another issuer publishes its keys itself."""
    del settings
    return ()
