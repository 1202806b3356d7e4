"""A pool: the connections to one daemon of the configuration, wherever its name leads, kept for as long as it is there.

Strategy: one task asks for the addresses of the name, at least every `RESOLVE_EVERY_S` and whenever a connection has
ended; each address gets so many links. A `_Link` owns one connection at a time: connect, live, and after a loss again,
with growing, jittered pauses. A connection that parts goes on beside the next one until it is over.

Rules:
- An address that the name no longer leads to is parted from, not cut off: a daemon that stops leaves its name with its
  farewell, and still has replies to give. A name that cannot be resolved changes nothing.
- Why there is no connection is said in words that name no place: everybody may read them. The log names the place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from flx_api.observability.metrics import PoolState
from flx_api.upstream.connection import LOSSES, Connection, why_lost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flx_api.upstream.connection import Table
    from flx_api.upstream.endpoints import Endpoint

RESOLVE_EVERY_S: Final = 20.0
RESOLVE_TIMEOUT_S: Final = 5.0
# After a loss; many connections may end at once.
_RESOLVE_PAUSE_S: Final = 0.25
# Short at first: at a start both sides come up together, and the daemon of this host is a few milliseconds away.
BACKOFF_S: Final = (0.01, 2.0)
_BACKOFF_FACTOR: Final = 1.5

_log = structlog.get_logger("flx.upstream")


class Pool:
    """The connections to one daemon.

    Args:
        endpoint: the daemon.
        number: what it is called where everybody may read: its place in the configuration, from 1.
        width: connections to each of its addresses.
        table: told what happens on them.
        jitter: a number in [0, 1) at each call.
    """

    def __init__(
        self, endpoint: Endpoint, number: int, *, width: int, table: Table, jitter: Callable[[], float]
    ) -> None:
        self.endpoint = endpoint
        self.number = number
        self.width = width
        self.table = table
        self.jitter = jitter
        self.reason = "not connected yet"
        self.connected = 0
        self.failed = 0
        self.lost = 0
        self.recycled = 0
        self._links: dict[str, list[_Link]] = {}
        self._gone: set[_Link] = set()
        self._stale = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect in the background and stay connected."""
        self._task = asyncio.create_task(self._follow_name(), name="upstream-names")

    async def close(self) -> None:
        """Cut all connections."""
        tasks = [link.task for link in self._all]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Only now, since what a link was just leaving parts instead of ending with it.
        partings = [life for link in self._all for life in link.partings]
        for life in partings:
            life.cancel()
        await asyncio.gather(*partings, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        """Whether commands can go to this daemon."""
        return any(link.is_ready for links in self._links.values() for link in links)

    @property
    def why_away(self) -> str:
        """Why it is not connected; never empty, also while the reason is only about to be known."""
        return self.reason or "the connection to the daemon broke"

    @property
    def state(self) -> PoolState:
        """The pool in numbers."""
        links = self._all
        ready = sum(link.is_ready for link in links)
        parting = sum(len(link.partings) for link in links)
        return PoolState(
            daemon=str(self.number),
            ready=ready,
            parting=parting,
            away=sum(len(found) for found in self._links.values()) - ready,
            connected=self.connected,
            failed=self.failed,
            lost=self.lost,
            recycled=self.recycled,
        )

    @property
    def _all(self) -> list[_Link]:
        return [link for links in self._links.values() for link in links] + list(self._gone)

    def look_again(self) -> None:
        """A connection has ended: its address may have changed."""
        self._stale.set()

    def forget(self, link: _Link) -> None:
        """Nothing of it is left."""
        self._gone.discard(link)

    async def _follow_name(self) -> None:
        pause = BACKOFF_S[0]
        while True:
            self._stale.clear()
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                    addresses = await self.endpoint.addresses()
            except OSError as error:
                # TimeoutError is one.
                addresses = []
                if not self._links:
                    self.reason = f"the daemon {why_lost(error)}"
            if addresses:
                self._adopt(addresses)
            if self.endpoint.is_fixed:
                return
            if self._links:
                await self._until_stale()
            else:
                await asyncio.sleep(pause * (0.5 + self.jitter() / 2))
                pause = min(pause * _BACKOFF_FACTOR, BACKOFF_S[1])

    async def _until_stale(self) -> None:
        await asyncio.sleep(_RESOLVE_PAUSE_S)
        try:
            async with asyncio.timeout(RESOLVE_EVERY_S):
                await self._stale.wait()
        except TimeoutError:
            return

    def _adopt(self, addresses: list[str]) -> None:
        """Connect to these addresses, and part from others."""
        for address in addresses:
            if address not in self._links:
                self._links[address] = [_Link(self, address) for _ in range(self.width)]
        for address in self._links.keys() - set(addresses):
            for link in self._links.pop(address):
                self._gone.add(link)
                link.retire()


def connected_of(pools: Sequence[Pool]) -> str:
    """How many of several daemons are connected, and why others are not."""
    connected = sum(pool.is_connected for pool in pools)
    why = f" ({away(pools)})" if connected < len(pools) else ""
    return f"{connected} of {len(pools)} daemons are connected{why}"


def away(pools: Sequence[Pool]) -> str:
    """Each daemon that is not connected, by its place in the configuration, and why."""
    return "; ".join(f"{pool.number}: {pool.why_away}" for pool in pools if not pool.is_connected)


class _Link:
    """One connection after the other to one address."""

    def __init__(self, pool: Pool, address: str) -> None:
        self._pool = pool
        self._address = address
        self._connection: Connection | None = None
        self._is_retired = False
        # The lives of connections that part, beside the present one. They end by themselves, or with the pool.
        self.partings: set[asyncio.Task[None]] = set()
        self.task = asyncio.create_task(self._run(), name="upstream-link")
        self.task.add_done_callback(self._over)

    @property
    def is_ready(self) -> bool:
        """Whether its connection takes commands."""
        return self._connection is not None and self._connection.is_ready

    def retire(self) -> None:
        """Nothing more goes to this address; what is under way there comes to its end."""
        self._is_retired = True
        if self._connection is not None and self._connection.is_ready:
            self._connection.part()
        else:
            # The present try or pause; what parts is no part of that.
            self.task.cancel()

    async def _run(self) -> None:
        shortest, longest = BACKOFF_S
        pause = shortest
        while not self._is_retired:
            if await self._live():
                pause = shortest
            self._pool.look_again()
            await asyncio.sleep(pause * (0.5 + self._pool.jitter() / 2))
            pause = min(pause * _BACKOFF_FACTOR, longest)

    def _over(self, task: asyncio.Task[None]) -> None:
        """It tries no more, or a connection that parted has ended."""
        self.partings.discard(task)
        if self.task.done() and not self.partings:
            self._pool.forget(self)

    async def _live(self) -> bool:
        """One connection, until it parts or is lost; whether it was usable."""
        pool = self._pool
        try:
            channel = pool.endpoint.open(self._address)
        except OSError as error:
            pool.failed += 1
            pool.reason = f"the daemon {why_lost(error)}"
            return False
        connection = Connection(
            (pool.number, self._address),
            channel,
            pool.endpoint.metadata,
            pool.table,
            ready=self._ready,
            renewed=self._renewed,
        )
        self._connection = connection
        life = asyncio.create_task(self._watch(connection), name="upstream-connection")
        parting = asyncio.create_task(connection.parting.wait())
        try:
            await asyncio.wait((life, parting), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not connection.parting.is_set():
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)
            raise
        finally:
            parting.cancel()
            if not life.done():
                self.partings.add(life)
                life.add_done_callback(self._over)
        return connection.was_ready

    def _ready(self) -> None:
        self._pool.connected += 1
        self._pool.reason = ""
        _log.info("upstream.connected", daemon=self._pool.number, address=self._address)

    def _renewed(self) -> None:
        self._pool.recycled += 1

    async def _watch(self, connection: Connection) -> None:
        """Live through a connection, and say how it ended."""
        pool = self._pool
        try:
            await connection.run()
            reason = "the daemon is stopping"
        except LOSSES as error:
            reason = f"the daemon {why_lost(error)}"
        except Exception as error:  # noqa: BLE001 - said and logged; the link goes on
            # Whatever it is, without this task the gateway would stay without a daemon and call itself ready.
            reason = f"the connection to the daemon failed ({type(error).__name__})"
            _log.exception("upstream.unexpected")
        if connection.parting.is_set():
            _log.info("upstream.parted", daemon=pool.number, address=self._address)
        elif connection.was_ready:
            pool.lost += 1
            _log.warning("upstream.lost", daemon=pool.number, address=self._address, reason=reason)
        else:
            pool.failed += 1
        pool.reason = reason
