"""Admission that may have to wait: a strict policy of a fleet answers a cold key only after its leases' next sync.

Everything else is decided at once. What waits is asked about again after each sync, for a bounded time; then what there
is counts as the last word.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from flx_api._core import Admission, Admitted
    from flx_api.gateway.exchange import Scope
    from flx_api.limits.redis import Leases

WAIT_S: Final = 0.05
AWAITED: Final = "lease_awaited"

Handshake = tuple[str | None, tuple[int, int] | None, "Admitted"]


class Patience:
    """Waits for leases on behalf of requests.

    Args:
        admission: what is asked.
        leases: what is waited for; None where limits are this host's alone, and nothing ever has to wait.
    """

    def __init__(self, admission: Admission, leases: Leases | None) -> None:
        self._admission = admission
        self._leases = leases

    async def wait(self, ask: Callable[[bool], Any]) -> Any:  # noqa: ANN401 - whatever `ask` gives
        """Ask again after each sync, until there is an answer.

        Args:
            ask: gives None as long as it has to wait; called with True it must not.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                while self._leases is not None and await self._leases.wait():
                    answer = ask(False)  # noqa: FBT003 - whether it is the last time
                    if answer is not None:
                        return answer
        except TimeoutError:
            pass
        return ask(True)  # noqa: FBT003 - as above

    async def handshake(self, scope: Scope, route: int, token: bytes | None, *, needs_token: bool) -> Handshake:
        """Decide about a WebSocket handshake: as `flx_api._core.Admission.admit_handshake`."""
        seen = self.handshake_at_once(scope, route, token, needs_token=needs_token)
        return await self.handshake_later(scope, route, token, needs_token=needs_token) if seen is None else seen

    async def handshake_later(self, scope: Scope, route: int, token: bytes | None, *, needs_token: bool) -> Handshake:
        """As `handshake`, where it had to wait."""
        seen: Handshake = await self.wait(
            lambda last: self.handshake_at_once(scope, route, token, needs_token=needs_token, last=last)
        )
        return seen

    def handshake_at_once(
        self,
        scope: Scope,
        route: int,
        token: bytes | None,
        *,
        needs_token: bool,
        last: bool = False,
    ) -> Handshake | None:
        """As `handshake`; None where it has to wait, unless this is the `last` time."""
        seen: Handshake = self._admission.admit_handshake(scope, route, token, needs_token)
        return None if seen[0] == AWAITED and self._leases is not None and not last else seen

    def at_once(self, admitted: Admitted, command: str) -> tuple[str, int, int] | None:
        """As `command`, without waiting: what has to wait is refused as `AWAITED`."""
        return self._admission.admit_command(admitted, command)

    async def command(self, admitted: Admitted, command: str) -> tuple[str, int, int] | None:
        """Decide about a command that became known in the body: why it is refused, by which policy, and how long."""
        refused = self.at_once(admitted, command)
        if refused is None or refused[0] != AWAITED:
            return refused
        # A command that is admitted has no answer; it is wrapped, so that it does not look like one to be waited for.
        found: tuple[tuple[str, int, int] | None] = await self.wait(
            lambda last: self._once_more(admitted, command, last)
        )
        return found[0]

    def _once_more(
        self,
        admitted: Admitted,
        command: str,
        last: bool,  # noqa: FBT001 - see `wait`
    ) -> tuple[tuple[str, int, int] | None] | None:
        refused = self._admission.admit_command(admitted, command)
        if refused is not None and refused[0] == AWAITED and not last:
            return None
        return (refused,)
