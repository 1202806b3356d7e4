"""Small changes to a database that is near are made on the loop, in its own turns; the thread only commits them.

Strategy: what a group costs is Python, and one thread at a time runs Python. Made in the writer's thread, a group gave
the interpreter away at each statement and waited to have it back, while the loop had nothing to do but the commands
that would be in the next group: it took three times as long as its work (docs/decisions/0025). So the loop makes the
changes that came, a few in each turn, and hands the transaction to the thread, which waits for the disk. Meanwhile the
next ones gather here.

Rules:
- One at a time has the connection: the loop from the first change of a group to its last, then the thread until the
  group is settled and it says so (`free`). It may have gone on with what commits put off; in a calm moment it is given
  the connection for that alone.
- Only changes that say what they look for (`Prepared`) are made here; they touch few rows. A group with any other goes
  to the thread.
- So does one with any difficulty: what was made of it is undone, and the thread makes it from the beginning, in the way
  that knows all faults.
- The loop waits for nobody's lock.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Final

from flx_api.daemon.journal.rows import Prepared

if TYPE_CHECKING:
    import asyncio

    from flx_api.daemon.journal.writer import Making, Pending, Writer

# Changes in one turn of the loop: some milliseconds.
_STEP: Final = 64
# So long without a change is calm. Who waits for each answer before the next command does not leave that much.
_CALM_S: Final = 0.1


class Turns:
    """The changes that wait, and the group that is being made.

    Args:
        writer: has the connection, and the thread.
        loop: whose turns they are.
    """

    def __init__(self, writer: Writer, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        # A turn is nobody's: the change that asked for it may be a rehearsal.
        self._context = copy_context()
        self._waiting: list[Pending] = []
        self._making: Making | None = None
        self._is_due = False
        self._is_away = False
        self._is_over = False
        self._was_busy = False
        self._calm: asyncio.TimerHandle | None = None

    def submit(self, pending: Pending) -> None:
        """Let a change be made in a turn to come."""
        self._waiting.append(pending)
        self._was_busy = True
        self._ask_for_turn()

    def free(self) -> None:
        """The thread has done what it had."""
        self._is_away = False
        if self._calm is None and not self._is_over and self._writer.is_behind:
            self._wait_for_calm()
        if self._waiting:
            # Behind what the settled group has to tell, which goes out at the end of the turn that follows.
            self._loop.call_soon(self._ask_for_turn, context=self._context)

    def stop(self) -> None:
        """Hand everything over; nothing comes any more."""
        self._is_over = True
        if self._calm is not None:
            self._calm.cancel()
        making, self._making = self._making, None
        if making is not None:
            self._writer.drop(making)
            self._waiting[:0] = making.group
        while self._waiting:
            self._hand_over(self._waiting)

    def _wait_for_calm(self) -> None:
        self._was_busy = False
        self._calm = self._loop.call_later(_CALM_S, self._look_for_calm, context=self._context)

    def _look_for_calm(self) -> None:
        self._calm = None
        if self._is_over or self._is_away or not self._writer.is_behind:
            return
        if self._was_busy or self._waiting or self._making is not None:
            self._wait_for_calm()
            return
        self._is_away = True
        self._writer.catch_up()

    def _ask_for_turn(self) -> None:
        if not (self._is_due or self._is_away or self._is_over):
            self._is_due = True
            self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        self._is_due = False
        if self._is_over or self._is_away or not self._waiting:
            return
        making = self._making
        try:
            if making is None:
                group = self._waiting[: self._writer.most]
                if not (self._writer.is_sound and all(isinstance(pending.change, Prepared) for pending in group)):
                    self._hand_over(self._waiting)
                    return
                making = self._making = self._writer.begin_at_once(len(group))
            step = self._waiting[: min(_STEP, making.most - len(making.group))]
            del self._waiting[: len(step)]
            making.group += step
            self._writer.make(making, step)
            if len(making.group) < making.most:
                self._ask_for_turn()
                return
            self._writer.end(making)
        except Exception:  # noqa: BLE001 - whatever it is, it comes again where it is known
            self._making = None
            if making is None:
                self._hand_over(self._waiting)
                return
            self._writer.drop(making)
            self._hand_over(making.group)
        else:
            self._making = None
            self._is_away = True
            self._writer.seal(making)

    def _hand_over(self, group: list[Pending]) -> None:
        """Let the thread make a group."""
        self._is_away = True
        most = self._writer.most
        self._writer.take(group[:most])
        del group[:most]
