"""Clients that call the daemon directly, without a gateway: `native_clients.py SOCKET BODY` answers lines on its input.

A line `MODE SECONDS CONCURRENCY` is answered with `CALLS SECONDS` once so long so many callers have called one after
the other. The modes:
- `grpclib` and `grpcio`: unary `Execute`, as any gRPC client calls it, each stock and on uvloop.
- `stream`: one plain grpclib `Channel` stream, a message for each command: what multiplexing alone gives.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import uvloop
from grpclib.client import Channel

from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch, CommandFrame, Principal, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Calls = Callable[[float, int], Awaitable[tuple[int, float]]]

ASK = Principal(subject="subject-00001", roles=["viewer"])


def frame(body: bytes, seq: int = 0) -> CommandFrame:
    """One command, as a client makes it."""
    deadline = int(time.time() * 1000) + 30_000
    return CommandFrame(seq=seq, command="system.echo", args=body, principal=ASK, deadline_unix_ms=deadline)


async def _many(one: Callable[[], Awaitable[None]], seconds: float, callers: int) -> tuple[int, float]:
    began = time.perf_counter()
    until, count = began + seconds, 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await one()
            count += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return count, time.perf_counter() - began


def grpclib_unary(socket: str, body: bytes) -> Calls:
    """Stock grpclib."""
    stub = DaemonStub(Channel(path=socket))

    async def one() -> None:
        reply = await stub.Execute(frame(body), timeout=30)
        assert reply.result

    return lambda seconds, callers: _many(one, seconds, callers)


def grpcio_unary(socket: str, body: bytes) -> Calls:
    """Stock grpcio."""
    options = [("grpc.default_authority", "localhost")]  # a path is no authority, says HTTP/2 in Rust
    call = grpc.aio.insecure_channel("unix:" + socket, options).unary_unary(
        "/flx.v1.Daemon/Execute",
        request_serializer=CommandFrame.SerializeToString,
        response_deserializer=ReplyFrame.FromString,
    )

    async def one() -> None:
        reply = await call(frame(body), timeout=30)
        assert reply.result

    return lambda seconds, callers: _many(one, seconds, callers)


def grpclib_stream(socket: str, body: bytes) -> Calls:
    """One stream of stock grpclib, opened for each round."""
    stub = DaemonStub(Channel(path=socket))

    async def calls(seconds: float, callers: int) -> tuple[int, float]:
        waiting: dict[int, asyncio.Future[ReplyFrame]] = {}
        loop, seq = asyncio.get_running_loop(), 0
        async with stub.Channel.open() as stream:
            await stream.send_request()

            async def read() -> None:
                async for batch in stream:
                    for reply in batch.frames:
                        waiting.pop(reply.seq).set_result(reply)

            async def one() -> None:
                nonlocal seq
                seq += 1
                asked = waiting[seq] = loop.create_future()
                await stream.send_message(CommandBatch(frames=[frame(body, seq)]))
                assert (await asked).result

            reader = asyncio.create_task(read())
            done = await _many(one, seconds, callers)
            await stream.end()
            await reader
            return done

    return calls


MODES: dict[str, Callable[[str, bytes], Calls]] = {
    "grpclib": grpclib_unary,
    "grpcio": grpcio_unary,
    "stream": grpclib_stream,
}


async def main(socket: str, body: bytes) -> None:
    """Answer until the input ends."""
    made: dict[str, Calls] = {}
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        mode, seconds, callers = line.split()
        if mode not in made:
            made[mode] = MODES[mode](socket, body)
        count, took_s = await made[mode](float(seconds), int(callers))
        print(count, took_s, flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
