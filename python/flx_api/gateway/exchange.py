"""What is known about one request while it is on its way: the value that all phases share."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Admitted, Principal
    from flx_api.gateway.paths import Route
    from flx_api.observability.metrics import Metrics, Phase

Scope = dict[str, Any]
Message = dict[str, Any]


class StreamCut(Exception):
    """A response that was begun cannot be completed. It has no end, so that the server cuts the connection."""


class Exchange:
    """One admitted request. Phases fill it in from top to bottom."""

    def __init__(  # noqa: PLR0917 - a request's own three, as ASGI has them, and what is known of it
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        admitted: Admitted,
        route: Route,
        metrics: Metrics,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.admitted = admitted
        self.route = route
        self.method: str = scope.get("method", "GET")
        self.body = b""
        self.status = 0
        self.principal: Principal | None = admitted.principal
        self.request_id = admitted.request_id
        self._headers: dict[bytes, bytes] | None = None
        self._metrics = metrics
        self._mark_ns = monotonic_ns()

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The last value of each header; those of which a second one matters were judged when it was admitted."""
        # functools.cached_property takes a lock for each look-up until Python 3.12.
        if self._headers is None:
            self._headers = dict(self.scope["headers"])
        return self._headers

    @property
    def values(self) -> dict[str, str]:
        """The values in the path."""
        return dict(zip(self.route.names, self.admitted.values, strict=True))

    @property
    def client(self) -> str:
        """The client's address."""
        return self.admitted.client

    def passed(self, phase: Phase) -> None:
        """A phase is over; the time since the one before is its."""
        now = monotonic_ns()
        self._metrics.phase(phase, now - self._mark_ns)
        self._mark_ns = now

    def passed_until(self, mark_ns: int) -> None:
        """Phases up to this moment were told elsewhere."""
        self._mark_ns = mark_ns

    @property
    def mark_ns(self) -> int:
        """When the last phase ended, in monotonic nanoseconds."""
        return self._mark_ns

    @property
    def duration_us(self) -> int:
        """Microseconds since the request came."""
        return (monotonic_ns() - self.admitted.started_ns) // 1000
