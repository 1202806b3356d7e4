"""Fan-out as an application on Granian writes it when it knows Granian well: events packed, sends not awaited.

Strategy: `send` begins when it is called, so one loop calls it for every connection and looks at the next turn whether
it is done; who is not done waits, so that at most one message is on its way to each. `POST /` takes a line as
`bare-sender` does and answers when everything was given to the server.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from benches.peers.packed import Command, Topic


class Socket:
    """One connection: what it is to be sent, and whether it has taken the last."""

    def __init__(self, send: Any) -> None:  # noqa: ANN401 - ASGI
        self._send = send
        self._last: Any = None
        self.own = Topic("")
        self.waiting: list[str] = []

    def push(self) -> None:
        """Begin to send what waits, unless the last is still on its way."""
        if self.waiting and (self._last is None or self._last.done()):
            text = self.waiting.pop(0)
            self._last = self._send({"type": "websocket.send", "text": text})


class Fanout:
    """The application."""

    def __init__(self) -> None:
        self._sockets: dict[Socket, None] = {}
        self._shared = Topic("bench.a")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """ASGI."""
        if scope["type"] == "websocket":
            await self._serve(receive, send)
        elif scope["type"] == "http":
            body = (await receive())["body"]
            told = await self._publish(Command.parse(body.decode())) if body else {}
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(told).encode()})
        else:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "flx.v1"})
        await send({"type": "websocket.send", "text": '{"type":"connected","message":"","client_id":""}'})
        socket = Socket(send)
        self._sockets[socket] = None
        try:
            while (message := await receive())["type"] == "websocket.receive":
                event = json.loads(message["text"])["event"]
                socket.own = Topic(event)
                await send({"type": "websocket.send", "text": f'{{"type":"subscribed","event":"{event}","pos":""}}'})
        finally:
            del self._sockets[socket]

    async def _publish(self, command: Command) -> dict[str, Any]:
        sockets, done = list(self._sockets), 0
        began, began_us = time.monotonic(), time.time_ns() // 1000
        while done < command.count or any(socket.waiting for socket in sockets):
            due = command.due(time.monotonic() - began)
            stamps = [command.at_us(began_us, number) for number in range(done, due)]
            if command.name == "unshared":
                for number, at_us in zip(range(done, due), stamps, strict=True):
                    socket = sockets[number % len(sockets)]
                    socket.waiting.append(socket.own.batch([at_us], command.size))
            elif stamps:
                message = self._shared.batch(stamps, command.size)
                for socket in sockets:
                    socket.waiting.append(message)
            for socket in sockets:
                socket.push()
            done = due
            await asyncio.sleep(command.window_s)
        return {"published": done, "seconds": time.monotonic() - began}


application = Fanout()
