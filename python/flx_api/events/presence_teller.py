"""Presence of one gateway: what its hub notes goes to the others, what they tell to its hub, and a list to who asks.

Strategy: a task turns a few times a second. `flx_api.events.presence` decides; here are the clock, the bus and the hub.
Changes are told as events of `presence.` and the topic, which nobody can publish to.

Rules:
- Only topics are concerned whose rule says so (`presence`): without such a rule there is no task.
- What cannot be published is left out: its number is missing then, and the others ask for everything.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from flx_api.commands.permissions import permits
from flx_api.errors import FlxError, Forbidden, ValidationFailed
from flx_api.events.presence import Presence, Tidings
from flx_api.models.event import PRESENCE_EVENTS
from flx_api.models.message import PresenceChange
from flx_api.models.presence import PresenceList
from flx_api.models.tenant import tenant_of
from flx_api.models.topic_rules import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flx_api._core import Hub, Principal
    from flx_api.events.bus import Bus
    from flx_api.models.presence import PresenceListArgs
    from flx_api.models.topic_rules import TopicRule

TURN_S: Final = 0.25
PREFIX: Final = "presence."
_BYE_S: Final = 0.5
_HEAR: Final = "event.get"

_tidings = msgspec.json.Decoder(Tidings)
_log = structlog.get_logger("flx.events")


class PresenceTeller:
    """Presence at one gateway.

    Args:
        rules: of topics.
        hub: notes who is here.
        bus: carries what gateways tell one another.
        tell: takes tenant, topic, microseconds since 1970, and JSON for those who are here.
        me: the name of this gateway, another one for each process.
    """

    def __init__(
        self,
        rules: Sequence[TopicRule],
        hub: Hub,
        bus: Bus,
        tell: Callable[[str, str, int, bytes], None],
        me: str,
    ) -> None:
        self._rules = rules
        self._hub = hub
        self._bus = bus
        self._tell = tell
        self._presence = Presence(me)
        self._task: asyncio.Task[None] | None = None
        hub.note_presence_of([rule.topics for rule in rules if rule.presence])

    def start(self) -> None:
        """Begin, where a rule asks for it."""
        if any(rule.presence for rule in self._rules):
            self._task = asyncio.create_task(self._run(), name="presence")

    async def close(self) -> None:
        """Say goodbye and stop."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(_BYE_S):
                await self._publish(self._presence.bye())
        except TimeoutError:
            pass  # the others find out by themselves

    def take(self, data: bytes) -> None:
        """A gateway told something."""
        self._presence.take(_tidings.decode(data), time.monotonic())

    def lose(self) -> None:
        """What gateways told may be missing."""
        self._presence.lose()

    def listed(self, principal: Principal | None, args: PresenceListArgs) -> PresenceList:
        """The result of `presence.list`.

        Raises:
            ValidationFailed: the presence of this topic is not told.
            Forbidden: the principal may not hear the topic.
        """
        roles = principal.roles if principal is not None else ()
        rule = rule_of(self._rules, args.topic)
        if rule is None or not rule.presence:
            raise ValidationFailed.field("args.topic", "is not one whose presence is told")
        if not permits(roles, _HEAR) or rule.is_closed_to(roles):
            detail = "The token does not permit to hear this topic"
            raise Forbidden(detail)
        members = sorted(self._presence.members(tenant_of(principal), args.topic))
        return PresenceList(args.topic, tuple(members[: args.limit]), len(members), self._presence.is_whole)

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:  # noqa: BLE001 - said and logged; the task goes on
                _log.exception("presence.unexpected")
            await asyncio.sleep(TURN_S)

    async def _turn(self) -> None:
        presence = self._presence
        for tidings in list(presence.note(self._hub.presence_changes(), time.monotonic())):
            await self._publish(tidings)
        now_s, now_us = time.monotonic(), time.time_ns() // 1000
        presence.expire(now_s)
        for change in presence.news(now_s):
            data = msgspec.json.encode(PresenceChange(change.joined, change.left, change.present))
            self._tell(change.tenant, PREFIX + change.topic, now_us, data)

    async def _publish(self, tidings: Tidings) -> None:
        try:
            await self._bus.publish("", PRESENCE_EVENTS, msgspec.json.encode(tidings))
        except FlxError:
            # Whoever hears the next one misses it.
            return
