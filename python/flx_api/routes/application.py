"""What serves which path: the framework gets the resources, the edge gets everything that goes beside it.

Rules:
- Everything is bound from `flx_api.routes.table`; what is not there is not served.
- An error inside the framework becomes the same problem document as anywhere else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import structlog
from blacksheep import Application, Content, Request, Response
from blacksheep.exceptions import HTTPException
from blacksheep.server.routing import Router
from rodi import Container

from flx_api.errors import FlxError, Internal, InvalidRequest, NotFound
from flx_api.gateway.intake import CLIENT_GONE, ClientGone
from flx_api.gateway.paths import Paths
from flx_api.gateway.responses import problem
from flx_api.routes import table
from flx_api.routes.resources import exchange_of

if TYPE_CHECKING:
    from flx_api.gateway.logs import LogRoute
    from flx_api.gateway.routes_fast import CommandRoutes
    from flx_api.routes.pages import Pages
    from flx_api.routes.resources import ResourceController

_log = structlog.get_logger("flx.routes")


def framework(resources: ResourceController) -> Application:
    """The BlackSheep application with all resource routes."""
    router = Router()
    for resource in table.RESOURCES:
        router.add(resource.method, resource.template, resources.handler(resource))
    app = Application(router=router, services=Container())
    # It logs every handled error at INFO by itself; ours are counted and logged at the edge.
    logging.getLogger("blacksheep.server").setLevel(logging.CRITICAL)
    handlers: dict[Any, Any] = app.exceptions_handlers
    handlers[FlxError] = _on_flx_error
    handlers[HTTPException] = _on_http_error
    handlers[404] = _on_http_error
    handlers[500] = _on_fault
    handlers[ClientGone] = _on_client_gone
    handlers[Exception] = _on_fault
    return app


def paths(commands: CommandRoutes, logs: LogRoute, pages: Pages) -> Paths:
    """All paths with their access and, beside the framework, their handlers."""
    served = {
        table.EXECUTE: commands.execute,
        table.COMMAND: commands.named,
        table.ROOT_COMMAND: commands.named,
        table.LOGS: logs.serve,
        table.TICKET: pages.ticket,
        table.ROOT: pages.root,
        table.HEALTH: pages.health,
        table.READY: pages.ready,
        table.METRICS: pages.metrics,
        table.DOCS: pages.docs,
        table.ASSETS: pages.asset,
        table.OPENAPI: pages.openapi,
        table.KEYS: pages.keys,
    }
    known = Paths()
    for resource in table.RESOURCES:
        known.add(resource.method, resource.template, resource.access)
    for page in table.PAGES:
        known.add(page.method, page.template, page.access, served[page])
    return known


def _response(request: Request, error: FlxError) -> Response:
    status, headers, body = problem(error, exchange_of(request).request_id)
    content_type = dict(headers)[b"content-type"]
    return Response(status, [pair for pair in headers if pair[0] != b"content-type"], Content(content_type, body))


async def _on_flx_error(_app: Application, request: Request, error: FlxError) -> Response:
    return _response(request, error)


async def _on_http_error(_app: Application, request: Request, error: HTTPException) -> Response:
    known = NotFound() if error.status == 404 else InvalidRequest()  # noqa: PLR2004
    return _response(request, known)


async def _on_client_gone(_app: Application, _request: Request, _error: ClientGone) -> Response:
    # Nobody reads it, but it is counted, and not as a fault of ours.
    return Response(CLIENT_GONE)


async def _on_fault(_app: Application, request: Request, error: Exception) -> Response:
    _log.error("routes.unexpected", request_id=exchange_of(request).request_id, exc_info=error)
    return _response(request, Internal())
