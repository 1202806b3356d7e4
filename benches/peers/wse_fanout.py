"""Fan-out on wse-server as its documentation shows it, the application packing the events of a window.

`python wse_fanout.py PORT`; commands as lines on standard input, as for `bare-sender` (benches/native).
"""

from __future__ import annotations

import json
import sys
import threading
import time

from wse_server import RustWSEServer

from benches.peers.packed import Command, Topic

_MOST = 20_000
_SHARED = "bench.a"


class Fanout:
    """The application: everybody may subscribe to anything."""

    def __init__(self, port: int) -> None:
        self._server = RustWSEServer("127.0.0.1", port, max_connections=_MOST)
        self._server.enable_drain_mode()
        self._topics: dict[str, Topic] = {}

    def start(self) -> None:
        """Serve in the background."""
        self._server.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            for kind, peer, said in self._server.drain_inbound(256, 50):
                if kind == "connect":
                    self._server.send(peer, '{"type":"connected","message":"","client_id":""}')
                elif kind in {"raw", "msg"}:
                    message = json.loads(said) if isinstance(said, str) else said
                    if "event" in message:
                        self._subscribe(peer, message["event"])

    def _subscribe(self, peer: str, topic: str) -> None:
        self._topics.setdefault(topic, Topic(topic))
        self._server.subscribe_connection(peer, [topic])
        self._server.send(peer, f'{{"type":"subscribed","event":"{topic}","pos":""}}')

    def publish(self, command: Command) -> dict[str, float]:
        """Publish a series; the answer comes when all is given to the server."""
        shared, done = self._topics[_SHARED], 0
        began, began_us = time.monotonic(), time.time_ns() // 1000
        while done < command.count:
            due = command.due(time.monotonic() - began)
            stamps = [command.at_us(began_us, number) for number in range(done, due)]
            if command.name == "unshared":
                for number, at_us in zip(range(done, due), stamps, strict=True):
                    name = f"{_SHARED}.{number % command.topics}"
                    self._server.broadcast_local(name, self._topics[name].batch([at_us], command.size))
            elif stamps:
                self._server.broadcast_local(_SHARED, shared.batch(stamps, command.size))
            done = due
            time.sleep(command.window_s)
        return {"published": done, "seconds": time.monotonic() - began}


def main() -> None:
    """Serve until standard input ends."""
    fanout = Fanout(int(sys.argv[1]))
    fanout.start()
    for line in sys.stdin:
        print(json.dumps(fanout.publish(Command.parse(line))), flush=True)


if __name__ == "__main__":
    main()
