"""Places of commands that wait for an execution: they last for minutes, and others must get through.

Rules:
- There are so many for each stream, and one owner (a subject of a tenant) holds half of all at most: whoever waits for
  much keeps nobody else from waiting.
- A place stands in the entry of its command where others have the name of a kind (`flx_api.upstream.pending`), and goes
  back with the command's credit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flx_api.errors import Unavailable

if TYPE_CHECKING:
    from flx_api.proto.flx.v1.daemon_pb2 import Principal

# Of the commands that may be outstanding on a stream.
WAITS: Final = 160


class Place:
    """What one command that waits holds."""

    __slots__ = ("owner",)

    def __init__(self, owner: tuple[str, str]) -> None:
        self.owner = owner


class Waits:
    """Nobody waits at first."""

    __slots__ = ("_of_owner", "held")

    def __init__(self) -> None:
        # How many places are held: in all, and by each owner who holds any.
        self.held = 0
        self._of_owner: dict[tuple[str, str], int] = {}

    def take(self, principal: Principal, streams: int) -> Place:
        """A place for a command of this caller.

        Args:
            principal: the caller.
            streams: how many take commands; where there is none yet, there is room as on one.

        Raises:
            Unavailable: all are taken, or this caller holds his share.
        """
        owner = (principal.tenant, principal.subject)
        most, own = WAITS * max(streams, 1), self._of_owner.get(owner, 0)
        if self.held >= most:
            detail = "Too many callers wait for executions"
            raise Unavailable(detail, retry_after_s=1)
        if own >= most // 2:
            detail = "This caller waits for too many executions at once"
            raise Unavailable(detail, retry_after_s=1)
        self.held += 1
        self._of_owner[owner] = own + 1
        return Place(owner)

    def release(self, place: Place) -> None:
        """Give a place back, once."""
        self.held -= 1
        left = self._of_owner[place.owner] - 1
        if left:
            self._of_owner[place.owner] = left
        else:
            # Owners come and go, and their names come from tokens.
            del self._of_owner[place.owner]
