"""The key set that tokens are verified with, as the native core takes it: a JSON Web Key Set.

Rules:
- The set holds secrets: it goes from here to the core and nowhere else. `public_keys` is what others may see.
- A symmetric key is never published.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import msgspec

from flx_api.config import secret_of

if TYPE_CHECKING:
    from flx_api.config import Settings


def key_set(settings: Settings) -> bytes:
    """The JWK set of these settings: the shared HS256 key.

    Raises:
        StartupError: there is no key.
    """
    secret = base64.urlsafe_b64encode(secret_of(settings)).rstrip(b"=").decode()
    return msgspec.json.encode({"keys": [{"kty": "oct", "alg": "HS256", "use": "sig", "k": secret}]})


def public_keys(settings: Settings) -> tuple[dict[str, Any], ...]:
    """The keys that may be published: none, since every key of this version is symmetric."""
    del settings
    return ()
