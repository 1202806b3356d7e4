"""What is known about one request while it is on its way: the value that all phases share."""

from __future__ import annotations

import itertools
import re
import secrets
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Decision, Principal
    from flx_api.gateway.paths import Route
    from flx_api.observability.metrics import Phase

Scope = dict[str, Any]
Message = dict[str, Any]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class StreamCut(Exception):
    """A response that was begun cannot be completed. It has no end, so that the server cuts the connection."""


class RequestIds:
    """Request ids of one process: a random beginning and a counter, so that making one costs next to nothing."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._counter = itertools.count(1)

    def of(self, given: bytes | None) -> str:
        """The client's own id when it is a sane token, else a new one."""
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._counter):x}"


class Exchange:
    """One request. Phases fill it in from top to bottom."""

    __slots__ = (
        "_mark_ns",
        "body",
        "client",
        "decision",
        "headers",
        "host",
        "method",
        "origin",
        "path",
        "phases",
        "principal",
        "receive",
        "request_id",
        "route",
        "scope",
        "send",
        "started_ns",
        "status",
        "values",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        request_id: str,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id = request_id
        # The last value of each header; where a second one matters, `scope["headers"]` is counted.
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.body = b""
        self.method: str = scope.get("method", "GET")
        self.path = ""
        self.host = self.headers.get(b"host")
        self.origin = self.headers.get(b"origin")
        client = scope.get("client")
        self.client: str = client[0] if client else ""
        self.route: Route | None = None
        self.values: dict[str, str] = {}
        self.decision: Decision | None = None
        self.principal: Principal | None = None
        self.status = 0
        self.phases: list[tuple[Phase, int]] = []
        self.started_ns = self._mark_ns = perf_counter_ns()

    def passed(self, phase: Phase) -> None:
        """A phase is over; the time since the one before is its."""
        now = perf_counter_ns()
        self.phases.append((phase, now - self._mark_ns))
        self._mark_ns = now

    @property
    def duration_us(self) -> int:
        """Microseconds since the request came."""
        return (perf_counter_ns() - self.started_ns) // 1000
