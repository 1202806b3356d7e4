"""What a bus brings goes to the hubs, and what it lost is told."""

from __future__ import annotations

from flx_api.events.bus import Delivery
from flx_api.events.ephemeral_log import EphemeralEvent


def test_events_are_told_in_their_order_and_so_are_losses() -> None:
    told: list[tuple[str, str, int, bytes]] = []
    losses: list[str] = []
    delivery = Delivery(lambda *event: told.append(event), losses.append)
    events = [EphemeralEvent("t", f"app.{number}", number, b"1") for number in range(3)]
    delivery.hear(events)
    delivery.lose("epoch")
    assert [tuple(event) for event in events] == told
    assert ["epoch"] == losses
