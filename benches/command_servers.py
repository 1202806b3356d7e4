"""POST of a command under load: ours on each face, those who do the same, and clients without a gateway.

Strategy: all servers run at once before one compiled daemon (`benches.native`) and are asked in turn, a second each,
round by round. A row compares the CPU of one request, of the whole process tree on the server's core, round by round;
the daemon's own CPU, on the load's core, is told apart. The daemon takes a few microseconds for a command and is idle
most of the time, so nobody waits for it.

Rules:
- Ours is the gateway process with its one worker, with token check, two limits, request ids, metrics and deadlines.
- Everybody meets the same 10,000 clients by Zipf's law and sends the same arguments.
- A rival or a face that cannot run here costs its rows, which then say why.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from typing import TYPE_CHECKING, NamedTuple, Self

from benches import command_peers, native, servers
from benches.command_peers import ARGS, BODY, EXECUTE
from benches.load import CONNECTIONS, Load
from benches.peer_tools import Missing
from benches.servers import Server, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benches.load import Round
    from benches.native import BenchDaemon
    from benches.peer_tools import Peers
    from benches.record import Suite

FACES = ("asgi", "rsgi", "lane")
ECHO, ENVOY, ORIGINAL = "bare RSGI echo", "Envoy", "original stack"
STREAM = "plain grpclib stream"
TO_ECHO = {"asgi": 1.5, "rsgi": 1.35, "lane": 1.05}
TO_ENVOY = {"asgi": 0.7, "rsgi": 0.6, "lane": 0.45}
TO_ENVOY_FEW = 0.55
TO_ORIGINAL = 15
KEPT = 0.6
BATCH, BATCH_US = 100, 8
FEW_CONNECTIONS = 8
ONE, FEW = ", one at a time", f", {FEW_CONNECTIONS} at a time"
_CPU = "gateway CPU per request of the process tree"


class Turn(NamedTuple):
    """One server's part of a round: what is posted to it, over how many connections."""

    server: Server
    body: bytes
    url: str
    connections: int = CONNECTIONS


class Session:
    """The running servers, by name, and why others do not run. Use it as a context manager.

    Args:
        folder: where everybody's files go.
        load: the closed loop.
        seconds: of one part of a round.
    """

    def __init__(self, folder: Path, load: Load, seconds: float) -> None:
        self.folder = folder
        self.load = load
        self.seconds = seconds
        self.servers: dict[str, Server] = {}
        self.reasons: dict[str, str] = {}
        self._peaks: dict[str, float] = {}
        self._stack = contextlib.ExitStack()
        self._clients: command_peers.NativeClients | None = None

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all servers."""
        self._stack.close()

    def start(self, peers: Peers) -> BenchDaemon:
        """Start everything that can run here, and check what it refuses.

        Raises:
            Missing: there is no daemon.
        """
        self.daemon = self._stack.enter_context(native.daemon(self.folder))
        for face in FACES:
            ours = servers.ours(self.folder, self.daemon.socket, interface=face, path=EXECUTE, body=BODY)
            self._one(face, ours)
        self._one(ECHO, command_peers.echo(self.folder), checked=False)
        self._one(ENVOY, command_peers.envoy(self.folder, peers, self.daemon))
        self._one(ORIGINAL, command_peers.original(self.folder, peers, self.daemon))
        self._clients = self._stack.enter_context(command_peers.NativeClients(self.folder, self.daemon))
        return self.daemon

    def peak(self, name: str) -> float:
        """What a server answers a second in closed loop: as measured before, else in a round of its own."""
        if name not in self._peaks:
            turn = self._turn(name)
            self._peaks[name] = self.load.round(turn.url, turn.server.pid, self.seconds, body=turn.body).rate
        return self._peaks[name]

    def many(self, suite: Suite, rounds: int) -> None:
        """64 connections: against the echo, Envoy and the original stack; throughput against native clients."""
        turns = {name: self._turn(name) for name in (*FACES, ECHO, ENVOY, ORIGINAL) if name in self.servers}
        done, called = self._in_turn(turns, ("grpclib", "grpcio"), CONNECTIONS, rounds)
        cpu = {name: [one.cpu_us for one in found] for name, found in done.items()}
        self._peaks = {name: statistics.median(one.rate for one in found) for name, found in done.items()}
        name = f"POST command, {CONNECTIONS} connections"
        for face in FACES:
            for rival, target in (
                (ECHO, TO_ECHO[face]),
                (ENVOY, TO_ENVOY[face]),
                (ORIGINAL, round(1 / TO_ORIGINAL, 4)),
            ):
                self._compare(suite, f"{name}, {face}", cpu, face, rival, target)
        for face in FACES:
            for client in ("grpclib", "grpcio"):
                self._kept(suite, face, client, done, called)
        for face in (*FACES, ENVOY, ORIGINAL):
            if face in done:
                beside = [one.beside_us for one in done[face]]
                suite.measure(f"{name}, {face}", "CPU of the daemon per request, told apart", "us", beside)
                suite.measure(
                    f"{name}, {face}",
                    "p99 under full load, closed loop",
                    "ms",
                    [one.p99_us / 1000 for one in done[face]],
                )

    def few(self, suite: Suite, rounds: int) -> None:
        """8 connections: against Envoy; and a client with one plain stream, without any gateway."""
        turns = {
            name: self._turn(name)._replace(connections=FEW_CONNECTIONS)
            for name in (*FACES, ENVOY)
            if name in self.servers
        }
        done, called = self._in_turn(turns, ("stream",), FEW_CONNECTIONS, rounds)
        cpu = {name: [one.cpu_us for one in found] for name, found in done.items()}
        cpu[STREAM] = [one.cpu_us for one in called["stream"]]
        for face in FACES:
            name = f"POST command, {FEW_CONNECTIONS} connections, {face}"
            self._compare(suite, name, cpu, face, ENVOY, TO_ENVOY_FEW)
            self._compare(suite, name, cpu, face, STREAM, None)

    def batches(self, suite: Suite, rounds: int) -> None:
        """A batch of 100 reads against 100 single calls; and 8 batches at once, which share what a daemon is sent."""
        operation = {"command": "system.echo", "args": ARGS}
        body = json.dumps({"operations": [operation] * BATCH}, separators=(",", ":")).encode()
        turns: dict[str, Turn] = {}
        for face in FACES:
            if face in self.servers:
                single = self._turn(face)
                url = single.url.removesuffix(EXECUTE) + "/v1/batch"
                batch = single._replace(body=body, url=url, connections=1)
                turns |= {face: single, face + ONE: batch, face + FEW: batch._replace(connections=FEW_CONNECTIONS)}
        done, _ = self._in_turn(turns, (), CONNECTIONS, rounds)
        for face in FACES:
            name = f"batch of {BATCH} reads, {face}"
            metric = "gateway CPU per item of the process tree"
            if face not in done:
                reason = self.reasons[face]
                suite.unjudged(name, metric, "us", target=f"value <= {BATCH_US} us", reason=reason)
                continue
            for which, target in ((ONE, BATCH_US), (FEW, None)):
                suite.compare(
                    name + which,
                    metric,
                    "us",
                    [one.cpu_us / BATCH for one in done[face + which]],
                    rival=f"{BATCH} single calls, {CONNECTIONS} connections",
                    rival_values=[one.cpu_us for one in done[face]],
                    target_value=target,
                )
            beside = [one.beside_us / BATCH for one in done[face + ONE]]
            suite.measure(name, "CPU of the daemon per item, told apart", "us", beside)

    def _kept(
        self,
        suite: Suite,
        face: str,
        client: str,
        done: dict[str, list[Round]],
        called: dict[str, list[command_peers.Called]],
    ) -> None:
        name, metric = f"throughput kept, {face}", f"commands a second on one core, {CONNECTIONS} at once"
        if face not in done:
            reason = self.reasons[face]
            suite.unjudged(name, metric, "1/s", target=f"ratio >= {KEPT}", reason=reason)
            return
        suite.compare(
            name,
            metric,
            "1/s",
            [one.rate for one in done[face]],
            rival=f"{client} unary, straight to the daemon",
            rival_values=[one.rate for one in called[client]],
            target_ratio=KEPT,
            better="higher",
        )

    def _compare(  # noqa: PLR0917 - a row is what it is
        self, suite: Suite, name: str, cpu: dict[str, list[float]], face: str, rival: str, target: float | None
    ) -> None:
        absent = self.reasons.get(face) or self.reasons.get(rival)
        if absent is not None:
            said = f"ratio <= {target}" if target is not None else "reported"
            suite.unjudged(name, f"{_CPU}, against {rival}", "us", target=said, reason=absent)
            return
        suite.compare(name, _CPU, "us", cpu[face], rival=rival, rival_values=cpu[rival], target_ratio=target)

    def _turn(self, name: str) -> Turn:
        server = self.servers[name]
        return Turn(server, server.body or BODY, server.url)

    def _one(self, name: str, server: AbstractContextManager[Server], *, checked: bool = True) -> None:
        with contextlib.ExitStack() as tentative:
            try:
                running = tentative.enter_context(server)
                if checked:
                    servers.check_tokens(running)
            except (Unavailable, Missing) as reason:
                self.reasons[name] = str(reason)
                return
            self._stack.enter_context(tentative.pop_all())
        self.servers[name] = running

    def _in_turn(
        self, turns: dict[str, Turn], clients: Sequence[str], callers: int, rounds: int
    ) -> tuple[dict[str, list[Round]], dict[str, list[command_peers.Called]]]:
        """What each spent, round by round; a first round warms up and is not kept."""
        done: dict[str, list[Round]] = {name: [] for name in turns}
        called: dict[str, list[command_peers.Called]] = {mode: [] for mode in clients}
        for number in range(rounds + 1):
            for name, turn in turns.items():
                found = self.load.round(
                    turn.url,
                    turn.server.pid,
                    self.seconds,
                    body=turn.body,
                    connections=turn.connections,
                    beside=self.daemon.pid,
                )
                if number:
                    done[name].append(found)
            for mode in clients:
                assert self._clients is not None
                told = self._clients.round(mode, self.seconds, callers)
                if number:
                    called[mode].append(told)
        return done, called
