"""A response out of the messages of ASGI, for servers that are no ASGI servers: whole in one call, or in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Message


class Answering(ABC):
    """The `send` of one request. Headers are what the face has them as."""

    __slots__ = ("_is_begun", "_start")

    def __init__(self) -> None:
        self._start: tuple[int, list[Any]] | None = None
        self._is_begun = False

    async def send(self, message: Message) -> None:
        """A part of the response. A whole one leaves as one call, with its last part."""
        if message["type"] == "http.response.start":
            self._start = message["status"], message["headers"]
            return
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if not self._is_begun:
            if self._start is None:
                msg = "There is no response that could have a body"
                raise RuntimeError(msg)
            status, headers = self._start
            self._start = None
            if not more:
                self.whole(status, headers, body)
                return
            self.begin(status, headers)
            self._is_begun = True
        if body:
            await self.part(body)
        if not more:
            self._is_begun = False
            self.end()

    @abstractmethod
    def whole(self, status: int, headers: list[Any], body: bytes) -> None:
        """All of it at once."""

    @abstractmethod
    def begin(self, status: int, headers: list[Any]) -> None:
        """One whose body comes in parts."""

    @abstractmethod
    async def part(self, body: bytes) -> None:
        """A part, as soon as there is room for it."""

    @abstractmethod
    def end(self) -> None:
        """That was the last part."""
