"""How lists are paged: an opaque cursor and a limit."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from msgspec import Meta

from flx_api.errors import ValidationFailed

Limit = Annotated[int, Meta(ge=1, le=500)]


def encode_cursor(key: str) -> str:
    """The opaque cursor after the item with this key."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str | None:
    """The key of a cursor. Raises ValidationFailed for anything that we did not make."""
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise ValidationFailed.field("cursor", "is not one that this service made") from None
