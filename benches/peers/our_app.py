"""Our gateway process with two routes of the benchmark: one of the framework, and one beside it.

Everything else is the production process (`flx_api.cli.gateway_process`). `BENCH_BARE=1` takes token check and limits
away from the second route, as from a probe, and the timing of phases: what is left is what admission is compared with.
With `BENCH_BARE=headers` that route sends two headers, always the same, in place of those of the limits.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flx_api.cli.children import leave_out_optional_parts

leave_out_optional_parts()

from blacksheep import Content  # noqa: E402 - optional parts are left out before it is imported
from blacksheep import Response as FrameworkResponse  # noqa: E402

from benches.peers.routes import FRAMEWORK, REPLY  # noqa: E402
from flx_api import dependencies  # noqa: E402
from flx_api.cli import gateway_process  # noqa: E402
from flx_api.gateway.exchange import Exchange  # noqa: E402
from flx_api.gateway.routes_fast import Response  # noqa: E402
from flx_api.observability.metrics import Metrics  # noqa: E402
from flx_api.routes import application  # noqa: E402

_BODY = b'{"ok":true}'
_BARE = os.environ.get("BENCH_BARE", "0") != "0"
_HEADERS = [(b"content-type", b"application/json")]
if os.environ.get("BENCH_BARE") == "headers":
    # As long as those of a policy of the benchmark.
    _HEADERS += [
        (b"ratelimit-policy", b'"per-subject";q=100000000;w=60'),
        (b"ratelimit", b'"per-subject";r=99999999;t=60'),
    ]


def add_routes() -> None:
    """Make the two routes known where all routes are laid out, and one of them to the framework."""
    # Their names are private or not exported; a route that is no page of ours has no other way in.
    laid_out_in: Any = application
    framed_in: Any = dependencies
    lay_out, frame = laid_out_in._laid_out, framed_in.framework  # noqa: SLF001

    def laid_out(served: Any) -> Any:  # noqa: ANN401 - passed on
        known = lay_out(served)
        known.add("GET", FRAMEWORK, "token")
        known.add("GET", REPLY, "probe" if _BARE else "token", _reply)
        return known

    def framework(*parts: Any) -> Any:  # noqa: ANN401 - passed on
        framed = frame(*parts)
        framed.router.add("GET", FRAMEWORK, _framed)
        return framed

    laid_out_in._laid_out, framed_in.framework = laid_out, framework  # noqa: SLF001


def time_nothing() -> None:
    """Leave the phases of a request untimed."""
    metrics: Any = Metrics
    metrics.phase = lambda *_: None
    exchange: Any = Exchange
    exchange.mark_ns = None


async def _reply(exchange: Any) -> Response:  # noqa: ANN401, ARG001 - a handler's signature
    return Response(200, _HEADERS, _BODY)


async def _framed() -> FrameworkResponse:
    return FrameworkResponse(200, content=Content(b"application/json", _BODY))


if __name__ == "__main__":
    add_routes()
    if _BARE:
        time_nothing()
    sys.exit(gateway_process.main())
