"""Topics of this gateway alone: `bench.*`, for trying and measuring live events without a daemon's journal.

Strategy: `event.publish` on such a topic is answered here. With a count its events are due at even distances; a loop
publishes what has become due, and stamps each with the moment it was due, so that a gateway that falls behind shows
as age and not as fewer events. They are made here, as an application in Python would, or where the hub is (`native`).

Rules:
- In development only: a gateway in production is built without.
- A caller that goes away ends its series.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.errors import ValidationFailed
from flx_api.gateway.options import validation_failed
from flx_api.models.event import PublishArgs, Published
from flx_api.models.tenant import tenant_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from flx_api._core import Hub, Principal
    from flx_api.events.follower import Told

_PREFIX: Final = "bench."
# How often is looked whether events are due.
_TURN_S: Final = 0.002
# So many are published before others have their turn.
_BURST: Final = 256

_args = msgspec.json.Decoder(PublishArgs)


class _Topic(msgspec.Struct):
    topic: str


_topic = msgspec.json.Decoder(_Topic)


class LocalTopics:
    """The publisher of one gateway.

    Args:
        hub: takes the events.
        news: called when it has.
        clock: monotonic seconds, those of the hub.
        now_us: microseconds since 1970.
    """

    def __init__(
        self, hub: Hub, news: Callable[[], None], clock: Callable[[], float], now_us: Callable[[], int]
    ) -> None:
        self._hub = hub
        self._news = news
        self._clock = clock
        self._now_us = now_us

    @staticmethod
    def has(args: bytes) -> bool:
        """Whether these arguments of `event.publish` name a topic of this gateway alone."""
        try:
            return _topic.decode(args).topic.startswith(_PREFIX)
        except msgspec.DecodeError:
            return False

    async def publish(self, principal: Principal | None, args: bytes) -> bytes:
        """Publish an event, or a series; the result.

        Raises:
            ValidationFailed: the arguments are not acceptable.
        """
        try:
            wanted = _args.decode(args)
        except msgspec.ValidationError as error:
            raise validation_failed(error) from None
        tenant = tenant_of(principal)
        data = msgspec.json.encode(wanted.data)
        began_us = self._now_us()
        if wanted.count is not None:
            await self._series(tenant, wanted, data, began_us)
        elif wanted.per_s is not None or wanted.topics is not None or wanted.native:
            raise ValidationFailed.field("count", "is needed with per_s, topics or native")
        else:
            self._tell([(tenant, wanted.topic, 0, 0, began_us, data)])
        return msgspec.json.encode(Published(wanted.count or 1, self._now_us() - began_us))

    async def _series(self, tenant: str, wanted: PublishArgs, data: bytes, began_us: int) -> None:
        # Without a rate an event is due when its turn begins.
        step_us = 0.0 if wanted.per_s is None else 1e6 / wanted.per_s
        publish = self._natively if wanted.native else self._by_python
        count, done = wanted.count or 1, 0
        while done < count:
            most = min(count, done + _BURST)
            if wanted.per_s is not None:
                # A wall clock may be set back.
                most = max(done, min(most, due(self._now_us() - began_us, wanted.per_s)))
            if most > done:
                # Together: what an event costs is mostly the way to the hub and the waking of those who serve it.
                publish(tenant, wanted, data, (done, most), (began_us if step_us else self._now_us(), step_us))
            caught_up = wanted.per_s is not None and most < done + _BURST
            done = most
            # Otherwise only others' turn.
            await asyncio.sleep(_TURN_S if caught_up and done < count else 0)

    def _by_python(
        self, tenant: str, wanted: PublishArgs, data: bytes, places: tuple[int, int], times: tuple[int, float]
    ) -> None:
        names = [_name(wanted, place) for place in range(*places)]
        topics = list(dict.fromkeys(names))
        numbers = dict(zip(topics, self._hub.numbers_of(tenant, topics), strict=True))
        events, (from_us, step_us) = [], times
        for place, topic in zip(range(*places), names, strict=True):
            number = numbers[topic]
            numbers[topic] = number + 1
            at_us = from_us + int(place * step_us)
            events.append((tenant, topic, 0, 0, at_us, b'{"at":%d,"n":%d,"data":%b}' % (at_us, number, data)))
        self._tell(events)

    def _natively(
        self, tenant: str, wanted: PublishArgs, data: bytes, places: tuple[int, int], times: tuple[int, float]
    ) -> None:
        from_us, step_us = times
        self._hub.publish_series(
            tenant,
            wanted.topic,
            wanted.topics,
            data,
            places,
            from_us=from_us,
            step_us=step_us,
            now_ms=int(self._clock() * 1000),
        )
        self._news()

    def _tell(self, events: list[Told]) -> None:
        self._hub.append(events, int(self._clock() * 1000))
        self._news()


def due(elapsed_us: int, per_s: float) -> int:
    """How many events of a series are due after so long: the first at once."""
    return int(elapsed_us * per_s / 1e6) + 1


def _name(wanted: PublishArgs, place: int) -> str:
    """The topic of an event of a series."""
    return wanted.topic if wanted.topics is None else f"{wanted.topic}.{place % wanted.topics}"
