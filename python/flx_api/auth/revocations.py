"""What is revoked, as this process knows it: the snapshot first, then every change as it happens.

Strategy: the follower of the Watch stream hands over what is meant for gateways. Whenever it begins anew (at a start,
after a gap, with another epoch) all revocations are fetched once (`Daemon.Revocations`); what happens meanwhile is put
in force at once and again after the snapshot, which may be older. So nothing is missed and nothing waits for a poll.

Rules:
- Nothing is known before the first snapshot: until then no token may be believed, whatever the settings say.
- What is known stays in force while the daemon is away. How long it was away is measured from the last sign of life on
  the connection while the stream was there; beyond `max_staleness` it is said in readiness and, by setting, refused.
- A daemon that does not know the call keeps no revocations; so there are none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from flx_api.errors import Unavailable
from flx_api.models.auth import STILL_S
from flx_api.models.event import REVOCATION_EVENTS, RevocationEvent
from flx_api.proto.flx.v1.daemon_pb2 import RevocationsRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
    from flx_api.proto.flx.v1.daemon_pb2 import Event, Revocation

_LOSSES: Final = (GRPCError, StreamTerminatedError, ProtocolError, OSError, Unavailable, TimeoutError)
_SNAPSHOT_S: Final = 30.0
_PAUSE_S: Final = 0.1
_TICK_S: Final = 0.25
_FORGET_EVERY_S: Final = 60.0
_MAX_SINCE: Final = 10_000

Entry = tuple[str, str, str, int | None, int | None]
"""Kind, value, tenant, issued_before, expires_at: the arguments of `flx_api._core.Revocations.apply`."""

_event = msgspec.json.Decoder(RevocationEvent)
_log = structlog.get_logger("flx.revocations")


class Source(Protocol):
    """What is needed of the upstream: the real one, or a test's."""

    @property
    def heard_s(self) -> float:
        """When the daemon last said anything, by the loop's clock."""
        ...

    @property
    def metadata(self) -> dict[str, str]:
        """What every call carries."""
        ...

    async def stub(self) -> DaemonStub:
        """The stub of the present connection."""
        ...


class Target(Protocol):
    """Where revocations are put in force: a `flx_api._core.Revocations`, or a test's record."""

    def apply(
        self,
        kind: str,
        value: str,
        tenant: str,
        issued_before_s: int | None = None,
        expires_at_s: int | None = None,
    ) -> None:
        """Put one in force."""
        ...

    def remove(self, kind: str, value: str, tenant: str) -> bool:
        """Take one back."""
        ...

    def replace_all(self, entries: Sequence[Entry]) -> None:
        """Put exactly these in force."""
        ...

    def refuse(self, refuses: bool) -> None:  # noqa: FBT001 - as the native core has it
        """Say whether no token may be believed now."""
        ...

    def forget_expired(self, now_s: int) -> int:
        """Forget those that can hit nothing any more."""
        ...


class RevocationFollower:
    """Keeps the revocations of one process.

    Args:
        source: the daemon.
        target: where they are put in force.
        max_staleness_s: how long the daemon may be silent.
        refuse: whether tokens are refused beyond that.
        wall: seconds since the epoch.
    """

    def __init__(
        self, source: Source, target: Target, *, max_staleness_s: float, refuse: bool, wall: Callable[[], float]
    ) -> None:
        self._source = source
        self._target = target
        self._max_staleness_s = max_staleness_s
        self._refuse = refuse
        self._wall = wall
        self._wanted = asyncio.Event()
        self._generation = 0
        self._since: list[Event] = []
        self._following = False
        self._fresh_s = 0.0
        self._forget_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self.known = False
        self.stale = False
        self.stale_refuses = True
        target.refuse(True)  # noqa: FBT003 - as the native core has it
        # Told of every change: what is revoked, and whether tokens may be believed.
        self.changed: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin; the follower of the stream may be started before or after."""
        self._fresh_s = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._run(), name="revocations"),
            asyncio.create_task(self._tick(), name="revocations-ticker"),
        ]

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def reason(self) -> str:
        """Why tokens cannot be judged well; empty when they can."""
        if not self.known:
            return "the revocations are not known yet"
        if self.stale:
            return f"the daemon has been silent for more than {self._max_staleness_s:g} s: revocations may be missing"
        return ""

    def require(self) -> None:
        """Hold that tokens may be believed now.

        Raises:
            Unavailable: what is revoked is not known well enough.
        """
        if self.stale_refuses:
            raise Unavailable(self.reason, retry_after_s=1)

    # --- what the follower of the stream tells ------------------------------------------------------------------------

    def batch(self, events: Iterable[Event], *, anew: bool) -> None:
        """Events between daemon and gateways; `anew`: what was before them is not known."""
        self._following = True
        if anew:
            self._want()
        for event in events:
            if event.topic == REVOCATION_EVENTS:
                if self._wanted.is_set():
                    self._remember(event)
                self._take(event)
                self.changed()

    def lost(self) -> None:
        """The stream ended; it will go on where it was, or anew."""
        self._following = False

    def _want(self) -> None:
        self._generation += 1
        self._since = []
        self._wanted.set()

    def _remember(self, event: Event) -> None:
        if len(self._since) == _MAX_SINCE:
            # Rather another snapshot than a list without end: one that is asked for now holds all of these.
            self._want()
        self._since.append(event)

    def _take(self, event: Event) -> None:
        try:
            told = _event.decode(event.data)
        except msgspec.DecodeError:
            # It means something that we cannot read: the snapshot has it too.
            _log.warning("revocations.unreadable", seq=event.seq)
            if not self._wanted.is_set():
                self._want()
            return
        if told.type == "restored":
            self._target.remove(told.kind, told.value, event.tenant)
        else:
            self._target.apply(told.kind, told.value, event.tenant, told.issued_before, told.expires_at)

    # --- the snapshot -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            generation = self._generation
            try:
                async with asyncio.timeout(_SNAPSHOT_S):
                    seq, entries = await self._snapshot()
            except _LOSSES as error:
                _log.info("revocations.no_snapshot", reason=type(error).__name__)
            except Exception:  # noqa: BLE001 - said and logged; without this task nothing would ever be known
                _log.exception("revocations.unexpected")
            else:
                if generation == self._generation:
                    self._install(seq, entries)
                continue
            await asyncio.sleep(_PAUSE_S)

    def _install(self, seq: int, entries: list[Entry]) -> None:
        """Put the snapshot in force, and what happened after it; nothing is awaited in between."""
        self._wanted.clear()
        since, self._since = self._since, []
        self._target.replace_all(entries)
        for event in since:
            if event.seq > seq:
                self._take(event)
        self.known = True
        self.changed()
        self.look(asyncio.get_running_loop().time())
        _log.info("revocations.known", count=len(entries), seq=seq)

    async def _snapshot(self) -> tuple[int, list[Entry]]:
        """All revocations, and the journal's number from which on changes must be added."""
        stub = await self._source.stub()
        seq, entries = None, []
        try:
            async with stub.Revocations.open(metadata=self._source.metadata) as stream:
                await stream.send_message(RevocationsRequest(), end=True)
                async for batch in stream:
                    seq = batch.journal_seq if seq is None else seq
                    entries += [_entry(found) for found in batch.revocations]
        except GRPCError as error:
            if error.status is not Status.UNIMPLEMENTED:
                raise
            _log.warning("revocations.unknown_to_daemon")
        return seq or 0, entries

    # --- freshness ----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            self.look(asyncio.get_running_loop().time())
            await asyncio.sleep(_TICK_S)

    def look(self, now_s: float) -> None:
        """Judge how fresh the knowledge is at a moment of the loop's clock, and forget what is over."""
        if self.known and self._following and not self._wanted.is_set():
            self._fresh_s = max(self._fresh_s, self._source.heard_s)
        self.stale = now_s - self._fresh_s > self._max_staleness_s
        refuses = not self.known or (self._refuse and self.stale)
        if refuses and not self.stale_refuses:
            self.changed()
        self.stale_refuses = refuses
        self._target.refuse(refuses)
        if now_s >= self._forget_s:
            self._forget_s = now_s + _FORGET_EVERY_S
            self._target.forget_expired(int(self._wall()) - STILL_S)


def _entry(found: Revocation) -> Entry:
    return (
        found.kind,
        found.value,
        found.tenant,
        found.issued_before if found.HasField("issued_before") else None,
        found.expires_at if found.HasField("expires_at") else None,
    )
