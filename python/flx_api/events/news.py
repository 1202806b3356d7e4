"""Whoever waits for something new, of one source or of several at once.

Strategy: a waiter brings one event, gives it to all sources that concern it, and waits for that; no task stands in
between for each of them. What is told wakes everybody who waits, once: who goes on waiting comes again.

Rules:
- Who has an event here looks again before it waits: what was told before is not told again.
"""

from __future__ import annotations

import asyncio


class News:
    """One source."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def tell(self) -> None:
        """There is something new."""
        if self._waiting:
            waiting, self._waiting = self._waiting, set()
            for event in waiting:
                event.set()

    def wake(self, event: asyncio.Event) -> None:
        """Set this when there is something new."""
        self._waiting.add(event)

    def spare(self, event: asyncio.Event) -> None:
        """Leave this alone."""
        self._waiting.discard(event)

    async def wait(self) -> None:
        """Wait until there is something new."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            await event.wait()
        finally:
            self._waiting.discard(event)
