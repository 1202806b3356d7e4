"""A daemon of the smallest kind, for tests of the gateway: it answers what it is told to and keeps a journal and logs.

It speaks the real contract over a real Unix socket, so that the gateway under test is the one that is shipped.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from grpclib.server import Server

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import decide
from flx_api.errors import FlxError
from flx_api.events.ephemeral_log import EphemeralLog
from flx_api.models.plan import Plan
from flx_api.proto.flx.v1.daemon_grpc import DaemonBase
from flx_api.proto.flx.v1.daemon_pb2 import (
    BatchFrame,
    CommandBatch,
    CommandFrame,
    Event,
    EventBatch,
    LogBatch,
    LogRequest,
    ReplyBatch,
    ReplyFrame,
    Revocation,
    RevocationBatch,
    RevocationsRequest,
    TellReply,
    TellRequest,
    WatchRequest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from grpclib.server import Stream


class SmallDaemon(DaemonBase):
    """Answers by `answers[command]`, else with the arguments themselves."""

    def __init__(self, epoch: str = "e1") -> None:
        self.epoch = epoch
        self.frames: list[CommandFrame] = []
        self.batch_sizes: list[int] = []
        self.given_up: list[int] = []
        self.metadata: list[dict[str, Any]] = []
        self.journal: list[Event] = []
        self.logs: dict[str, list[bytes]] = {}
        self.over: set[str] = set()
        self.log_topics: list[tuple[str, int]] = []
        self.answers: dict[str, Callable[[CommandFrame], ReplyFrame | FlxError | None]] = {}
        self.oldest_kept = 0
        self.ephemeral = EphemeralLog(epoch, lambda: 1)
        self.watches: list[WatchRequest] = []
        self.revocations: list[Revocation] = []
        self.snapshots = 0
        self._changed = asyncio.Condition()

    # --- what happens ----------------------------------------------------------------------------------------------

    async def publish(self, topic: str, data: object, tenant: str = "default") -> int:
        """Add a journal event; its sequence number."""
        async with self._changed:
            seq = self.journal[-1].seq + 1 if self.journal else 1
            before = (event for event in reversed(self.journal) if (event.tenant, event.topic) == (tenant, topic))
            prev = next((event.seq for event in before), 0)
            event = Event(seq=seq, prev=prev, ts_us=seq, topic=topic, tenant=tenant, data=msgspec.json.encode(data))
            self.journal.append(event)
            self._changed.notify_all()
            return seq

    async def tell(self, topic: str, data: bytes, tenant: str = "default") -> None:
        """Tell an ephemeral event."""
        async with self._changed:
            self.ephemeral.append(tenant, topic, data)
            self._changed.notify_all()

    async def log(self, execution: str, *lines: bytes) -> None:
        """Add lines to a log."""
        async with self._changed:
            self.logs.setdefault(execution, []).extend(lines)
            self._changed.notify_all()

    async def finish(self, execution: str) -> None:
        """End an execution."""
        async with self._changed:
            self.over.add(execution)
            self._changed.notify_all()

    def commands(self) -> list[CommandFrame]:
        """All frames but the probes."""
        return [frame for frame in self.frames if frame.principal.subject != "gateway"]

    # --- the contract ----------------------------------------------------------------------------------------------

    async def Execute(self, stream: Stream[CommandFrame, ReplyFrame]) -> None:  # noqa: N802 - the contract's name
        frame = await stream.recv_message()
        assert frame is not None
        await stream.send_message(self._answer(frame) or ReplyFrame(seq=frame.seq))

    async def ExecuteBatch(self, stream: Stream[BatchFrame, ReplyFrame]) -> None:  # noqa: N802 - the contract's name
        raise NotImplementedError  # a gateway does not call it

    async def Channel(self, stream: Stream[CommandBatch, ReplyBatch]) -> None:  # noqa: N802 - the contract's name
        self.metadata.append(dict(stream.metadata or {}))
        async for batch in stream:
            self.batch_sizes.append(len(batch.frames))
            self.given_up += [frame.seq for frame in batch.frames if frame.cancel]
            asked = (frame for frame in batch.frames if not frame.cancel)
            replies = [reply for frame in asked if (reply := self._answer(frame)) is not None]
            if replies:
                await stream.send_message(ReplyBatch(frames=replies))

    def _answer(self, frame: CommandFrame) -> ReplyFrame | None:
        self.frames.append(frame)
        answer = self.answers.get(frame.command)
        reply = ReplyFrame(result=frame.args or b"{}") if answer is None else answer(frame)
        if isinstance(reply, FlxError):
            reply = ReplyFrame(code=reply.code, problem=msgspec.json.encode(reply.body))
        if reply is not None:
            reply.seq = frame.seq
        return reply

    async def Watch(self, stream: Stream[WatchRequest, EventBatch]) -> None:  # noqa: N802 - the contract's name
        request = await stream.recv_message()
        assert request is not None
        self.watches.append(request)
        last = self.journal[-1].seq if self.journal else 0
        after = request.after_seq if request.HasField("after_seq") else last
        lines = {position.execution_id: position.after_line for position in request.logs}
        present = {execution: len(log) for execution, log in self.logs.items()}
        gap = ""
        if request.epoch and request.epoch != self.epoch:
            gap, after = "epoch", last
        elif after < self.oldest_kept:
            gap, after = "evicted", self.oldest_kept
        first, told = True, self.ephemeral.seq
        if request.ephemeral_epoch == self.ephemeral.epoch:
            told = request.ephemeral_after
        lost = request.ephemeral_epoch not in {"", self.ephemeral.epoch}
        while True:
            async with self._changed:
                events = [event for event in self.journal if event.seq > after and _wanted(request, event.topic)]
                seq = self.journal[-1].seq if self.journal else 0
                for execution, log in self.logs.items():
                    topic = f"execution.{execution}.log"
                    start = lines.get(execution, present.get(execution, 0))
                    if _wanted(request, topic):
                        events += [_line(topic, number, text) for number, text in enumerate(log[start:], start + 1)]
                        lines[execution] = len(log)
                if not events and not first and seq == after and told == self.ephemeral.seq:
                    await self._changed.wait()
                    continue
                batch = EventBatch(epoch=self.epoch, events=events, journal_seq=seq, gap_reason=gap)
                if request.ephemeral:
                    found = self.ephemeral.after(told, 1000, 1 << 20)
                    batch.ephemeral.extend(Event(**event._asdict()) for event in found)
                    batch.ephemeral_epoch, batch.ephemeral_seq = self.ephemeral.epoch, self.ephemeral.seq
                    batch.ephemeral_gap_reason = "epoch" if lost else ""
                told = self.ephemeral.seq
            await stream.send_message(batch)
            after, first, gap, lost = seq, False, "", False

    async def Tell(self, stream: Stream[TellRequest, TellReply]) -> None:  # noqa: N802 - the contract's name
        request = await stream.recv_message()
        assert request is not None
        for event in request.events:
            await self.tell(event.topic, event.data, event.tenant)
        await stream.send_message(TellReply())

    async def Logs(self, stream: Stream[LogRequest, LogBatch]) -> None:  # noqa: N802 - the contract's name
        request = await stream.recv_message()
        assert request is not None
        start = max(request.from_line, 1) - 1
        while True:
            async with self._changed:
                lines = self.logs.get(request.execution_id, [])[start:]
                if not lines and request.follow and request.execution_id not in self.over:
                    await self._changed.wait()
                    continue
            if lines:
                await stream.send_message(LogBatch(first_line=start + 1, lines=lines))
                start += len(lines)
            elif not request.follow or request.execution_id in self.over:
                return

    async def Revocations(  # noqa: N802 - the contract's name
        self, stream: Stream[RevocationsRequest, RevocationBatch]
    ) -> None:
        await stream.recv_message()
        self.snapshots += 1
        seq = self.journal[-1].seq if self.journal else 0
        await stream.send_message(RevocationBatch(epoch=self.epoch, journal_seq=seq, revocations=self.revocations))


def planned(frame: CommandFrame) -> ReplyFrame:
    """The plan of a daemon that has nothing but permissions against a command."""
    assert frame.dry_run
    permission = decide(COMMANDS[frame.command], frame.principal.roles)
    outcome: Literal["ok", "refused"] = "ok" if permission.allowed else "refused"
    plan = Plan(command=frame.command, outcome=outcome, permission=permission)
    return ReplyFrame(result=msgspec.json.encode(plan))


def _line(topic: str, number: int, text: bytes) -> Event:
    data = msgspec.json.encode(text.decode())
    return Event(seq=number, prev=number - 1, topic=topic, tenant="default", data=data)


def _wanted(request: WatchRequest, topic: str) -> bool:
    return any(
        pattern in {"*", topic} or (pattern.endswith(".*") and topic.startswith(pattern[:-1]))
        for pattern in request.topics
    )


class SmallServer(Server):
    """Knows its connections: grpclib leaves it to their clients to end them."""

    def __init__(self, daemon: SmallDaemon) -> None:
        super().__init__([daemon])
        self._protocols: list[Any] = []

    def _protocol_factory(self) -> Any:
        protocol = super()._protocol_factory()
        self._protocols.append(protocol)
        return protocol

    def abandon(self) -> None:
        """Close what a client that has just died has not closed yet."""
        for protocol in self._protocols:
            transport = getattr(getattr(protocol, "connection", None), "_transport", None)
            if transport is not None:
                transport.close()


@contextlib.asynccontextmanager
async def serving(daemon: SmallDaemon, socket: Path) -> AsyncIterator[Server]:
    """The daemon at a socket."""
    socket.unlink(missing_ok=True)  # noqa: ASYNC240 - a test's own folder
    server = SmallServer(daemon)
    await server.start(path=str(socket))
    try:
        yield server
    finally:
        await stop(server)
        server.abandon()
        await asyncio.sleep(0)


async def stop(server: Server) -> None:
    """End a server at once, with all its streams."""
    server.close()
    for handler in list(server._handlers):
        handler.close()
    await server.wait_closed()
