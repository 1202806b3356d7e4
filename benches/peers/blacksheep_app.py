"""The rival of our BlackSheep route: the same framework with its own JWT authentication and a limiter in Python.

Its best settings: one secret and one algorithm, prepared once; one middleware for both limits; `limits` in memory with
its sliding window counter. That one estimates; the exact moving window keeps a list of every hit, which gets long under
one busy address and costs more than all the rest. It counts no metrics and makes no request ids.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable  # noqa: TC003 - the framework reads the annotations of a middleware

from blacksheep import Application, Content, Request, Response
from blacksheep.server.authentication.jwt import JWTBearerAuthentication
from blacksheep.server.authorization import Policy
from essentials.secrets import Secret
from guardpost.common import AuthenticatedRequirement
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from limits import RateLimitItemPerMinute

_ROOMY = 100_000_000

application = Application()
application.use_authentication().add(
    JWTBearerAuthentication(
        valid_audiences=["flx-api"],
        valid_issuers=["flx"],
        algorithms=["HS256"],
        secret_key=Secret(os.environ["BENCH_SECRET"], direct_value=True),
    )
)
application.use_authorization().with_default_policy(Policy("authenticated", AuthenticatedRequirement()))
_limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
_per_client = RateLimitItemPerMinute(_ROOMY)
_per_subject = RateLimitItemPerMinute(int(os.environ["BENCH_LIMIT"]))


async def _limited(request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
    if not _limiter.hit(_per_client, "ip", request.client_ip):
        return Response(429)
    if request.user is not None and not _limiter.hit(_per_subject, "subject", request.user.sub):
        return Response(429)
    return await handler(request)


application.middlewares.append(_limited)


@application.router.get(os.environ["BENCH_ROUTE"])
async def reply(request: Request) -> Response:
    """A short body."""
    del request
    return Response(200, content=Content(b"application/json", b'{"ok":true}'))
