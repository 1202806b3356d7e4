"""Follow topics over the WebSocket: one generator of events for `flx run --follow`, `flx watch` and the demo.

Strategy: the plain protocol of the main port (interface.md), one JSON object a message. A connection that ends is made
again from the last position, so what is yielded has no holes that the service did not tell of.

A position is one for all topics, but the service lets topics catch up one after the other: what the first hears of the
latest would skip what the second has still to hear. It takes messages in their order, and each subscription to its
end, so the answer to a `ping` behind the last one says that all are level. A connection lost before that is made again
from where the lost one began: some events may then come twice, none is left out.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from flx_api.cli.client import OVER, Client, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_OPEN_TIMEOUT_S = 10
_RETRIES = 5
# Close codes that say "come again": restarting, too slow, going away (the daemon's or a proxy's word for it).
_COME_AGAIN = frozenset({1001, 1006, 1012, 4408})


def events(
    client: Client, topics: Sequence[str], *, idle_s: float | None = None, start: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Events of the topics as they come. With `idle_s`, an empty dictionary after each silence of that length.

    Args:
        client: whose service and token to use.
        topics: exact names, `*`, or a trailing `.*`.
        idle_s: how long a silence may be.
        start: positions to begin from, by topic.

    Raises:
        CommandFailed: the service refuses, or is gone for good.
    """
    positions = _Positions(topics, start or {})
    failures = 0
    while True:
        try:
            with _open(client) as socket:
                for request in positions.requests():
                    socket.send(json.dumps(request))
                failures = 0
                for message in _messages(socket, idle_s):
                    positions.heard(message)
                    if not message or message["type"] == "event":
                        yield message
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
            if code not in _COME_AGAIN:
                msg = f"the service closed the connection ({code})"
                raise CommandFailed(msg) from None
        except (OSError, InvalidHandshake) as error:
            if failures >= _RETRIES or isinstance(error, InvalidHandshake):
                msg = f"the WebSocket at {client.ws_url} cannot be opened: {error}"
                raise CommandFailed(msg) from None
        failures += 1
        time.sleep(min(0.2 * 2**failures, 3))


class _Positions:
    """From where each topic is asked for when a connection is made."""

    def __init__(self, topics: Sequence[str], start: dict[str, str]) -> None:
        self._topics = topics
        self._begins = {topic: start[topic] for topic in topics if topic in start}
        self._answered: str | None = None
        self._level = False

    def requests(self) -> list[dict[str, str]]:
        """What to send on a new connection."""
        self._answered = None
        # One topic has nobody to be ahead of.
        self._level = len(self._topics) == 1
        subscriptions = [
            {"type": "subscribe", "event": topic} | ({"from": begin} if (begin := self._begins.get(topic)) else {})
            for topic in self._topics
        ]
        return [*subscriptions, {"type": "ping"}]

    def heard(self, message: dict[str, Any]) -> None:
        """Take what a message says about how far the topics are."""
        kind, position = message.get("type"), message.get("pos")
        if kind == "subscribed" and position:
            # The position of the moment of the answer: whoever began without one began here.
            self._answered = position
            self._begins.setdefault(message["event"], position)
        elif kind == "pong" and not self._level:
            # All have heard what there was when the last one was answered, and go on together.
            self._level = True
            self._reach(self._answered)
        elif kind == "event" and self._level:
            self._reach(position)

    def _reach(self, position: str | None) -> None:
        if position:
            self._begins = dict.fromkeys(self._topics, position)


def _open(client: Client) -> ClientConnection:
    return connect(
        f"{client.ws_url}/ws/cli-{uuid.uuid4().hex[:12]}",
        additional_headers=client.headers,
        open_timeout=_OPEN_TIMEOUT_S,
        max_size=8 * 1024 * 1024,
        proxy=None,
    )


def _messages(socket: ClientConnection, idle_s: float | None) -> Iterator[dict[str, Any]]:
    while True:
        try:
            message = json.loads(socket.recv(timeout=idle_s))
        except TimeoutError:
            yield {}
            continue
        if message.get("type") == "error":
            msg = f"{message.get('code')}: {message.get('message')}"
            raise CommandFailed(msg)
        if "type" in message:
            yield message


def execution_events(client: Client, *executions: str) -> Iterator[dict[str, Any]]:
    """Status, metric and log events of executions, as they come, until all of them are over."""
    topics = [f"execution.{execution}.{kind}" for execution in executions for kind in ("status", "metric", "log")]
    going = set(executions)
    for event in events(client, topics, idle_s=1.0):
        if event:
            yield event
            _, execution, kind = event["event"].split(".")
            if kind == "status" and event["data"].get("status") in OVER:
                going.discard(execution)
        else:
            # It may have been over before we were heard: silence is a reason to ask.
            going = {execution for execution in going if client.execution(execution)["status"] not in OVER}
        if not going:
            return
