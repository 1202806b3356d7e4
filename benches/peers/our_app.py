"""Our gateway process with two routes of the benchmark: one of the framework, and one beside it.

Everything else is the production process (`flx_api.cli.gateway_process`). `BENCH_BARE=1` takes token check, limits and
metrics away from the second route: what is left is what admission is compared with.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from flx_api.cli.children import leave_out_optional_parts

leave_out_optional_parts()

from blacksheep import Content  # noqa: E402 - optional parts are left out before it is imported
from blacksheep import Response as FrameworkResponse  # noqa: E402

from benches.peers.routes import FRAMEWORK, REPLY  # noqa: E402
from flx_api import dependencies  # noqa: E402
from flx_api.cli import gateway_process  # noqa: E402
from flx_api.gateway.routes_fast import Response  # noqa: E402
from flx_api.observability.metrics import Histogram, Metrics  # noqa: E402

if TYPE_CHECKING:
    from flx_api.gateway.paths import Paths


_BODY = b'{"ok":true}'
_BARE = os.environ.get("BENCH_BARE") == "1"
_paths, _framework = dependencies.paths, dependencies.framework


def paths(*parts: Any) -> Paths:  # noqa: ANN401 - passed on
    """All paths, and the two of the benchmark."""
    known = _paths(*parts)
    known.add("GET", FRAMEWORK, "token")
    known.add("GET", REPLY, "probe" if _BARE else "token", _reply)
    return known


def framework(*parts: Any) -> Any:  # noqa: ANN401 - passed on
    """The framework, and its route of the benchmark."""
    application = _framework(*parts)
    application.router.add("GET", FRAMEWORK, _framed)
    return application


async def _reply(exchange: Any) -> Response:  # noqa: ANN401, ARG001 - a handler's signature
    return Response(200, [(b"content-type", b"application/json")], _BODY)


async def _framed() -> FrameworkResponse:
    return FrameworkResponse(200, content=Content(b"application/json", _BODY))


def _count_nothing() -> None:
    Metrics.request = lambda *_: None  # type: ignore[method-assign]
    Histogram.observe = lambda *_: None  # type: ignore[method-assign]


if __name__ == "__main__":
    dependencies.paths, dependencies.framework = paths, framework
    if _BARE:
        _count_nothing()
    sys.exit(gateway_process.main())
