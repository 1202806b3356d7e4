"""Whole servers under the same load: ours on each face, HAProxy and Envoy, and Granian with nothing on it.

Strategy: all servers run at once and are asked in turn, a second each, round by round. A row compares the CPU of one
request, of the whole process tree, round by round. Ours is the gateway process with its one worker.

Rules:
- A rival or a face that cannot run here costs its rows, which then say why.
- A refusal is compared with the reply to an admitted request of the same kind: 401 with the same number of different
  tokens, 429 with the same few clients on a server that lets them in.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from benches import servers
from benches.load import TIGHT, Load
from benches.peer_tools import Missing
from benches.peers.routes import FRAMEWORK
from benches.servers import Server, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benches.peer_tools import Peers
    from benches.record import Suite

FACES = ("asgi", "rsgi", "lane")
RIVALS = ("HAProxy", "Envoy")
TARGETS: dict[str, dict[str, float]] = {
    "asgi": {"Envoy": 1.15, "HAProxy": 1.6},
    "rsgi": {"Envoy": 1.0, "HAProxy": 1.5},
    "lane": {"HAProxy": 1.0},
}
REFUSAL_ROUNDS = 5
_METRIC = "CPU per request of the process tree"
_NAME = "GET with JWT, limits, metrics and request id"


def measure(suite: Suite, peers: Peers, folder: Path, rounds: int, seconds: float) -> None:
    """All rows of whole servers."""
    try:
        command, environ = peers.wrk()
    except Missing as missing:
        suite.unjudged(_NAME, _METRIC, "us", target="ratios to Envoy and HAProxy", reason=str(missing))
        return
    with contextlib.ExitStack() as stack:
        session = Session(stack, Load(folder, command, environ), seconds)
        session.start(peers, folder, stack.enter_context(servers.daemon(folder)))
        session.replies(suite, rounds)
        session.refusals(suite, min(rounds, REFUSAL_ROUNDS))
        session.framework(suite, min(rounds, REFUSAL_ROUNDS))


class Session:
    """The running servers, by name, and why others do not run."""

    def __init__(self, stack: contextlib.ExitStack, load: Load, seconds: float) -> None:
        self._stack = stack
        self._load = load
        self._seconds = seconds
        self._roomy: dict[str, Server] = {}
        self._tight: dict[str, Server] = {}
        self._framed: dict[str, Server] = {}
        self._bare: dict[str, Server] = {}
        self._reasons: dict[str, str] = {}

    def start(self, peers: Peers, folder: Path, daemon: str) -> None:
        """Start everything that can run here, and check what it refuses."""
        self._pair("HAProxy", lambda **options: servers.haproxy(folder, peers, **options))
        self._pair("Envoy", lambda **options: servers.envoy(folder, peers, **options))
        self._pair("BlackSheep", lambda **options: servers.blacksheep(folder, peers, **options))
        for face in FACES:
            self._pair(face, lambda face=face, **options: servers.ours(folder, daemon, interface=face, **options))
            self._one(self._framed, face, servers.ours(folder, daemon, interface=face, path=FRAMEWORK))
        for face in ("asgi", "rsgi"):
            self._one(self._bare, f"Granian {face}, bare", servers.hello(folder, interface=face))

    def replies(self, suite: Suite, rounds: int) -> None:
        """An admitted request."""
        everybody = {**{name: self._roomy[name] for name in (*RIVALS, *FACES) if name in self._roomy}, **self._bare}
        spent = self._in_turn({name: (server, "good", False) for name, server in everybody.items()}, rounds)
        for face in FACES:
            for rival in RIVALS:
                limit = TARGETS[face].get(rival)
                target = f"ratio <= {limit}" if limit is not None else "reported"
                absent = self._reasons.get(face) or self._reasons.get(rival)
                if absent is not None:
                    suite.unjudged(f"{_NAME}, {face} against {rival}", _METRIC, "us", target=target, reason=absent)
                    continue
                suite.compare(
                    f"{_NAME}, {face}",
                    _METRIC,
                    "us",
                    spent[face],
                    rival=rival,
                    rival_values=spent[rival],
                    target_ratio=limit,
                )
        for bare in self._bare:
            for rival in RIVALS:
                if rival in spent:
                    suite.compare(bare, _METRIC, "us", spent[bare], rival=rival, rival_values=spent[rival])

    def refusals(self, suite: Suite, rounds: int) -> None:
        """A bad token, and a client over its limit."""
        names = [name for name in (*FACES, *RIVALS) if name in self._roomy]
        turns: dict[str, tuple[Server, str, bool]] = {}
        for name in names:
            turns |= {
                f"{name} good": (self._roomy[name], "good", False),
                f"{name} 401": (self._roomy[name], "bad", True),
                f"{name} few": (self._roomy[name], "few", False),
                f"{name} 429": (self._tight[name], "few", True),
            }
        spent = self._in_turn(turns, rounds)
        for name in names:
            for refusal, admitted in (("401", "good"), ("429", "few")):
                suite.compare(
                    f"refusal {refusal}, {name}",
                    _METRIC,
                    "us",
                    spent[f"{name} {refusal}"],
                    rival="the admitted reply",
                    rival_values=spent[f"{name} {admitted}"],
                    target_ratio=1.0 if name in FACES else None,
                )
        for face in FACES:
            if face in self._reasons:
                reason = self._reasons[face]
                suite.unjudged(f"refusal, {face}", _METRIC, "us", target="ratio <= 1.0", reason=reason)

    def framework(self, suite: Suite, rounds: int) -> None:
        """A route of the framework."""
        name, rival = "a BlackSheep route", "BlackSheep's own JWT and a Python limiter"
        turns = {face: (server, "good", False) for face, server in self._framed.items()}
        if "BlackSheep" in self._roomy:
            turns["BlackSheep"] = (self._roomy["BlackSheep"], "good", False)
        spent = self._in_turn(turns, rounds)
        for face in FACES:
            absent = self._reasons.get(f"{face} framework") or self._reasons.get("BlackSheep")
            if absent is not None:
                suite.unjudged(f"{name}, {face}", _METRIC, "us", target="reported", reason=absent)
                continue
            suite.compare(f"{name}, {face}", _METRIC, "us", spent[face], rival=rival, rival_values=spent["BlackSheep"])

    def _pair(self, name: str, start: Callable[..., AbstractContextManager[Server]]) -> None:
        """A server that lets everybody in and one that lets hardly anybody in, checked."""
        with contextlib.ExitStack() as tentative:
            try:
                roomy = tentative.enter_context(start())
                tight = tentative.enter_context(start(limit=TIGHT))
                servers.check(roomy, tight)
            except (Unavailable, Missing) as reason:
                self._reasons[name] = str(reason)
                return
            self._stack.enter_context(tentative.pop_all())
        self._roomy[name], self._tight[name] = roomy, tight

    def _one(self, where: dict[str, Server], name: str, server: AbstractContextManager[Server]) -> None:
        try:
            where[name] = self._stack.enter_context(server)
        except (Unavailable, Missing) as reason:
            self._reasons[f"{name} framework"] = str(reason)

    def _in_turn(self, turns: dict[str, tuple[Server, str, bool]], rounds: int) -> dict[str, list[float]]:
        """CPU microseconds per request, round by round; a first round warms up and is not kept."""
        spent: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(rounds + 1):
            for name, (server, tokens, refused) in turns.items():
                done = self._load.round(server.url, server.pid, self._seconds, tokens=tokens, refused=refused)
                if number:
                    spent[name].append(done.cpu_us)
        return spent
