"""An application that answers a request with its own body, on RSGI: what Granian itself costs for a command."""

from __future__ import annotations

from typing import Any

_HEADERS = [("content-type", "application/json")]


class Echo:
    """Speaks RSGI."""

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401 - RSGI
        """RSGI."""
        del scope
        protocol.response_bytes(200, _HEADERS, await protocol())


application = Echo()
