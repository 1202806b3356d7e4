"""Many commands in one request: `POST /v1/batch`.

Strategy: the body is judged as a whole, and nothing is carried out unless all of it can be read. Then each operation is
decided about as if it had come alone to `/v1/execute`: its command, that command's limits and permission, and at the
daemon its arguments, key and deadline. What may go travels in one group (`flx_api.upstream.group`), so that a batch
costs one message each way and no task for each operation. Plain ones (`flx_api.gateway.plain`) are decided about, made
into frames and their results into JSON in the native core, for all of a message at once. A batch that is plain as a
whole needs nothing of this (`flx_api.gateway.ride`), unless there is no room for all of it at once, or one of its
operations ends otherwise than with a plain result: then it goes on here from where it is.

Rules:
- An operation that fails is a result with an error; the response is 200 as soon as the batch was carried out.
- Results are in the order of the operations. `Accept: application/x-ndjson` gives each as a line when it is ready, and
  the totals as the last line.
- With `fail_fast` nothing is begun after the first failure; what was not begun says `not_attempted`, and cost nothing.
- Who leaves ends the batch: nothing more is begun, and what the daemon has accepted goes on there.
- Nothing that one request can ask for holds up others: results that are kept are bounded in bytes, names that are
  compared with those of all commands in number.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from flx_api._core import batch_results
from flx_api.commands import COMMANDS, find
from flx_api.commands.permissions import authorise
from flx_api.errors import Conflict, FlxError, InvalidRequest, NotFound, ValidationFailed
from flx_api.gateway.costs import payer
from flx_api.gateway.dispatch import error_of, frame_of
from flx_api.gateway.intake import ClientGone
from flx_api.gateway.logs import NDJSON, begin_stream
from flx_api.gateway.options import decoded, no_query
from flx_api.gateway.patience import AWAITED
from flx_api.gateway.responses import JSON, item_problem
from flx_api.gateway.routes_fast import Response
from flx_api.models import strict_json
from flx_api.models.envelope import BatchEnd, BatchReply, BatchRequest, BatchResult, BatchTotals, ReplyMeta
from flx_api.observability.metrics import UNMATCHED
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame
from flx_api.upstream.channel import GROUPED
from flx_api.upstream.group import Group

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from flx_api._core import PlainBatch, PlainCommand, PlainCommands
    from flx_api.commands import Command
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.dispatch import Dispatcher
    from flx_api.gateway.exchange import Exchange
    from flx_api.gateway.patience import Patience
    from flx_api.gateway.responses import PolicyRefusals
    from flx_api.observability.metrics import Metrics
    from flx_api.upstream.channel import Upstream
    from flx_api.upstream.group import Ending

Encoded = tuple[int, bytes]
"""The result of an operation as JSON (`BatchResult`), with its place."""

# Of results that wait for the others; beyond it nothing more is begun.
HELD_BYTES: Final = 16 * 1024 * 1024
# Finding near names takes about a millisecond, so only so many unknown ones of a batch get suggestions.
SUGGESTED: Final = 16
# After so many operations that were decided without waiting, others get their turn.
_TURN: Final = 64
_FAILED: Final = "An operation before this one failed"
_TOO_MUCH: Final = "The results so far fill the answer; a stream (Accept: application/x-ndjson) has no such limit"

_decoder = msgspec.json.Decoder(BatchRequest)
_encoder = msgspec.json.Encoder()


class BatchRoute:
    """The handler of batches."""

    def __init__(
        self,
        upstream: Upstream,
        dispatcher: Dispatcher,
        *,
        plain: PlainCommands,
        patience: Patience,
        policies: PolicyRefusals,
        cors: Cors,
        metrics: Metrics,
    ) -> None:
        self.upstream = upstream
        self.dispatcher = dispatcher
        self.plain = plain
        self.patience = patience
        self.policies = policies
        self.metrics = metrics
        self._cors = cors

    async def serve(self, exchange: Exchange) -> Response | None:
        """Answer with all results, or with a stream of them (None: it was sent)."""
        request = _request(exchange)
        streams = _wants_lines(exchange.headers.get(b"accept", b""))
        batch = _Batch(self, exchange, request, keeps=not streams)
        if not streams:
            return await self._whole(exchange, batch)
        with self.dispatcher.watch(exchange):
            await self._stream(exchange, batch)
        return None

    def begun(self, plain: PlainBatch) -> Callable[[Exchange], Awaitable[Response]]:
        """The rest of a batch that was read, of which nothing has left."""
        return self._rest_of(plain, None)

    def taken_over(self, plain: PlainBatch) -> tuple[Group, Callable[[Exchange], Awaitable[Response]]]:
        """Who waits for what is missing of a batch that has left; and the rest of it."""
        group = Group(self.upstream)
        group.take_over(plain)
        return group, self._rest_of(plain, group)

    def _rest_of(self, plain: PlainBatch, group: Group | None) -> Callable[[Exchange], Awaitable[Response]]:
        # Not the batch itself, whose frames would stay for as long as the rest takes.
        body, paid, mark_ns = plain.body, plain.paid or 0, plain.mark_ns

        async def rest(exchange: Exchange) -> Response:
            exchange.passed_until(mark_ns)
            request = _decoder.decode(body)
            return await self._whole(exchange, _Batch(self, exchange, request, keeps=True, paid=paid, group=group))

        return rest

    async def _whole(self, exchange: Exchange, batch: _Batch) -> Response:
        with self.dispatcher.watch(exchange):
            results = [result async for some in batch.results() for result in some]
        exchange.passed("upstream")
        # No two have the same place.
        results.sort()
        encoded: list[Any] = [msgspec.Raw(result) for _, result in results]
        body = _encoder.encode(BatchReply(encoded, batch.totals, batch.meta()))
        return Response(200, [(b"content-type", JSON), (b"vary", b"Accept")], body)

    async def _stream(self, exchange: Exchange, batch: _Batch) -> None:
        try:
            await begin_stream(exchange, self._cors, NDJSON)
            async with aclosing(batch.results()) as results:
                async for some in results:
                    lines = b"".join([line for _, result in some for line in (result, b"\n")])
                    await exchange.send({"type": "http.response.body", "body": lines, "more_body": True})
            exchange.passed("upstream")
            last = _encoder.encode_lines([BatchEnd(batch.totals, batch.meta())])
            await exchange.send({"type": "http.response.body", "body": last, "more_body": False})
        except (RuntimeError, OSError):
            # The client left in the middle of it; Granian says so by raising.
            raise ClientGone from None


class _Way(NamedTuple):
    """What is the same for all operations of one command: whose limits apply, and what forbids it."""

    command: Command
    payer: str
    forbidden: FlxError | None
    reads: bool


class _Batch:
    """One batch on its way.

    Args:
        route: its handler.
        exchange: its request.
        request: what is asked for.
        keeps: its results wait for one another.
        paid: how many of its operations, the first ones, are paid for.
        group: who waits for all of that, where it has left.
    """

    def __init__(
        self,
        route: BatchRoute,
        exchange: Exchange,
        request: BatchRequest,
        *,
        keeps: bool,
        paid: int = 0,
        group: Group | None = None,
    ) -> None:
        self._route = route
        self._exchange = exchange
        self._operations = request.operations
        self._dry_run = request.dry_run
        self._is_ordered = request.mode == "ordered"
        self._fail_fast = request.fail_fast
        self._keeps = keeps
        self._held = 0
        self._group = group
        self._paid = paid
        self._next = len(request.operations) if group is not None else 0
        # Why nothing more is begun.
        self._stopped = ""
        self._unknown: dict[str, FlxError] = {}
        self._ways: dict[tuple[str, bool], _Way] = {}
        self._waited_in_vain = False
        self._roles = exchange.principal.roles if exchange.principal is not None else ()
        self._frame = frame_of(exchange)
        self.totals = BatchTotals(len(request.operations))

    def meta(self) -> ReplyMeta:
        """What is said beside an answer that is given now."""
        return ReplyMeta(self._exchange.request_id, self._exchange.duration_us)

    async def results(self) -> AsyncGenerator[list[Encoded], None]:
        """The results as they become ready, those of operations that were not begun at the end."""
        group = self._group or Group(self._route.upstream, 1 if self._is_ordered else GROUPED)
        try:
            while not group.is_idle or self._goes_on:
                if refused := await self._begin_some(group):
                    yield refused
                else:
                    results, others = await group.ended()
                    meta = self.meta()
                    if results:
                        yield self._results(results, meta)
                    if others:
                        yield [self._result(index, ending, meta) for index, ending in others]
        finally:
            group.close()
        not_begun, meta = Conflict(self._stopped, code="not_attempted"), self.meta()
        count = len(self._operations)
        for start in range(self._next, count, _TURN):
            yield [self._result(index, not_begun, meta) for index in range(start, min(start + _TURN, count))]
            await asyncio.sleep(0)

    @property
    def _goes_on(self) -> bool:
        return self._next < len(self._operations) and not self._stopped

    async def _begin_some(self, group: Group) -> list[Encoded]:
        """Begin what there is room for; the results of those that are not even sent."""
        refused: list[Encoded] = []
        while True:
            self._begin_plain(group)
            if not (self._goes_on and group.has_room):
                break
            error = await self._begin(group)
            index = self._next - 1
            if error is None:
                continue
            refused.append(self._result(index, error, self.meta()))
            if len(refused) == _TURN:
                await asyncio.sleep(0)
                break
        return refused

    def _begin_plain(self, group: Group) -> None:
        """Begin the plain operations that come next, as many as there is room for at once."""
        if self._goes_on and (room := group.room_at_once):
            commands = self._plain(room)
            self._next += len(commands)
            if commands:
                group.begin_many(commands)

    def _plain(self, count: int) -> list[tuple[int, PlainCommand]]:
        """The commands of the next operations as far as they are plain, their limits charged; no more than so many."""
        if self._dry_run:
            return []
        return self._route.plain.operations(self._exchange.admitted, self._operations, self._next, count, self._paid)

    async def _begin(self, group: Group) -> FlxError | None:
        """Begin the next operation; what is against it, if it is not begun."""
        index, plain = self._next, self._plain(1)
        operation = self._operations[index]
        self._next += 1
        if plain:
            ((_, command),) = plain
            await group.begin(index, command, command.deadline_s, read=command.reads)
            return None
        dry_run = self._dry_run or operation.dry_run
        way = self._ways.get((operation.command, dry_run)) or self._way(operation.command, dry_run=dry_run)
        if way is None:
            return await self._no_command(operation.command)
        refused = self._route.patience.at_once(self._exchange.admitted, way.payer)
        if refused is not None and (refused := await self._wait(way, refused)) is not None:
            reason, policy, retry_after_s = refused
            return self._route.policies.refusal(reason, (policy, retry_after_s))
        if way.forbidden is not None:
            return way.forbidden
        frame = CommandFrame()
        frame.CopyFrom(self._frame)
        frame, deadline_s = self._route.dispatcher.frame(frame, way.command, bytes(operation.args), operation)
        if dry_run:
            frame.dry_run = True
        if not group.begin_now(index, frame, deadline_s, read=way.reads):
            await group.begin(index, frame, deadline_s, read=way.reads)
        return None

    async def _wait(self, way: _Way, refused: tuple[str, int, int]) -> tuple[str, int, int] | None:
        """What stands against an operation after waiting for a lease, if that is what it is about."""
        last: tuple[str, int, int] | None = refused
        if refused[0] == AWAITED and not self._waited_in_vain:
            last = await self._route.patience.command(self._exchange.admitted, way.payer)
            # One wait is enough for all operations.
            self._waited_in_vain = last is not None and last[0] == AWAITED
        return last

    def _way(self, name: str, *, dry_run: bool) -> _Way | None:
        """What is the same for all operations of a command; found out with the first of them. None: there is none."""
        command = COMMANDS.get(name)
        if command is None:
            return None
        forbidden: FlxError | None = None
        if not dry_run:
            try:
                authorise(command, self._roles)
            except FlxError as error:
                forbidden = error
        way = _Way(command, payer(command, dry_run=dry_run), forbidden, dry_run or command.idempotency == "read")
        self._ways[name, dry_run] = way
        return way

    async def _no_command(self, name: str) -> FlxError:
        known = self._unknown.get(name)
        if known is not None:
            return known
        if len(self._unknown) >= SUGGESTED:
            detail = "There is no command of this name"
            return NotFound(detail, code="unknown_command")
        await asyncio.sleep(0)
        try:
            find(name)
        except FlxError as error:
            self._unknown[name] = error
        return self._unknown[name]

    def _results(self, results: list[tuple[int, bytes, bool]], meta: ReplyMeta) -> list[Encoded]:
        """Plain results, counted. `meta`: of answers given now."""
        metas = _encoder.encode(meta), _encoder.encode(ReplyMeta(meta.request_id, meta.duration_us, replayed=True))
        encoded, counted = batch_results(results, self._operations, meta.request_id, *metas)
        for name, count in counted:
            self._route.metrics.operation(name, "ok", count)
        self.totals.ok += len(results)
        self._hold(sum([len(result) for _, result, _ in results]))
        return encoded

    def _result(self, index: int, ending: Ending, meta: ReplyMeta) -> Encoded:
        """How an operation went, counted, and what it means for those after it. `meta`: of answers given now."""
        operation = self._operations[index]
        if isinstance(ending, ReplyFrame) and not ending.code:
            dry_run = self._dry_run or operation.dry_run
            error = self._tell_costs(ending, operation.command) if dry_run else None
            if error is None:
                meta = ReplyMeta(meta.request_id, meta.duration_us, ending.replayed, dry_run)
                return index, _encoder.encode(self._success(index, operation.command, ending, meta))
        else:
            error = error_of(ending) if isinstance(ending, ReplyFrame) else ending
        return index, _encoder.encode(self._failure(index, operation.command, error, meta))

    def _success(self, index: int, name: str, ending: ReplyFrame, meta: ReplyMeta) -> BatchResult:
        status: Literal["ok", "accepted"] = "ok"
        if ending.accepted_id:
            status = "accepted"
            self.totals.accepted += 1
        else:
            self.totals.ok += 1
        self._hold(len(ending.result))
        self._route.metrics.operation(name, status)
        return BatchResult(
            index=index,
            id=ending.accepted_id or f"{meta.request_id}.{index}",
            command=name,
            status=status,
            result=msgspec.Raw(ending.result or b"null"),
            meta=meta,
        )

    def _hold(self, size: int) -> None:
        """Keep so many bytes of results, where they are kept."""
        self._held += size
        if self._held > HELD_BYTES and self._keeps and not self._stopped:
            self._stopped = _TOO_MUCH

    def _failure(self, index: int, name: str, error: FlxError, meta: ReplyMeta) -> BatchResult:
        known = name in COMMANDS
        self._route.metrics.refusal(error.code)
        self._route.metrics.operation(name if known else UNMATCHED, "error")
        self.totals.error += 1
        if error.code == "not_attempted":
            self.totals.not_attempted += 1
        elif self._fail_fast and not self._stopped:
            self._stopped = _FAILED
        return BatchResult(
            index=index,
            id=f"{meta.request_id}.{index}",
            command=name if known else "",
            status="error",
            error=item_problem(error, meta.request_id),
            meta=meta,
        )

    def _tell_costs(self, reply: ReplyFrame, command: str) -> FlxError | None:
        """Add to a plan what the operation would cost; what is wrong with it, if it is no plan."""
        costs, route = self._route.dispatcher.costs, self._exchange.admitted.route
        try:
            reply.result = costs.told(reply.result, route, command, of_many=True)
        except FlxError as error:
            return error
        return None


def _request(exchange: Exchange) -> BatchRequest:
    """The body, all of it acceptable.

    Raises:
        InvalidRequest: it is no strict JSON, or a key is given for the batch as a whole.
        ValidationFailed: it is no batch; with the field at fault.
    """
    no_query(exchange)
    if b"idempotency-key" in exchange.headers:
        detail = "A key is of one operation: `idempotency_key`, and not the header Idempotency-Key"
        raise InvalidRequest(detail)
    request = decoded(exchange, _decoder)
    for index, operation in enumerate(request.operations):
        args = bytes(operation.args)
        # The first look finds nearly all.
        if args[:1] != b"{" and not strict_json.is_object(args):
            raise ValidationFailed.field(f"operations[{index}].args", "is not an object")
    return request


def _wants_lines(accept: bytes) -> bool:
    """Whether the client asks for a stream of lines."""
    return any(kind.split(b";")[0].strip().lower() == NDJSON for kind in accept.split(b","))
