"""One command under way: where its reply goes, what it holds, and how often it may be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeGuard

from flx_api._core import PlainBatch, PlainCommand
from flx_api.commands import COMMANDS
from flx_api.errors import Unavailable
from flx_api.upstream.waits import Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.errors import FlxError
    from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame
    from flx_api.upstream.concurrency import Sort
    from flx_api.upstream.connection import Carrier
    from flx_api.upstream.shedding import Passage

SENDS: Final = 3
_WAIT: Final = "execution.wait"

# What a credit was given for; a probe has none.
Kind = Literal["call", "grouped"] | Place

SORTS: Final[Mapping[Kind | None, Sort | None]] = {None: None, "call": "ordinary", "grouped": "grouped"}
"""What each is when it comes to room; what waits by nature takes none and is not in it."""


class Frame(Protocol):
    """A command as it travels: a `CommandFrame`, or a `PlainCommand` of the native core, which has the same names."""

    seq: int

    @property
    def command(self) -> str:
        """Its name."""
        ...

    @property
    def args(self) -> bytes:
        """Its arguments."""
        ...

    @property
    def idempotency_key(self) -> str:
        """What makes repeating it harmless; empty: nothing."""
        ...

    @property
    def wait_ms(self) -> int:
        """How long it waits for what it has begun."""
        ...

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """As bytes."""
        ...


Sent = Frame | PlainBatch
"""What leaves on a stream: a command, or all operations of a batch."""


class Reply(Protocol):
    """Where a reply goes: a future, or what is told as a future is."""

    def done(self) -> bool:
        """Whether there is nothing to come any more."""
        ...

    def set_result(self, reply: ReplyFrame, /) -> None:
        """The daemon answered."""
        ...

    def set_exception(self, error: FlxError, /) -> None:
        """There will be no answer."""
        ...


class Pending:
    """A command that is waited for, or whose caller left while the daemon works on it."""

    __slots__ = ("carrier", "deadline", "kind", "passage", "reply")

    def __init__(
        self, reply: Reply, deadline: float, kind: Kind | None, carrier: Carrier | None, passage: Passage | None
    ) -> None:
        self.reply = reply
        self.deadline = deadline
        self.kind = kind
        self.carrier = carrier
        self.passage = passage


class StreamLost(Unavailable):
    """The stream broke after the frame may have left; whether the command was carried out is unknown."""

    place: object = None
    """Where it was sent."""


def sends_of(frame: Frame, *, read: bool) -> int:
    """How often a command may be sent in all, when it is not known what became of it."""
    if read:
        return 2
    command = COMMANDS.get(frame.command)
    if command is None:
        return 1
    is_safe = command.idempotency == "idempotent" or (command.idempotency == "key" and frame.idempotency_key != "")
    return SENDS if is_safe else 1


def is_wait(frame: Frame) -> TypeGuard[CommandFrame]:
    """Whether a command waits for an execution by nature; a plain one never does."""
    return type(frame) is not PlainCommand and (frame.wait_ms > 0 or frame.command == _WAIT)
