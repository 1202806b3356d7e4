"""The gateway's own pages: health, metrics, keys, tickets, the root, and the documentation.

Rules:
- Nothing here asks the daemon.
- Files of the documentation come from the installed package `swagger-ui-bundle`, by name from a fixed list: no path of
  a request ever reaches the file system, no page ever asks another site.
"""

from __future__ import annotations

import time
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.auth.keys import public_keys
from flx_api.auth.tickets import LIFETIME_S
from flx_api.errors import NotFound, Unauthenticated
from flx_api.gateway.responses import JSON
from flx_api.gateway.routes_fast import Response
from flx_api.models.auth import WhoAmI
from flx_api.models.envelope import KeySet, Liveness, ServiceRoot, Ticket
from flx_api.observability.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from flx_api.auth.tickets import Tickets
    from flx_api.config import Settings
    from flx_api.gateway.exchange import Exchange
    from flx_api.observability.health import Health
    from flx_api.observability.metrics import Metrics

_ASSETS: Final = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "favicon-32x32.png": b"image/png",
}
_START: Final = b"""window.onload = function () {
  window.ui = SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
};
"""
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>FLX API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# Swagger UI sets style attributes and shows icons from data URLs; scripts are files of ours only.
_PAGE_CSP: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Pages:
    """Handlers beside the framework; they are small, and some are asked every second."""

    def __init__(self, settings: Settings, health: Health, metrics: Metrics, tickets: Tickets) -> None:
        self._settings = settings
        self._health = health
        self._metrics = metrics
        self._tickets = tickets
        self._documents: dict[str, bytes] = {}
        self._root: Response | None = None
        self._files: dict[str, bytes] = {}

    async def root(self, exchange: Exchange) -> Response:
        """What is served here."""
        del exchange
        if self._root is not None:
            return self._root
        links = {
            "docs": "/docs",
            "openapi": "/openapi.json",
            "asyncapi": "/asyncapi.json",
            "health": "/health",
            "ready": "/ready",
            "execute": "/v1/execute",
            "batch": "/v1/batch",
            "realtime": "/ws/{client_id}",
        }
        # Asking for the version reads the file system, so it is asked once.
        self._root = _json(ServiceRoot("FLX API", metadata.version("flx-api"), links))
        return self._root

    async def health(self, exchange: Exchange) -> Response:
        """The process lives."""
        del exchange
        return _json(Liveness("ok"))

    async def ready(self, exchange: Exchange) -> Response:
        """Whether requests can be served."""
        del exchange
        readiness = self._health.readiness()
        return _json(readiness, 200 if readiness.status == "ready" else 503)

    async def metrics(self, exchange: Exchange) -> Response:
        """All metrics."""
        del exchange
        if self._settings.metrics == "off":
            raise NotFound
        return Response(200, [(b"content-type", CONTENT_TYPE.encode())], self._metrics.exposition())

    async def keys(self, exchange: Exchange) -> Response:
        """Public keys."""
        del exchange
        return _json(KeySet(public_keys(self._settings)))

    async def whoami(self, exchange: Exchange) -> Response:
        """The principal of this request; the core remembers the answer beside the token, and gives it from then on."""
        principal = exchange.principal
        if principal is None:
            raise Unauthenticated
        response = _json(
            WhoAmI(
                subject=principal.subject,
                tenant=principal.tenant,
                roles=principal.roles,
                token_id=principal.token_id,
                session=principal.session,
                expires_at=principal.expires_at,
            )
        )
        exchange.admitted.keep(*response)
        return response

    async def ticket(self, exchange: Exchange) -> Response:
        """A WebSocket ticket for the principal of this request."""
        if exchange.principal is None:
            raise Unauthenticated
        return _json(Ticket(self._tickets.issue(exchange.principal, time.time()), LIFETIME_S), 201)

    async def openapi(self, exchange: Exchange) -> Response:
        """The OpenAPI document; made when it is first asked for."""
        del exchange
        return self._document("openapi")

    async def asyncapi(self, exchange: Exchange) -> Response:
        """The AsyncAPI document; made when it is first asked for."""
        del exchange
        return self._document("asyncapi")

    def _document(self, name: str) -> Response:
        if name not in self._documents:
            # Imported here, since the schemas of all models are worth their time only to those who read them.
            module = import_module(f"flx_api.routes.{name}")
            self._documents[name] = msgspec.json.encode(module.document())
        return Response(200, [(b"content-type", JSON)], self._documents[name])

    async def docs(self, exchange: Exchange) -> Response:
        """The page."""
        del exchange
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", _PAGE_CSP),
            # The one answer that a browser follows links from.
            (b"referrer-policy", b"no-referrer"),
        ]
        return Response(200, headers, _PAGE)

    async def asset(self, exchange: Exchange) -> Response:
        """One file of the page."""
        name = exchange.values["file"]
        if name == "start.js":
            return Response(200, [(b"content-type", b"text/javascript; charset=utf-8")], _START)
        content_type = _ASSETS.get(name)
        if content_type is None:
            raise NotFound
        if name not in self._files:
            from swagger_ui_bundle import swagger_ui_path  # noqa: PLC0415 - only those who read the page need it

            self._files[name] = (swagger_ui_path / name).read_bytes()
        return Response(200, [(b"content-type", content_type)], self._files[name])


def _json(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(status, [(b"content-type", JSON)], msgspec.json.encode(value))
