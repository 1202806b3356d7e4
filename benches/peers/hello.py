"""An application that answers the same short body to everybody: what Granian itself costs, on either interface."""

from __future__ import annotations

from typing import Any

_BODY = b'{"ok":true}'
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"11")],
}
_END = {"type": "http.response.body", "body": _BODY, "more_body": False}
_HEADERS = [("content-type", "application/json")]


class Hello:
    """Speaks ASGI and RSGI."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """ASGI."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send(_START)
        await send(_END)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401 - RSGI
        """RSGI."""
        protocol.response_bytes(200, _HEADERS, _BODY)


application = Hello()
