"""The keys of a gateway: the set that tokens are verified with, as the native core takes it, and the one of tickets.

Rules:
- The set holds secrets: it goes from here to the core and nowhere else. `public_keys` is what others may see.
- A symmetric key is never published.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flx_api.config import secret_of

if TYPE_CHECKING:
    from flx_api.config import Settings


_TICKETS: Final = b"flx-api websocket tickets v1"


def key_set(settings: Settings) -> bytes:
    """The JWK set of these settings: the shared HS256 key.

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
    """The keys that may be published: none, since every key of this version is symmetric."""
    del settings
    return ()
