"""Leases from Redis: the task that keeps a node's `LeaseBook` in touch with the fleet, beside the requests.

Strategy: one task, one connection, one call under way. The book says when a call is worthwhile and packs it; here it
goes out, its answer goes back into the book, and whoever waited for it (strict policies only) is woken. No request ever
waits for Redis otherwise.

Rules:
- A call has one deadline and no retry: a lost call costs nothing, since the next one tells the same again. A deadline
  that this process itself slept through is no word about Redis: what arrived meanwhile is looked at first.
- A connection with an unread answer is dropped, never used again, whatever ended the call.
- After a few losses and a quarter of a second without an answer the book goes on without Redis (`away`); here it is
  tried again with growing, jittered pauses.
- The address is a secret: a reason names the kind of an error, never the error's text.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import structlog
from redis.exceptions import NoScriptError, RedisError, ResponseError

from flx_api.proto.redis import pool_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from redis.asyncio.connection import AbstractConnection

    from flx_api._core import LeaseBook

_SCRIPT: Final = resources.files("flx_api.limits").joinpath("lua", "sync.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_MOST_REPORTS: Final = 256
_LOSSES_UNTIL_AWAY: Final = 3
_SILENCE_UNTIL_AWAY_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 0.5
_CONNECT_S: Final = 0.25
_CLOSE_S: Final = 0.5
# A deadline that is noticed so late was missed by this loop, not by Redis; and how often one is looked at.
_LATE_S: Final = 0.01
_LOOKS: Final = 3
_LOSSES: Final = (RedisError, OSError, EOFError, ValueError)


class Leases:
    """The sync of one node.

    Args:
        book: The leases themselves; the admission core spends from the same book.
        url: Where Redis is (`redis://`, `rediss://`, `unix://`).
        deadline_s: How long one call may take.
        gap_s: The least time between two calls.
        wait_s: How long a strict request may wait for a lease.

    Attributes:
        calls: Round trips begun.
        losses: Calls without a usable answer, failed connections included.
        waits: Requests that waited.
        timeouts: Requests that waited in vain.
        times_away: How often the node began to go on without Redis.
        reason: Why leases cannot be had, when they cannot.
    """

    def __init__(
        self, book: LeaseBook, url: str, *, deadline_s: float = 0.05, gap_s: float = 0.025, wait_s: float = 0.05
    ) -> None:
        self.book = book
        self.calls = self.losses = self.waits = self.timeouts = self.times_away = 0
        self.reason = "Redis has not answered yet"
        self._deadline_s = deadline_s
        self._gap_s = gap_s
        self._wait_s = wait_s
        self._pool = pool_of(url, _CONNECT_S)
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._failures = 0
        self._last_call = 0.0
        self._last_answer = 0.0

    @property
    def ready(self) -> bool:
        """Whether leases can be had. A node without them still answers; see the modes."""
        return self.book.ready(time.monotonic_ns())

    def start(self) -> None:
        """Keep in touch in the background."""
        self._task = asyncio.create_task(self._run(), name="leases")

    async def close(self) -> None:
        """Return what is held, say goodbye, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            async with asyncio.timeout(_CLOSE_S):
                while not self.book.away and not self.book.close() and not self._failures:
                    await self._call()
        except TimeoutError:
            pass  # what is not returned comes back by itself when the leases end
        await self._drop()

    async def wait(self) -> bool:
        """Wait for the next sync; then ask the book again. False when the time was up before."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        self.waits += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter
        except TimeoutError:
            self.timeouts += 1
            return False
        return True

    async def _run(self) -> None:
        while True:
            await self._pause()
            try:
                await self._call()
            except Exception:  # noqa: BLE001 - said and logged; the task goes on
                # Whatever it is, without this task the node would never see Redis again.
                self.reason = "the sync of leases failed"
                structlog.get_logger("flx.limits").exception("leases.unexpected")
                self._lose()
                await self._drop()

    async def _pause(self) -> None:
        """Until a call is due. New demand is looked for every gap: requests need not wake anybody."""
        loop = asyncio.get_running_loop()
        pause = self._gap_s
        if self._failures:
            pause = min(_LONGEST_PAUSE_S, self._gap_s * 2.0**self._failures) * random.uniform(0.5, 1)  # noqa: S311 - spread, no secret
        left = self._last_call + pause - loop.time()
        if left > 0:
            await asyncio.sleep(left)
        while not self._waiters:
            due = self.book.due_in(time.monotonic_ns()) or 0
            if due <= 0:
                return
            self._wake.clear()
            timer = loop.call_later(min(due / 1e9, self._gap_s), self._wake.set)
            await self._wake.wait()
            timer.cancel()

    async def _call(self) -> None:
        """One call and its answer."""
        waiters: list[asyncio.Future[None]] = []
        self._last_call = asyncio.get_running_loop().time()
        try:
            connection = await self._connected()
            # The book counts a lease's life from here, so nothing may wait between this and the call.
            command = self.book.collect(time.monotonic_ns(), _MOST_REPORTS, _SHA)
            waiters, self._waiters = self._waiters, []
            if command is None:
                return
            self.calls += 1
            whole = False
            try:
                answer = await self._in_time(self._exchange(connection, command))
                whole = True
            finally:
                if not whole:
                    # Also when this task is cancelled: the book must not wait for an answer that nobody reads.
                    self.book.lost(time.monotonic_ns(), away=False)
                    await self._drop()
            was_away = self.book.away
            self.book.apply(answer, time.monotonic_ns())
            self._last_answer = self._last_call
        except _LOSSES as error:
            self.losses += 1
            self.reason = f"Redis does not answer ({type(error).__name__})"
            self._lose()
            await self._drop()
        else:
            if was_away:
                structlog.get_logger("flx.limits").info("leases.back")
            self._failures = 0
            self.reason = "" if self.ready else "the fleet's limits begin anew"
        finally:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _lose(self) -> None:
        self._failures += 1
        silence = asyncio.get_running_loop().time() - self._last_answer
        away = self._failures >= _LOSSES_UNTIL_AWAY and silence >= _SILENCE_UNTIL_AWAY_S
        if away and not self.book.away:
            self.times_away += 1
            structlog.get_logger("flx.limits").warning("leases.away", reason=self.reason)
        self.book.lost(time.monotonic_ns(), away=away)

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await connection.connect()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._connection = connection
        return self._connection

    async def _in_time(self, exchange: Coroutine[Any, Any, bytes]) -> bytes:
        """What an exchange brings within the deadline.

        Raises:
            TimeoutError: nothing.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(exchange)
        try:
            for _ in range(_LOOKS):
                due = loop.time() + self._deadline_s
                await asyncio.wait((task,), timeout=self._deadline_s)
                if task.done() or loop.time() - due < _LATE_S:
                    break
            if not task.done():
                raise TimeoutError
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _exchange(self, connection: AbstractConnection, command: bytes) -> bytes:
        try:
            return await self._ask(connection, command)
        except NoScriptError:
            # Redis began anew, or its scripts were flushed. Nothing was done, so the same call may go again.
            await connection.send_command("SCRIPT", "LOAD", _SCRIPT)
            await connection.read_response(disable_decoding=True)
            return await self._ask(connection, command)

    async def _ask(self, connection: AbstractConnection, command: bytes) -> bytes:
        await connection.send_packed_command(command, check_health=False)
        answer = await connection.read_response(disable_decoding=True)
        if not isinstance(answer, bytes):
            raise ResponseError("not the script's answer")
        return answer

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
