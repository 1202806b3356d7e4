"""The original stack, written as its specification of 2025-06-23 describes it, in the parts that a command meets.

    TrustedHostMiddleware, CORSMiddleware -> AuthMiddleware (PyJWT) -> slowapi on Redis -> universal endpoint (FastAPI,
    Pydantic in, msgspec out) -> dependencies (user, gRPC channel) -> grpcio unary call -> structlog, prometheus-client

Its best settings, where the specification leaves them open:
- uvicorn with uvloop and httptools, one worker, no access log; structlog from WARNING up, so that nothing is written.
- One gRPC channel for the process's life, over the daemon's Unix socket; the token is verified once for each request.
- slowapi counts by its sliding window counter; the specification's "sliding window" as an exact log would keep every
  hit in Redis. Two limits, by address and by subject, as ours. slowapi speaks to Redis synchronously.
- The logger's context (`bind_contextvars`) is one call; the metrics are one counter and one histogram.
"""

import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import jwt
import msgspec
import structlog
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse
from prometheus_client import Counter, Histogram
from pydantic import BaseModel, Field
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from starlette.middleware.base import BaseHTTPMiddleware

from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyFrame

SECRET = os.environ["BENCH_SECRET"]
ROOMY = "100000000/minute"
DEADLINE_S = 30.0

structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(30),
    cache_logger_on_first_use=True,
)
logger = structlog.get_logger("flx_api")
requests_total = Counter("flx_api_requests_total", "Requests", ["method", "path", "status"])
request_seconds = Histogram("flx_api_request_seconds", "Duration", ["method", "path"])


class CommandRequest(BaseModel):
    """The body of the universal endpoint."""

    command: str = Field(..., min_length=1, max_length=255, description="The command's name")
    args: dict[str, Any] = Field(default_factory=dict, description="Its arguments")


class TokenData(BaseModel):
    """What the middleware found in the token."""

    sub: str
    roles: list[str] = Field(default_factory=list)
    exp: int


class AuthMiddleware(BaseHTTPMiddleware):
    """JWT validation, request id and metrics."""

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Serve a request of somebody who is known."""
        began = time.perf_counter()
        request_id = request.headers.get("x-request-id") or str(uuid.uuid4())
        structlog.contextvars.bind_contextvars(request_id=request_id)
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return JSONResponse({"detail": "Not authenticated"}, 401)
        try:
            claims = jwt.decode(
                credentials,
                SECRET,
                algorithms=["HS256"],
                audience="flx-api",
                issuer="flx",
                options={"require": ["exp", "sub"]},
            )
        except jwt.InvalidTokenError:
            return JSONResponse({"detail": "Invalid token"}, 401)
        request.state.user = claims
        response = await call_next(request)
        path = request.url.path
        requests_total.labels(request.method, path, str(response.status_code)).inc()
        request_seconds.labels(request.method, path).observe(time.perf_counter() - began)
        response.headers["x-request-id"] = request_id
        return response


def subject(request: Request) -> str:
    """Who is limited."""
    return str(request.state.user["sub"])


limiter = Limiter(key_func=get_remote_address, storage_uri=os.environ["BENCH_REDIS"], strategy="sliding-window-counter")


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    """One channel for the process's life."""
    options = [("grpc.default_authority", "localhost")]  # a path is no authority, says HTTP/2 in Rust
    async with grpc.aio.insecure_channel("unix:" + os.environ["BENCH_DAEMON"], options) as channel:
        application.state.execute = channel.unary_unary(
            "/flx.v1.Daemon/Execute",
            request_serializer=CommandFrame.SerializeToString,
            response_deserializer=ReplyFrame.FromString,
        )
        yield


async def get_current_user(request: Request) -> TokenData:
    """The user of this request."""
    return TokenData(**request.state.user)


async def get_grpc_stub(request: Request) -> Any:  # noqa: ANN401 - a callable of grpcio
    """The daemon's `Execute`."""
    return request.app.state.execute


application = FastAPI(title="FLX API", lifespan=lifespan)
application.state.limiter = limiter
application.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
application.add_middleware(AuthMiddleware)
application.add_middleware(CORSMiddleware, allow_origins=["https://app.example.org"], allow_methods=["*"])
application.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])


@application.post("/v1/execute")
@limiter.limit(ROOMY)
@limiter.limit(ROOMY, key_func=subject)
async def execute(
    request: Request,
    command: CommandRequest,
    user: TokenData = Depends(get_current_user),  # noqa: B008, FAST002 - as FastAPI 0.104 was written
    call: Any = Depends(get_grpc_stub),  # noqa: ANN401, B008, FAST002
) -> Response:
    """The universal endpoint."""
    frame = CommandFrame(
        command=command.command,
        args=msgspec.json.encode(command.args),
        principal=Principal(subject=user.sub, roles=user.roles),
        deadline_unix_ms=int((time.time() + DEADLINE_S) * 1000),
        request_id=request.headers.get("x-request-id", ""),
    )
    try:
        reply = await call(frame, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        logger.warning("command failed", command=command.command, code=error.code().name)
        raise HTTPException(502, "The daemon did not answer") from error
    if reply.code:
        raise HTTPException(400, reply.code)
    result = {"command": command.command, "status": "ok", "result": msgspec.Raw(reply.result)}
    return Response(msgspec.json.encode(result), media_type="application/json")
