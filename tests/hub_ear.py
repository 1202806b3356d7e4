"""Somebody who hears everything of a hub, and keeps it in a list."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from flx_api._core import Hub

CLASSES = ["pipeline", "execution", "log", "schedule", "system", "app"]


class HubEar:
    """A listener of a follower, and the only connection of its hub."""

    def __init__(self) -> None:
        self.hub = Hub("local")
        conn = self.hub.connect("default", "ear", CLASSES, "plain")
        assert conn is not None
        self.conn = conn
        self.hub.subscribe(conn, ["*"], None, 0)
        self.heard: list[tuple[str, int]] = []
        self.gaps: list[str] = []
        self._news = asyncio.Event()

    def news(self) -> None:
        """Take what is new."""
        for _, turn in self.hub.take(1 << 60, 10):
            for text in turn:
                frame: dict[str, Any] = msgspec.json.decode(text)
                if frame["type"] == "event":
                    self.heard.append((frame["event"], frame["seq"]))
                elif frame.get("code") == "gap":
                    self.gaps.append(frame["reason"])
            self.hub.writable(self.conn, 1 << 60)
        self._news.set()

    async def until(self, count: int) -> None:
        """Wait until so much was heard, gaps included."""
        async with asyncio.timeout(10):
            while len(self.heard) + len(self.gaps) < count:
                self._news.clear()
                await self._news.wait()
