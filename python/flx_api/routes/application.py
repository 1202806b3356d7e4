"""What serves which path: the framework gets the resources, the edge gets everything that goes beside it.

Rules:
- Everything is bound from `flx_api.routes.table`; what is not there is not served.
- An error inside the framework becomes the same problem document as anywhere else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from blacksheep import Application, Content, Request, Response
from blacksheep.exceptions import HTTPException
from blacksheep.server.routing import Router
from rodi import Container

from flx_api.errors import FlxError, Internal, InvalidRequest, NotFound
from flx_api.gateway.intake import CLIENT_GONE, ClientGone
from flx_api.gateway.paths import Paths
from flx_api.gateway.responses import problem
from flx_api.limits.policies import RouteClass
from flx_api.observability.metrics import UNMATCHED, WEBSOCKET
from flx_api.routes import table
from flx_api.routes.resources import exchange_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.config import Settings
    from flx_api.gateway.batch import BatchRoute
    from flx_api.gateway.logs import LogRoute
    from flx_api.gateway.paths import Access
    from flx_api.gateway.routes_fast import CommandRoutes
    from flx_api.routes.pages import Pages
    from flx_api.routes.resources import ResourceController
    from flx_api.websocket.sse import EventRoute

# template, what each method asks for, and what its last value is
NativeRoute = tuple[str, list[tuple[str, str]], str]

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


def paths(commands: CommandRoutes, batches: BatchRoute, logs: LogRoute, streams: EventRoute, pages: Pages) -> Paths:
    """All paths with their access and, beside the framework, their handlers."""
    served = {
        table.EXECUTE: commands.execute,
        table.BATCH: batches.serve,
        table.COMMAND: commands.named,
        table.ROOT_COMMAND: commands.named,
        table.LOGS: logs.serve,
        table.EVENTS: streams.serve,
        table.WHOAMI: pages.whoami,
        table.TICKET: pages.ticket,
        table.ROOT: pages.root,
        table.HEALTH: pages.health,
        table.READY: pages.ready,
        table.METRICS: pages.metrics,
        table.DOCS: pages.docs,
        table.ASSETS: pages.asset,
        table.OPENAPI: pages.openapi,
        table.ASYNCAPI: pages.asyncapi,
        table.KEYS: pages.keys,
    }
    return _laid_out(served)


class NativeRoutes(NamedTuple):
    """The routes as `flx_api._core.Admission` and `flx_api.limits.policies` take them, all in the order of `paths`.

    `classes` goes on beyond the routes: what leads nowhere, WebSocket handshakes, and then each method of a route that
    stands for a command; `own` says which route, method and class that is. `named` are the templates whose last value
    is a command's name; `allowed` are the values of the Allow header.
    """

    templates: list[str]
    native: list[NativeRoute]
    classes: list[RouteClass]
    own: list[tuple[int, str, int]]
    named: frozenset[str]
    allowed: list[str]


def native_routes(settings: Settings) -> NativeRoutes:
    """The routes of `paths`, before there are handlers."""
    known = _laid_out({})
    metrics: Access = "token" if settings.metrics == "token" else "public"
    commands = {(resource.method, resource.template): resource.command for resource in table.RESOURCES}
    commands[table.LOGS.method, table.LOGS.template] = "execution.logs"
    kinds = {table.COMMAND.template: "command", table.ROOT_COMMAND.template: "dotted"}
    native: list[NativeRoute] = []
    classes: list[RouteClass] = []
    for route in known:
        asks: list[tuple[str, str]] = [
            (method, metrics if access == "metrics" else access) for method, access in route.access.items()
        ]
        native.append((route.template, asks, kinds.get(route.template, "value")))
        late = route.template in {table.EXECUTE.template, table.BATCH.template}
        classes.append(RouteClass(route.template, late=late))
    classes += [RouteClass(UNMATCHED), RouteClass(WEBSOCKET)]
    own: list[tuple[int, str, int]] = []
    for index, route in enumerate(known):
        for method in route.access:
            if (command := commands.get((method, route.template))) is not None:
                own.append((index, method, len(classes)))
                classes.append(RouteClass(route.template, command))
    templates = [route.template for route in known]
    return NativeRoutes(templates, native, classes, own, frozenset(kinds), [route.allow for route in known])


def _laid_out(served: Mapping[table.Page, Any]) -> Paths:
    known = Paths()
    for resource in table.RESOURCES:
        known.add(resource.method, resource.template, resource.access)
    for page in table.PAGES:
        known.add(page.method, page.template, page.access, served.get(page))
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
