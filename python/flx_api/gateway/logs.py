"""Log lines of an execution as a stream: `GET /v1/executions/{id}/logs`.

Strategy: the execution is looked up first, by the same way as any command, so that who may not see it gets the same
problem document as everywhere; then the Logs stream is passed on as it comes. Served beside the framework, since a
stream that follows has to notice that its reader left, and that the service stops, while there is nothing to send.

Rules:
- `Accept: text/plain` gives the lines as they are; anything else gives one JSON object a line: `line`, `text`.
- `follow` ends when the execution is over or the client leaves. When the token ends or is revoked, or the service
  drains, the stream is cut: it is not complete.
- One subject reads a quarter of what all may read at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from msgspec import Meta

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import authorise
from flx_api.errors import FlxError, RateLimited, Unauthenticated, Unavailable
from flx_api.gateway.dispatch import frame_principal
from flx_api.gateway.exchange import StreamCut
from flx_api.gateway.options import convert, known, query
from flx_api.proto.flx.v1.daemon_pb2 import LogRequest
from flx_api.websocket.standing import owner_of

if TYPE_CHECKING:
    from grpclib.client import Stream

    from flx_api.gateway.cors import Cors
    from flx_api.gateway.dispatch import Dispatcher
    from flx_api.gateway.exchange import Exchange
    from flx_api.proto.flx.v1.daemon_pb2 import LogBatch
    from flx_api.upstream.channel import Upstream
    from flx_api.websocket.standing import Standing

NDJSON: Final = b"application/x-ndjson"
# One HTTP/2 connection carries 100 streams, and one more waits for as long as all of these last; commands, events and
# resumes need theirs.
MAX_STREAMS: Final = 80
MAX_PER_SUBJECT: Final = 20
TEXT: Final = b"text/plain; charset=utf-8"


class LogQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of a log is wanted."""

    from_line: Annotated[int, Meta(ge=1, lt=2**53, description="the first line; lines count from 1")] = msgspec.field(
        default=1, name="from"
    )
    limit: Annotated[int, Meta(ge=0, lt=2**32, description="at most this many lines; 0 is all")] = 0
    follow: Annotated[bool, Meta(description="go on until the execution is over")] = False


class LogRoute:
    """The handler of the log stream. `draining` is set when streams have to end."""

    def __init__(
        self, upstream: Upstream, dispatcher: Dispatcher, cors: Cors, draining: asyncio.Event, standing: Standing
    ) -> None:
        self._upstream = upstream
        self._dispatcher = dispatcher
        self._cors = cors
        self._draining = draining
        self._standing = standing
        # How many each subject of a tenant reads.
        self._open: Counter[tuple[str, str]] = Counter()

    async def serve(self, exchange: Exchange) -> None:
        """Answer with the stream."""
        values = query(exchange)
        known(values, {field.encode_name for field in msgspec.structs.fields(LogQuery)})
        wanted = convert(values, LogQuery)
        principal = exchange.principal
        if principal is None:
            raise Unauthenticated
        authorise(COMMANDS["execution.logs"], principal.roles)
        args = msgspec.json.encode({"id": exchange.values["id"]})
        await self._dispatcher.run(exchange, COMMANDS["execution.get"], args)
        owner = owner_of(principal)
        if self._open.total() >= MAX_STREAMS or self._open[owner] >= MAX_PER_SUBJECT:
            detail = "Too many logs are being read"
            raise RateLimited(detail, retry_after_s=5)
        self._open[owner] += 1
        try:
            with self._standing.while_good(principal) as ended:
                await self._stream(exchange, wanted, ended)
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]

    async def _stream(self, exchange: Exchange, wanted: LogQuery, ended: asyncio.Event) -> None:
        stub = await self._upstream.stub()
        text = exchange.headers.get(b"accept", b"").startswith(b"text/plain")
        request = LogRequest(
            execution_id=exchange.values["id"],
            from_line=wanted.from_line,
            follow=wanted.follow,
            limit=wanted.limit,
            principal=frame_principal(exchange.principal),
        )
        try:
            async with stub.Logs.open(metadata=self._upstream.metadata) as stream:
                await stream.send_message(request, end=True)
                await begin_stream(exchange, self._cors, TEXT if text else NDJSON)
                if exchange.method == "HEAD" or not await self._pass_on(exchange, stream, ended, text=text):
                    # Left before its end, the stream would be waited for: say that nobody listens any more.
                    await stream.cancel()
                    if ended.is_set() or (wanted.follow and self._draining.is_set()):
                        raise StreamCut
        except (GRPCError, StreamTerminatedError, ProtocolError, OSError) as error:
            if not exchange.status:
                raise _why(error) from None
            # Headers are out: a cut connection is the only way left to say that the stream is not complete.
            raise StreamCut from None
        await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass_on(
        self, exchange: Exchange, stream: Stream[LogRequest, LogBatch], ended: asyncio.Event, *, text: bool
    ) -> bool:
        """Send batches until they end (True), the client leaves, its token ends or the service drains (False)."""
        ends = [asyncio.create_task(wait) for wait in (_gone(exchange), self._draining.wait(), ended.wait())]
        try:
            while True:
                following = asyncio.create_task(stream.recv_message())
                done, _ = await asyncio.wait([following, *ends], return_when=asyncio.FIRST_COMPLETED)
                if following not in done:
                    following.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await following
                    return False
                batch = following.result()
                if batch is None:
                    return True
                body = _text(batch) if text else _ndjson(batch)
                await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


def _why(error: Exception) -> FlxError:
    """What a refusal of the daemon means. That it refuses the gateway itself is no affair of a client's."""
    if isinstance(error, GRPCError) and error.status is not Status.UNAUTHENTICATED:
        return FlxError.from_status(error.status.value)
    return Unavailable(retry_after_s=1)


async def begin_stream(exchange: Exchange, cors: Cors, content_type: bytes) -> None:
    """Send the head of a response whose body comes line by line."""
    own = [(b"content-type", content_type), (b"vary", b"Accept")]
    if cors.active:
        own += cors.headers(exchange.headers.get(b"origin"))
    headers = exchange.admitted.headers(own, None)
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    exchange.status = 200
    # Granian holds the headers back until a body begins, and there may be no line for a long time.
    await exchange.send({"type": "http.response.body", "body": b"", "more_body": True})


async def _gone(exchange: Exchange) -> None:
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


def _text(batch: LogBatch) -> bytes:
    return b"".join(line + b"\n" for line in batch.lines)


def _ndjson(batch: LogBatch) -> bytes:
    encode = msgspec.json.encode
    return b"".join(
        encode({"line": batch.first_line + index, "text": line.decode("utf-8", "replace")}) + b"\n"
        for index, line in enumerate(batch.lines)
    )
