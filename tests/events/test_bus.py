"""What a bus brings goes to the hubs, and what it lost is told."""

from __future__ import annotations

import msgspec

from flx_api.events.bus import Delivery
from flx_api.events.ephemeral_log import EphemeralEvent


def test_events_are_told_in_their_order_and_so_are_losses() -> None:
    told: list[EphemeralEvent] = []
    losses: list[str] = []
    delivery = Delivery(told.extend, losses.append)
    events = [EphemeralEvent("t", f"app.{number}", number, b"1") for number in range(3)]
    delivery.hear(events)
    delivery.lose("epoch")
    assert events == told
    assert ["epoch"] == losses


class Private:
    """Takes what gateways tell one another, as far as it is a number."""

    def __init__(self) -> None:
        self.took: list[int] = []
        self.losses = 0

    def take(self, data: bytes) -> None:
        self.took.append(msgspec.json.decode(data, type=int))

    def lose(self) -> None:
        self.losses += 1


def test_what_is_between_gateways_goes_to_nobody_else_and_what_cannot_be_read_stops_nothing() -> None:
    told: list[EphemeralEvent] = []
    delivery, private = Delivery(told.extend, lambda _: None), Private()
    delivery.private["survey_events"] = private
    topics = [("survey_events", b"1"), ("survey_events", b"{"), ("of_a_later_version", b"2"), ("presence_events", b"3")]
    delivery.hear([EphemeralEvent("", topic, 1, data) for topic, data in (*topics, ("app.x", b"4"), ("user.a", b"5"))])
    delivery.hear([EphemeralEvent("", "survey_events", 1, b"6")])
    delivery.lose("epoch")
    assert ([1, 6], 1) == (private.took, private.losses)
    assert ["app.x", "user.a"] == [event.topic for event in told]
