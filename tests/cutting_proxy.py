"""A proxy that cuts connections in the middle: after so many bytes towards the client, without a farewell."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

_CHUNK = 4096


class CuttingProxy:
    """One proxy.

    Args:
        target: the port behind it; may change, and counts for the connections after.
        budgets: how many bytes each connection may bring the client, in their order; later ones are not cut.
    """

    def __init__(self, target: int, budgets: Iterable[int]) -> None:
        self.target = target
        self.port = 0
        self.cuts = 0
        self._budgets = iter(budgets)
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The proxy's base URL."""
        return f"http://127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        """Cut every connection there is."""
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        budget = next(self._budgets, None)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        inwards = asyncio.create_task(_copy(reader, back, None))
        outwards = asyncio.create_task(_copy(there, writer, budget))
        try:
            with contextlib.suppress(OSError):
                await asyncio.wait([inwards, outwards], return_when=asyncio.FIRST_COMPLETED)
                if outwards.done():
                    self.cuts += outwards.result()
        finally:
            self._open -= {writer, back}
            for one in (writer, back):
                one.transport.abort()
            for task in (inwards, outwards):
                task.cancel()
            await asyncio.gather(inwards, outwards, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, budget: int | None) -> bool:
    """Carry bytes over until they end, or the budget does: then True."""
    while data := await source.read(_CHUNK):
        sink.write(data if budget is None else data[:budget])
        await sink.drain()
        if budget is not None:
            budget -= len(data)
            if budget <= 0:
                return True
    return False


@contextlib.asynccontextmanager
async def cutting(target: int, budgets: Iterable[int] = ()) -> AsyncIterator[CuttingProxy]:
    """A proxy before a port."""
    proxy = CuttingProxy(target, budgets)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut_all()
        await server.wait_closed()
