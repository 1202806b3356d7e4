"""What a worker is made of: who is built, in which order, how each is asked whether it is well, and closed.

Two lifetimes: `Parts` live as long as the application, an `Exchange` or a `Connection` as long as its request.

Rules:
- Parts are built from top to bottom, each from those above it, and closed from bottom to top.
- The health check of a part is registered on the line below its construction.
- Nothing here starts before `start`; nothing is a module-level object.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from functools import cached_property
from typing import TYPE_CHECKING

from flx_api._core import Admission, Hub, LeaseBook, PlainCommands, Revocations
from flx_api.auth.keys import ticket_key, verifier
from flx_api.auth.revocations import RevocationFollower
from flx_api.auth.tickets import Tickets
from flx_api.commands import COMMANDS
from flx_api.errors import StartupError
from flx_api.events.bus import Delivery
from flx_api.events.daemon_bus import DaemonBus
from flx_api.events.follower import Follower
from flx_api.events.histories import Histories
from flx_api.events.presence_teller import PresenceTeller
from flx_api.events.survey import Survey
from flx_api.gateway.batch import BatchRoute
from flx_api.gateway.cors import Cors
from flx_api.gateway.costs import Costs
from flx_api.gateway.dispatch import Dispatcher
from flx_api.gateway.edge import Edge
from flx_api.gateway.ephemeral_topics import EphemeralTopics
from flx_api.gateway.lane import LaneFace
from flx_api.gateway.local_topics import LocalTopics
from flx_api.gateway.logs import LogRoute
from flx_api.gateway.patience import Patience
from flx_api.gateway.plain import plain_commands
from flx_api.gateway.responses import PolicyRefusals, common_headers, not_allowed
from flx_api.gateway.ride import Rides
from flx_api.gateway.routes_fast import CommandRoutes
from flx_api.gateway.server_thread import ServerThread
from flx_api.limits.policies import windows
from flx_api.models.connection import GatewayProcess
from flx_api.models.envelope import MADE_KEY
from flx_api.models.event import PRESENCE_EVENTS, SURVEY_EVENTS
from flx_api.models.topic_rules import remembered
from flx_api.observability.health import Health
from flx_api.observability.metrics import Metrics, RealtimeState
from flx_api.routes.application import framework, native_routes, paths
from flx_api.routes.pages import Pages
from flx_api.routes.resources import ResourceController
from flx_api.upstream.channel import Upstream
from flx_api.websocket.connection_manager import ConnectionManager
from flx_api.websocket.endpoint import Endpoint
from flx_api.websocket.fleet import DISCONNECT, LIST, SLOWEST, FleetConnections, answerers
from flx_api.websocket.native import NativeFace
from flx_api.websocket.protocol import MAX_SUBSCRIPTIONS
from flx_api.websocket.sse import EventRoute
from flx_api.websocket.standing import Standing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flx_api._core import Principal, SharedMemory
    from flx_api.auth.jwks import KeyFollower
    from flx_api.config import Settings
    from flx_api.events.redis_bus import RedisBus
    from flx_api.gateway.dispatch import Publisher
    from flx_api.limits.policies import Windows
    from flx_api.limits.redis import Leases
    from flx_api.models.presence import PresenceList, PresenceListArgs
    from flx_api.routes.application import NativeRoutes
    from flx_api.upstream.endpoints import Daemons


class Parts:
    """Everything with application lifetime.

    Raises:
        StartupError: a setting does not let a part be built.
    """

    def __init__(self, settings: Settings, daemons: Daemons, shared: SharedMemory | None = None) -> None:
        self.settings = settings
        self.shared = shared
        self.draining = asyncio.Event()
        self.health = Health()
        self.health.register("drain", lambda: "the service is stopping" if self.draining.is_set() else "")
        self.cors = Cors(settings.cors_origins)
        known, drawn = passed(settings)
        self.metrics = Metrics(known.templates, [name for name, *_ in drawn.policies], shared)
        self.policies = PolicyRefusals(drawn.policies)
        self.revoked = Revocations()
        self.leases = _leases(settings, drawn)
        self.admission = _admission(settings, self, known, drawn)
        if self.leases is not None:
            leases = self.leases
            self.health.register("limits", lambda: "" if leases.ready or not drawn.strict else leases.reason)
        self.patience = Patience(self.admission, self.leases)
        self.keys = _key_follower(settings, self.admission)
        if self.keys is not None:
            self.health.register("keys", lambda: self.keys.jwks.reason if self.keys is not None else "")
        self.tickets = Tickets(ticket_key(settings), self.revoked)

        sheds = settings.load_shedding == "on"
        self.upstream = Upstream(daemons, self.metrics, width=settings.grpc_connections, sheds=sheds)
        self.health.register("daemon", lambda: self.upstream.reason, note=lambda: self.upstream.note)
        self.revocations = RevocationFollower(
            self.upstream,
            self.revoked,
            max_staleness_s=settings.max_staleness_s,
            refuse=settings.when_stale == "refuse",
            wall=time.time,
        )
        self.health.register("revocations", lambda: self.revocations.reason)
        me = GatewayProcess(os.urandom(4).hex(), socket.gethostname(), os.getpid())
        self.hub = Hub(
            f"local-{os.urandom(8).hex()}",
            max_subscriptions=MAX_SUBSCRIPTIONS,
            rules=[remembered(rule) for rule in settings.topics],
        )
        self.standing = Standing(self.hub, self.revoked, self.revocations, self.admission, me.id)
        self.manager = ConnectionManager(
            self.hub,
            self.standing.roster,
            self.metrics,
            time.monotonic,
            time.time,
            rules=settings.topics,
            heartbeat_s=settings.heartbeat_s,
        )
        self.delivery = Delivery(self.manager.publish_all, self.manager.lose)
        self.follower = Follower(
            self.upstream,
            self.hub,
            self.manager,
            self.metrics,
            (self.revocations, self.standing),
            receiver=self.delivery,
        )
        self.health.register("events", lambda: self.follower.reason)
        self.histories = Histories(self.follower.history, time.monotonic)
        self.manager.history = self.histories.of

        self.bus = _redis_bus(settings, self)
        fleet = self._fleet(me)
        costs = Costs(drawn, known.classes, known.named)
        self.dispatcher = Dispatcher(
            self.upstream,
            settings.deadline_ms,
            costs,
            self.metrics,
            publishers=tuple(self._publishers()),
            own={LIST: fleet.listed, SLOWEST: fleet.slowest, "presence.list": self._present},
            completes={DISCONNECT: fleet.disconnected},
        )
        self.commands = CommandRoutes(
            self.dispatcher, self._plain(), self.patience, policies=self.policies, cors=self.cors
        )
        self.batches = BatchRoute(
            self.upstream,
            self.dispatcher,
            plain=self.commands.plain,
            patience=self.patience,
            policies=self.policies,
            cors=self.cors,
            metrics=self.metrics,
        )
        self.logs = LogRoute(self.upstream, self.dispatcher, self.cors, self.draining, self.standing)
        self.pages = Pages(settings, self.health, self.metrics, self.tickets)
        self.framework = framework(ResourceController(self.dispatcher))
        self.streams = EventRoute(
            manager=self.manager,
            tickets=self.tickets,
            revocations=self.revocations,
            standing=self.standing,
            cors=self.cors,
        )
        self.paths = paths(self.commands, self.batches, self.logs, self.streams, self.pages)

        self.edge = Edge(
            settings,
            admission=self.admission,
            patience=self.patience,
            never_waits=self.leases is None or not drawn.strict,
            revocations=self.revocations,
            paths=self.paths,
            cors=self.cors,
            metrics=self.metrics,
            framework=self.framework,
        )
        self.endpoint = Endpoint(
            settings,
            edge=self.edge,
            patience=self.patience,
            policies=self.policies,
            revocations=self.revocations,
            standing=self.standing,
            tickets=self.tickets,
            manager=self.manager,
            cors=self.cors,
            metrics=self.metrics,
        )
        self.native = NativeFace(
            settings,
            hub=self.hub,
            edge=self.edge,
            endpoint=self.endpoint,
            manager=self.manager,
            standing=self.standing,
            history=self.histories.of,
            known=self.histories.known,
        )
        self.standing.ends = {False: self.manager.end, True: self.native.end}
        self.metrics.realtime = self._realtime

    def _realtime(self) -> RealtimeState:
        """What is counted about realtime, in both faces."""
        hub, native = self.hub, self.native
        return RealtimeState(hub.stats(), hub.gaps(), native.closed(), hub.ages(), native.deflated(), native.rings())

    def _fleet(self, me: GatewayProcess) -> FleetConnections:
        """What gateways tell one another, and what all of them together know."""
        between = self.bus or DaemonBus(self.upstream)
        topics = self.settings.topics
        self.presence = PresenceTeller(topics, self.hub, between, self.manager.publish, os.urandom(8).hex())
        self.survey = Survey(between, me, answerers(self.standing, me.id))
        self.delivery.private = {PRESENCE_EVENTS: self.presence, SURVEY_EVENTS: self.survey}
        fleet = FleetConnections(self.survey)
        if self.bus is not None:
            self.standing.on_disconnect = fleet.pass_on
        return fleet

    async def _present(self, principal: Principal | None, wanted: PresenceListArgs) -> PresenceList:
        return self.presence.listed(principal, wanted)

    @cached_property
    def rides(self) -> Rides:
        """Plain commands without a task for each phase."""
        return Rides(self.commands, self.batches, self.dispatcher, self.upstream, self.cors)

    @cached_property
    def server_thread(self) -> ServerThread:
        """What Granian's thread does before there is a task."""
        return ServerThread(self.edge, self.rides)

    @cached_property
    def lane(self) -> LaneFace:
        """The server of our own."""
        return LaneFace(
            self.settings,
            admission=self.admission,
            edge=self.edge,
            endpoint=self.endpoint,
            rides=self.rides,
            cors=self.cors,
        )

    def _plain(self) -> PlainCommands:
        """The commands that may go the short way."""
        return PlainCommands(
            self.admission,
            plain_commands(self.dispatcher.special),
            deadline_ms=self.settings.deadline_ms,
            made_key=MADE_KEY,
        )

    def _publishers(self) -> Iterator[Publisher]:
        """What answers `event.publish` in the daemon's place."""
        if self.settings.environment == "development":
            yield LocalTopics(self.hub, self.manager.news, time.monotonic, _now_us)
        if self.bus is not None:
            yield EphemeralTopics(self.bus, self.settings.topics)

    async def start(self) -> None:
        """Start what runs in the background; the daemon need not be there yet."""
        await self.framework.start()  # type: ignore[no-untyped-call]
        self.upstream.start()
        self.rides.open(self.edge)
        if self.keys is not None:
            self.keys.start()
        if self.leases is not None:
            self.leases.start()
        self.revocations.start()
        self.follower.start()
        if self.bus is not None:
            self.bus.start()
        self.presence.start()
        self.survey.start()
        self.manager.startup()
        await self.native.start()

    async def drain(self, within_s: float | None = None) -> None:
        """Get ready to stop: say so in readiness, end streams, tell every WebSocket to come back elsewhere.

        Args:
            within_s: the time over which that is spread; by default the setting's.
        """
        self.draining.set()
        within_s = self.settings.drain_s if within_s is None else within_s
        await asyncio.gather(self.native.drain(within_s), self.manager.drain(within_s))

    async def close(self) -> None:
        """Stop, in reverse order of construction."""
        await self.drain(0)
        if "lane" in self.__dict__:
            await self.lane.close()
        await self.native.close()
        await self.manager.shutdown()
        await self.histories.close()
        await self.survey.close()
        await self.presence.close()
        if self.bus is not None:
            await self.bus.close()
        await self.follower.close()
        await self.revocations.close()
        self.standing.close()
        if self.leases is not None:
            await self.leases.close()
        if self.keys is not None:
            await self.keys.close()
        await self.upstream.close()
        await self.framework.stop()  # type: ignore[no-untyped-call]


def passed(settings: Settings) -> tuple[NativeRoutes, Windows]:
    """The routes, and which limits their requests pass.

    Raises:
        StartupError: a policy names what does not exist.
    """
    known = native_routes(settings)
    return known, windows(settings.rate_limits, known.classes, known.named, COMMANDS)


def _key_follower(settings: Settings, admission: Admission) -> KeyFollower | None:
    """The keys of another issuer, where they are fetched from an address."""
    if settings.jwks_address is None:
        return None
    from flx_api.auth.jwks import KeyFollower  # noqa: PLC0415 - an HTTP client costs a tenth of a start without it

    return KeyFollower(
        settings.jwks_address,
        lambda keys: admission.replace_keys(verifier(settings, keys)),
        lambda: admission.unknown_keys,
    )


def _redis_bus(settings: Settings, parts: Parts) -> RedisBus | None:
    """The bus that all gateways share, where there is a Redis."""
    if settings.redis_url is None:
        return None
    from flx_api.events.redis_bus import RedisBus  # noqa: PLC0415 - Redis' client costs a tenth of a start without it

    bus = RedisBus(settings.redis_url, parts.delivery, _now_us)
    # Who follows goes on without it, and is told what is lost: a note, and no reason to be sent no requests.
    parts.health.register("bus", lambda: "", note=lambda: bus.reason)
    return bus


def _now_us() -> int:
    return time.time_ns() // 1000


def _leases(settings: Settings, drawn: Windows) -> Leases | None:
    """The limits that all gateways share, where there is a Redis."""
    if settings.redis_url is None:
        return None
    book = LeaseBook(
        [
            (name, limit, window_ms, mode)
            for (name, _, limit, window_ms, _, _), mode in zip(drawn.policies, drawn.modes, strict=True)
        ]
    )
    from flx_api.limits.redis import Leases  # noqa: PLC0415 - Redis' client costs a tenth of a start without it

    try:
        return Leases(book, settings.redis_url)
    except ValueError:
        msg = "FLX_REDIS_URL: is no redis:, rediss: or unix: address"
        raise StartupError(msg) from None


def _admission(settings: Settings, parts: Parts, known: NativeRoutes, drawn: Windows) -> Admission:
    try:
        return Admission(
            verifier(settings),
            parts.revoked,
            parts.metrics.counters,
            routes=known.native,
            commands=drawn.commands,
            policies=drawn.policies,
            classes=drawn.classes,
            own=known.own,
            refusals=parts.policies.prepared_by_reason(),
            limited=parts.policies.prepared(),
            not_allowed=[not_allowed(allow) for allow in known.allowed],
            headers=common_headers(),
            hosts=[host.lower().encode() for host in settings.trusted_hosts],
            proxies=list(settings.trusted_proxies),
            proxy_header=settings.proxy_header,
            body_limit=settings.body_limit,
            shared=parts.shared,
            leases=None if parts.leases is None else parts.leases.book,
        )
    except ValueError as error:
        # Networks and hosts are judged with the settings.
        msg = f"FLX_RATE_LIMITS: {error}"
        raise StartupError(msg) from None
