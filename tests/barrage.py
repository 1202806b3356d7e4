"""Many requests at once over real connections, and what they prove about a limit.

Strategy: an admission took place between the moment a request left and the moment its answer was there. So a true
window holds it for sure when it holds both; `most_in_a_window` counts those, and never too many.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple, Self

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

LOST = 0
"""The status of a request without an answer."""

_PAUSE_S = 0.01


class Answer(NamedTuple):
    """A request and its answer. `server`: which of the addresses; times in seconds of one clock."""

    server: int
    began: float
    ended: float
    status: int
    headers: httpx.Headers
    body: bytes


class Crowd:
    """Clients of several servers, each with connections of its own.

    Args:
        urls: base addresses.
        connections: to each of them.
    """

    def __init__(self, urls: Sequence[str], connections: int) -> None:
        self._urls = urls
        self._connections = connections
        self._clients: list[list[httpx.AsyncClient]] = []

    async def __aenter__(self) -> Self:
        one = httpx.Limits(max_connections=1)
        self._clients = [
            [httpx.AsyncClient(base_url=url, limits=one, timeout=httpx.Timeout(30)) for _ in range(self._connections)]
            for url in self._urls
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(client.aclose() for clients in self._clients for client in clients))

    async def ask(self, server: int, connection: int, path: str, key: str) -> Answer:
        """One request."""
        began = time.monotonic()
        try:
            response = await self._clients[server][connection].get(path, headers={"x-api-key": key})
        except httpx.TransportError:
            return Answer(server, began, time.monotonic(), LOST, httpx.Headers(), b"")
        return Answer(server, began, time.monotonic(), response.status_code, response.headers, response.content)

    async def burst(
        self,
        path: str,
        key: str,
        count: int,
        seen: Callable[[Answer], object] = lambda _: None,
    ) -> list[Answer]:
        """So many requests, as fast as all connections carry them; `seen` is told every answer as it comes."""
        left = iter(range(count))
        found: list[Answer] = []

        async def go_on(server: int, connection: int) -> None:
            for _ in left:
                answer = await self.ask(server, connection, path, key)
                found.append(answer)
                seen(answer)

        servers, connections = range(len(self._urls)), range(self._connections)
        await asyncio.gather(*(go_on(server, connection) for connection in connections for server in servers))
        return found

    async def steady(self, path: str, key: str, rate: float, over: asyncio.Event) -> list[Answer]:
        """So many requests a second to each server, whatever the answers, until it is over."""
        found: list[Answer] = []
        # A connection carries one request at a time; whoever finds none free waits for one.
        free = [asyncio.Queue[int]() for _ in self._urls]
        for queue in free:
            for connection in range(self._connections):
                queue.put_nowait(connection)

        async def one(server: int) -> None:
            connection = await free[server].get()
            found.append(await self.ask(server, connection, path, key))
            free[server].put_nowait(connection)

        began, done = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not over.is_set():
                owing = int((time.monotonic() - began) * rate) - done
                done += owing
                for _ in range(owing):
                    for server in range(len(self._urls)):
                        tasks.create_task(one(server))
                await asyncio.sleep(_PAUSE_S)
        return found


def admitted(answers: Iterable[Answer]) -> list[Answer]:
    """Those that got in."""
    return [answer for answer in answers if answer.status == httpx.codes.OK]


def most_in_a_window(answers: Iterable[Answer], window_s: float) -> int:
    """The most admissions that some true window held for certain."""
    log = sorted((answer.began, answer.ended) for answer in admitted(answers))
    most = 0
    for index, (start, _) in enumerate(log):
        inside = 0
        for began, ended in log[index:]:
            if began >= start + window_s:
                break
            inside += ended < start + window_s
        most = max(most, inside)
    return most
