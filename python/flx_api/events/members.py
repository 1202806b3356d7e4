"""Which gateways there are, as far as one of them knows: the part that decides, without clock or bus.

Rules:
- A gateway of which nothing was heard for `EXPIRE_S` is taken for dead, if this one heard itself all the while: a bus
  that carries nothing says nothing about others.
- Settled is who has heard the bus for so long that every gateway has said since that it is there. Before that there
  may be some of which nothing is known.
- Times are seconds of a clock that never goes back, passed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from flx_api.models.connection import GatewayProcess

ALIVE_S: Final = 2.0
"""How often a gateway says that it is there."""
EXPIRE_S: Final = 8.0
_SETTLED_S: Final = 1.5 * ALIVE_S
_DEAF_S: Final = 2 * ALIVE_S


class Members:
    """What one gateway knows of the others.

    Args:
        me: the id of this gateway, another one for each process.
    """

    def __init__(self, me: str) -> None:
        self.me = me
        self._others: dict[str, tuple[GatewayProcess, float]] = {}
        self._heard_me_s: float | None = None
        self._steady_since_s = 0.0

    @property
    def others(self) -> dict[str, GatewayProcess]:
        """The other gateways, by id."""
        return {id_: process for id_, (process, _) in self._others.items()}

    def is_settled(self, now_s: float) -> bool:
        """Whether all that are there are known."""
        hears = self._heard_me_s is not None and now_s - self._heard_me_s <= _DEAF_S
        return hears and now_s - self._steady_since_s >= _SETTLED_S

    def hear(self, process: GatewayProcess, now_s: float) -> None:
        """A gateway said something, this one included: that says that the bus works."""
        if process.id != self.me:
            self._others[process.id] = process, now_s
            return
        if self._heard_me_s is None or now_s - self._heard_me_s > _DEAF_S:
            self._steady_since_s = now_s
        self._heard_me_s = now_s

    def leave(self, id_: str) -> None:
        """A gateway said that it stops."""
        self._others.pop(id_, None)

    def lose(self, now_s: float) -> None:
        """Something that others said may be missing."""
        self._steady_since_s = now_s

    def expire(self, now_s: float) -> None:
        """Forget gateways that are dead."""
        if self._heard_me_s is None or now_s - self._heard_me_s > _DEAF_S:
            return
        self._others = {
            id_: (process, heard_s)
            for id_, (process, heard_s) in self._others.items()
            if now_s - max(heard_s, self._steady_since_s) <= EXPIRE_S
        }
