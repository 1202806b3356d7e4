"""Follow topics from a command: `flx_api.client` as a plain loop, for `flx run --follow`, `flx watch` and the demo.

Strategy: the client's stream is asynchronous and these commands are not, so a loop of its own is run for as long as the
next event takes. Between two events nothing runs, and the service sees a reader that does not read; it waits for that
longer than a command does anything in between.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Final

from flx_api.cli.client import OVER, Client, CommandFailed
from flx_api.client import Backoff, EventStream, RealtimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flx_api.client import Event, Gap, Transport

# Some fifteen seconds in all: a service that is started again is back by then.
_ATTEMPTS: Final = 12
_FIRST_PAUSE_S: Final = 0.4
_LONGEST_PAUSE_S: Final = 3.0


def events(
    client: Client,
    topics: Sequence[str],
    *,
    idle_s: float | None = None,
    start: str | None = None,
    on_gap: Callable[[Gap], None] = lambda _: None,
    transport: Transport = "auto",
) -> Iterator[Event | None]:
    """Events of the topics as they come. With `idle_s`, None after each silence of that length.

    Args:
        client: whose service and token to use.
        topics: exact names, `*`, or a trailing `.*`.
        idle_s: how long a silence may be.
        start: a position to begin from.
        on_gap: told of events that cannot be had any more.
        transport: over what.

    Raises:
        CommandFailed: the service refuses, or is gone for good.
    """
    stream = EventStream(
        client.url,
        topics,
        token=client.token,
        start=start,
        on_gap=on_gap,
        client_id=f"cli-{uuid.uuid4().hex[:12]}",
        attempts=_ATTEMPTS,
        backoff=Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S),
        transport=transport,
    )
    steps = _Steps(stream)
    with asyncio.Runner() as runner:
        try:
            while True:
                yield runner.run(steps.next(idle_s))
        except RealtimeError as error:
            raise CommandFailed(str(error)) from None
        finally:
            runner.run(steps.close())


class _Steps:
    """A stream, one event at a time; what is waited for goes on being waited for after a silence."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._waiting: asyncio.Task[Event] | None = None

    async def next(self, idle_s: float | None) -> Event | None:
        """The next event, or None when there is none for so long."""
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._stream.receive())
        done, _ = await asyncio.wait({self._waiting}, timeout=idle_s)
        if not done:
            return None
        found, self._waiting = self._waiting, None
        return await found

    async def close(self) -> None:
        """Stop waiting and close the connection."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        await self._stream.close()


def execution_events(client: Client, *executions: str) -> Iterator[Event]:
    """Status, metric and log events of executions, as they come, until all of them are over."""
    topics = [f"execution.{execution}.{kind}" for execution in executions for kind in ("status", "metric", "log")]
    going = set(executions)
    for event in events(client, topics, idle_s=1.0):
        if event is not None:
            yield event
            _, execution, kind = event.event.split(".")
            if kind == "status" and event.data.get("status") in OVER:
                going.discard(execution)
        else:
            # It may have been over before we were heard: silence is a reason to ask.
            going = {execution for execution in going if not _is_over(client, execution)}
        if not going:
            return


def _is_over(client: Client, execution: str) -> bool:
    """Whether an execution is over. Where nobody can say, it is not: how long that may last is the stream's affair."""
    try:
        return client.execution(execution)["status"] in OVER
    except CommandFailed as failed:
        if not failed.is_passing:
            raise
        return False
