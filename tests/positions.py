"""Positions as clients see them, written by the obvious way."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from flx_api.events.position import Position


def encode(position: Position) -> str:
    """The opaque string that clients hand back as `from`."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).rstrip(b"=").decode()
