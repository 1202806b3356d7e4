"""The bus over Redis: partitioned streams of packed entries, one entry for each partition and tick of a gateway.

Strategy: what is published while a call is under way gathers; the next call (`lua/publish.lua`) puts it into the
streams of its partitions, each entry with the numbers of its events, and is answered with all heads. Another connection
waits for entries (XREAD BLOCK). A reader knows epoch and number of each partition: what does not follow is a
loss, and is told. Every second, and after each new connection, it compares with the heads, so that a stream that was
emptied or begun anew is noticed even when nothing more comes.

Rules:
- An epoch is one run of one Redis. A restart ends it, with its data or without: what was answered may not be on disk,
  so nobody can know that nothing is missing, and everybody is told a loss.
- Redis away: publishing is refused at once (503), and nothing is told, since nothing can be missed that was not
  published. What another gateway published meanwhile is read afterwards, or told as lost when it is trimmed by then.
- A call whose answer is lost may have published: it is refused all the same, and not sent again.
- A topic is always in the same partition; order is that of the partition, the same at every gateway.
- Memory is bounded: `MAX_WAITING` events wait here; streams have `MAX_ENTRIES` entries, for `KEPT_MS`.
- The address is a secret: a reason names the kind of an error, never the error's text.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import secrets
import time
import zlib
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import structlog
from redis.exceptions import NoScriptError, RedisError, ResponseError

from flx_api.errors import Unavailable
from flx_api.events.ephemeral_log import EphemeralEvent
from flx_api.proto.redis import pool_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from flx_api.events.bus import Receiver

PARTITIONS: Final = 16
MAX_ENTRIES: Final = 4096
KEPT_MS: Final = 30_000
MAX_WAITING: Final = 10_000
_SCRIPT: Final = resources.files("flx_api.events").joinpath("lua", "publish.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_KEYS: Final = (b"flx:bus:heads", *(b"flx:bus:%d" % number for number in range(PARTITIONS)))
_NUMBERS: Final = tuple(b"%d" % number for number in range(PARTITIONS))
# An entry is closed when it is so large, a call when it has so many bytes.
_ENTRY_BYTES: Final = 64 * 1024
_CALL_BYTES: Final = 1024 * 1024
_BLOCK_MS: Final = b"1000"
_READ_COUNT: Final = b"64"
_CHECK_S: Final = 1.0
_CONNECT_S: Final = 1.0
_CALL_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_LOSSES: Final = (RedisError, OSError, EOFError, ValueError, KeyError, msgspec.DecodeError)
_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]+)")

_encode = msgspec.msgpack.Encoder().encode
_events = msgspec.msgpack.Decoder(list[EphemeralEvent])
_log = structlog.get_logger("flx.events")


class _Waiting(NamedTuple):
    """An event that is to be published, and who waits for that."""

    partition: int
    event: EphemeralEvent
    done: asyncio.Future[None]


class _Place:
    """How far a partition was read."""

    __slots__ = ("epoch", "id", "seq")

    def __init__(self) -> None:
        self.epoch, self.seq, self.id = b"", 0, b"0-0"


class RedisBus:
    """The bus of one gateway.

    Args:
        url: where Redis is (`redis://`, `rediss://`, `unix://`).
        receiver: takes what comes.
        now_us: microseconds since 1970.

    Attributes:
        entries: how many entries it read.
    """

    def __init__(self, url: str, receiver: Receiver, now_us: Callable[[], int]) -> None:
        self._reasons = dict.fromkeys(("reader", "writer"), "Redis has not answered yet")
        self.entries = 0
        self._receiver = receiver
        self._now_us = now_us
        self._pool = pool_of(url, _CONNECT_S)
        self._places = [_Place() for _ in range(PARTITIONS)]
        self._has_begun = False
        # How often a connection was lost.
        self._losses = 0
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def reason(self) -> str:
        """Why it does not hear or tell anything, when it does not."""
        return self._reasons["reader"] or self._reasons["writer"]

    def start(self) -> None:
        """Hear and tell, in the background."""
        self._tasks = [
            asyncio.create_task(self._lasting("reader", self._read), name="bus-reader"),
            asyncio.create_task(self._lasting("writer", self._write), name="bus-writer"),
        ]

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse(self._waiting)

    async def publish(self, tenant: str, topic: str, data: bytes) -> None:
        """Tell an event; on return Redis has it.

        Raises:
            Unavailable: it may not have.
        """
        if self._reasons["writer"] or len(self._waiting) >= MAX_WAITING:
            raise Unavailable(code="bus_unavailable", retry_after_s=1)
        event = EphemeralEvent(tenant, topic, self._now_us(), data)
        partition = zlib.crc32(f"{tenant}\0{topic}".encode()) % PARTITIONS
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(partition, event, done))
        self._wake.set()
        await done

    # --- connections -------------------------------------------------------------------------------------------------

    async def _lasting(self, name: str, work: Callable[[AbstractConnection, bytes], Any]) -> None:
        """Do a work on one connection after the other."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began_s = time.monotonic()
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await connection.connect()
                    run = await self._run_of(connection)
                await work(connection, run)
            except _LOSSES as error:
                self._away(name, f"Redis does not answer ({type(error).__name__})")
            except Exception:  # noqa: BLE001 - said and logged; the task goes on
                # Whatever it is, without this task the gateway would be deaf or dumb for ever.
                self._away(name, "the bus failed")
                _log.exception("bus.unexpected")
            finally:
                await connection.disconnect(nowait=True)
            if time.monotonic() - began_s > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spread, no secret
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def _away(self, name: str, reason: str) -> None:
        if not self.reason:
            _log.warning("bus.away", reason=reason)
        self._reasons[name] = reason
        self._losses += 1
        if name == "reader":
            # Who only writes would notice with its next call, which would then be refused for nothing.
            self._wake.set()
        else:
            waiting, self._waiting = self._waiting, []
            self._refuse(waiting)

    @staticmethod
    def _refuse(waiting: list[_Waiting]) -> None:
        for _, _, done in waiting:
            if not done.done():
                done.set_exception(Unavailable(code="bus_unavailable", retry_after_s=1))

    @staticmethod
    async def _run_of(connection: AbstractConnection) -> bytes:
        """The run of the Redis at the other end: it cannot change while the connection lasts."""
        found = _RUN_ID.search(await _ask(connection, b"INFO", b"server"))
        if found is None:
            msg = "no run id"
            raise ResponseError(msg)
        return found[1]

    async def _heads(self, connection: AbstractConnection, run: bytes, *entries: bytes | int) -> dict[bytes, bytes]:
        """Publish entries, and learn the heads.

        Raises:
            RedisError, OSError, TimeoutError: it may have happened.
        """
        most, kept = str(MAX_ENTRIES).encode(), str(KEPT_MS).encode()
        command = (len(_KEYS), *_KEYS, run, secrets.token_hex(8).encode(), most, kept, *entries)
        async with asyncio.timeout(_CALL_S):
            try:
                found = await _ask(connection, b"EVALSHA", _SHA, *command)
            except NoScriptError:
                # Nothing was done, so the same call may go again.
                await _ask(connection, b"SCRIPT", b"LOAD", _SCRIPT)
                found = await _ask(connection, b"EVALSHA", _SHA, *command)
        return dict(zip(found[::2], found[1::2], strict=True))

    # --- telling -----------------------------------------------------------------------------------------------------

    async def _write(self, connection: AbstractConnection, run: bytes) -> None:
        await self._heads(connection, run)
        self._reasons["writer"], losses = "", self._losses
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                if losses != self._losses:
                    return
            # What else is published in this tick goes along.
            await asyncio.sleep(0)
            taken = self._take()
            try:
                await self._heads(connection, run, *_packed(taken))
            except BaseException:
                self._refuse(taken)
                raise
            for _, _, done in taken:
                if not done.done():
                    done.set_result(None)

    def _take(self) -> list[_Waiting]:
        size = 0
        for index, waiting in enumerate(self._waiting):
            size += len(waiting.event.data)
            if size > _CALL_BYTES and index:
                taken, self._waiting = self._waiting[:index], self._waiting[index:]
                return taken
        taken, self._waiting = self._waiting, []
        return taken

    # --- hearing -----------------------------------------------------------------------------------------------------

    async def _read(self, connection: AbstractConnection, run: bytes) -> None:
        self._compare(await self._heads(connection, run))
        self._reasons["reader"] = ""
        checked_s = time.monotonic()
        while True:
            ids = [place.id for place in self._places]
            command = (b"XREAD", b"COUNT", _READ_COUNT, b"BLOCK", _BLOCK_MS, b"STREAMS", *_KEYS[1:], *ids)
            async with asyncio.timeout(_CALL_S):
                found = await _ask(connection, *command)
            for stream, entries in (found or {}).items():
                place = self._places[_KEYS.index(stream) - 1]
                for id_, told in entries:
                    fields = dict(zip(told[::2], told[1::2], strict=True))
                    self._follow(place, id_, fields[b"e"], int(fields[b"n"]), int(fields[b"c"]))
                    self._hear(fields[b"d"])
                    self.entries += 1
            if time.monotonic() - checked_s > _CHECK_S:
                self._compare(await self._heads(connection, run))
                checked_s = time.monotonic()

    def _hear(self, packed: bytes) -> None:
        try:
            events = _events.decode(packed)
        except msgspec.DecodeError:
            # Of a gateway of another version. It is passed, so what was in it is lost here.
            _log.warning("bus.unreadable_entry")
            self._receiver.lose("bus_unreadable")
        else:
            self._receiver.hear(events)

    def _follow(self, place: _Place, id_: bytes, epoch: bytes, first: int, count: int) -> None:
        """Move on to an entry; what is missing before it is told."""
        if epoch != place.epoch:
            self._begin(epoch)
        elif first != place.seq + 1:
            self._receiver.lose("bus_trimmed")
        place.seq, place.id = first + count - 1, id_

    def _begin(self, epoch: bytes) -> None:
        """Another epoch: all that was not read of the one before is lost, and nothing of this one yet."""
        for place in self._places:
            place.epoch, place.seq, place.id = epoch, 0, b"0-0"
        self._receiver.lose("bus_restarted")

    def _compare(self, heads: dict[bytes, bytes]) -> None:
        """Hold the places against the heads: where they cannot be reached by reading on, go there and tell the loss."""
        epoch = heads[b"epoch"]
        if self._has_begun and epoch != self._places[0].epoch:
            self._begin(epoch)
            return
        for number, place in zip(_NUMBERS, self._places, strict=True):
            seq, id_ = int(heads.get(b"n" + number, b"0")), heads.get(b"id" + number, b"0-0")
            if not self._has_begun:
                place.epoch, place.seq, place.id = epoch, seq, id_
            elif seq < place.seq or (seq > place.seq and _number(id_) <= _number(place.id)):
                # Somebody emptied a stream by hand, or Redis' clock was put back.
                place.seq, place.id = seq, id_
                self._receiver.lose("bus_trimmed")
        self._has_begun = True


def _packed(waiting: list[_Waiting]) -> list[bytes | int]:
    """What the script takes of events that wait: partition, count and events of each entry."""
    by_partition: dict[int, list[EphemeralEvent]] = {}
    for partition, event, _ in waiting:
        by_partition.setdefault(partition, []).append(event)
    packed: list[bytes | int] = []
    for partition, events in by_partition.items():
        first, size = 0, 0
        for index, event in enumerate(events):
            size += len(event.data)
            if size > _ENTRY_BYTES or index == len(events) - 1:
                packed += [partition, index + 1 - first, _encode(events[first : index + 1])]
                first, size = index + 1, 0
    return packed


def _number(id_: bytes) -> tuple[int, int]:
    """An entry's id, so that it can be compared."""
    ms, _, number = id_.partition(b"-")
    return int(ms), int(number)


async def _ask(connection: AbstractConnection, *command: bytes | int) -> Any:  # noqa: ANN401 - what Redis answers
    await connection.send_command(*command, check_health=False)
    return await connection.read_response(disable_decoding=True)
