"""How many commands may be outstanding at one daemon: found out from how long they take, not set.

Strategy: what is beyond the daemon's capacity only waits there. So the time that commands take, compared with the time
they take when nothing waits (the base), tells whether the limit is too high. `AdaptiveLimit` takes a sample for each
command that came to its end. At the end of each short window the limit becomes `limit * gradient + sqrt(limit)`,
smoothed, where the gradient is the bearable time over the time seen, between 1/2 and 1. It is the gradient of Netflix's
concurrency-limits (`Gradient2Limit`) with two differences:

- The base is not a slow average, which an overload of a minute carries away until every limit looks right. As in
  Envoy's adaptive concurrency filter it is measured: after some seconds under pressure the limit is halved for a
  moment, the queue drains, and what passes then is the base. The tolerance is below 2, so what is measured at half the
  limit can never justify the whole limit: where there is only a queue, the limit shrinks from probe to probe.
- Commands differ by nature: a read takes one millisecond, a commit ten. Each kind has its own base, and the gradient is
  the mean over the samples. So many writes after many reads do not look like an overload.

`Gate` counts against the limit and refuses at once what is beyond it. A share of the limit is kept for what is vital
(health, administration): ordinary commands cannot take it, so it passes when everything else is refused. And the
commands of batches get a share only, so that single ones find room beside them.

Rules:
- Pure: samples and `now_s` in, a limit out.
- What waits by nature (`execution.wait`, `wait_ms`) is no sample and is not counted here.
- The limit grows only while it is used: a quiet hour does not make it high for the rush that ends it.
- Delays below `EASE_S` are no overload, however short the command: bursts must find room.
"""

from __future__ import annotations

from math import ceil, inf, sqrt
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

LEAST: Final = 16
MOST: Final = 240
FIRST: Final = 80
WINDOW_S: Final = 0.1
LEAST_SAMPLES: Final = 10
TOLERANCE: Final = 1.5
EASE_S: Final = 0.1
SMOOTHING: Final = 0.2
# A window's growth until something waits for the first time, as TCP's slow start (RFC 5681) does it.
START_GROWTH: Final = 1.5
PROBE_EVERY_S: Final = 10.0
FIRST_PROBE_S: Final = 1.0
# Of the limit, for what is vital; at least four commands. And for all batches together.
VITAL_SHARE: Final = 0.1
GROUPED_SHARE: Final = 0.5
_LEAST_VITAL: Final = 4
# How far the base follows what is seen while nothing waits.
_FOLLOW: Final = 0.1
# How far it rises with each probe.
_RISE: Final = 0.3
_LEAST_OF_KIND: Final = 3


class _Times:
    """Samples of one kind in one window."""

    __slots__ = ("count", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0

    @property
    def mean_s(self) -> float:
        return self.total_s / self.count


class AdaptiveLimit:
    """The limit of one daemon.

    Args:
        now_s: when it begins.
        least: it is never lower.
        most: it is never higher.
    """

    def __init__(self, now_s: float, *, least: int = LEAST, most: int = MOST) -> None:
        self._least = least
        self._most = most
        self._limit = float(min(max(FIRST, least), most))
        # Nothing has waited yet for longer than is bearable.
        self._is_starting = True
        self._base_s: dict[str, float] = {}
        self._seen: dict[str, _Times] = {}
        self._samples = 0
        self._failures = 0
        self._peak = 0
        self._window_s = now_s
        self._phase: Literal["open", "draining", "measuring"] = "open"
        self._probe_s = now_s + FIRST_PROBE_S
        self._drained_s = now_s
        # How many may be outstanding now. Asked with each command, and changed once in a while.
        self.limit = int(self._limit)

    @property
    def grouped(self) -> int:
        """How many of these may belong to batches."""
        return max(int(self.limit * GROUPED_SHARE), 1)

    def _move(self, phase: Literal["open", "draining", "measuring"]) -> None:
        """Begin a phase. In all but one the limit is halved."""
        self._phase = phase
        self.limit = int(self._limit) if phase == "open" else max(int(self._limit / 2), 1)

    def sample(self, kind: str, took_s: float, outstanding: int, now_s: float) -> None:
        """A command came to its end.

        Args:
            kind: what is alike in time, such as the command's name; a bounded set.
            took_s: from its sending to its reply.
            outstanding: how many were, this one included.
            now_s: the moment.
        """
        if self._phase != "open":
            if self._phase == "draining":
                self._drain(outstanding, now_s)
                return
            if now_s - took_s < self._drained_s:
                return
        times = self._seen.get(kind)
        if times is None:
            times = self._seen[kind] = _Times()
        times.count += 1
        times.total_s += took_s
        self._note(outstanding, now_s)

    @property
    def since_s(self) -> float:
        """What was sent before this moment is no sample now."""
        if self._phase == "open":
            return -inf
        return inf if self._phase == "draining" else self._drained_s

    def samples(self, took: Iterable[tuple[str, int, float]], outstanding: int, count: int, now_s: float) -> None:
        """Commands came to their end together: what `sample` is for one.

        Args:
            took: of those that were sent after `since_s`: the kind, how many, and how long they took together.
            outstanding: how many commands were, these included.
            count: how many these are.
            now_s: the moment.
        """
        if self._phase == "draining":
            self._drain(outstanding - count + 1, now_s)
            return
        counted = 0
        for kind, many, total_s in took:
            times = self._seen.get(kind)
            if times is None:
                times = self._seen[kind] = _Times()
            times.count += many
            times.total_s += total_s
            counted += many
        if counted:
            self._note(outstanding, now_s, counted)

    def failure(self, outstanding: int, now_s: float) -> None:
        """A command was not answered in time: as bad as the longest time."""
        self._failures += 1
        if self._phase == "draining":
            self._drain(outstanding, now_s)
        else:
            self._note(outstanding, now_s)

    def _note(self, outstanding: int, now_s: float, count: int = 1) -> None:
        self._samples += count
        if outstanding > self._peak:  # noqa: PLR1730 - a call of `max` for each command
            self._peak = outstanding
        if now_s - self._window_s >= WINDOW_S and self._samples >= LEAST_SAMPLES:
            if self._phase == "measuring":
                self._measured(now_s)
            else:
                self._adapt(now_s)
            self._begin_window(now_s)

    def _begin_window(self, now_s: float) -> None:
        self._seen.clear()
        self._samples = self._failures = self._peak = 0
        self._window_s = now_s

    def _adapt(self, now_s: float) -> None:
        for kind, times in self._seen.items():
            base_s = self._base_s.setdefault(kind, times.mean_s)
            if times.mean_s < base_s or not self._is_pressed:
                # Less than ever; or there was nobody to wait for.
                self._base_s[kind] += (times.mean_s - base_s) * (1 if times.mean_s < base_s / 2 else _FOLLOW)
        if self._peak < self._limit / 2:
            return
        gradient = self._gradient()
        self._is_starting = self._is_starting and gradient == 1.0
        target = self._limit * gradient + sqrt(self._limit)
        new = self._limit * (1 - SMOOTHING) + target * SMOOTHING
        if self._is_starting:
            new = self._limit * START_GROWTH
        self._limit = min(max(new, self._least), self._most)
        self._move("draining" if now_s >= self._probe_s and self._is_pressed else "open")

    @property
    def _is_pressed(self) -> bool:
        """Whether commands may have waited for others. Half, since a part is kept for what is vital."""
        return self._peak >= self._least / 2

    def _gradient(self) -> float:
        total = 0.5 * self._failures
        for kind, times in self._seen.items():
            base_s = self._base_s[kind]
            bearable_s = max(base_s * TOLERANCE, base_s + EASE_S)
            total += times.count * min(max(bearable_s / max(times.mean_s, 1e-9), 0.5), 1.0)
        return total / self._samples

    def _drain(self, outstanding: int, now_s: float) -> None:
        """What ends now was sent before the limit was halved; once that has left, what is sent is measured."""
        if outstanding <= self.limit:
            self._move("measuring")
            self._drained_s = now_s
            self._begin_window(now_s)

    def _measured(self, now_s: float) -> None:
        for kind, times in self._seen.items():
            if times.count >= _LEAST_OF_KIND:
                base_s = self._base_s.get(kind, times.mean_s)
                # Down at once. Up in steps: at half of a limit that is too high there is a queue too.
                self._base_s[kind] = base_s + (times.mean_s - base_s) * (1 if times.mean_s < base_s else _RISE)
        self._move("open")
        self._probe_s = now_s + PROBE_EVERY_S


Sort = Literal["ordinary", "vital", "grouped"]


class Gate:
    """Lets commands pass while there is room.

    Args:
        limit: how much room there is.
    """

    def __init__(self, limit: AdaptiveLimit) -> None:
        self._limit = limit
        self.outstanding = 0
        self._of: dict[Sort, int] = {"ordinary": 0, "vital": 0, "grouped": 0}
        # What is kept for vital commands, what batches may have, and the limit for which that was found.
        self._kept = self._shared = self._for = 0

    def enter(self, sort: Sort = "ordinary") -> bool:
        """Let a command pass, if there is room for one of its sort."""
        limit = self._limit.limit
        if limit != self._for:
            self._follow(limit)
        of = self._of
        # What is kept is for vital commands that are not there yet; those that are have it already.
        missing = self._kept - of["vital"]
        if sort == "vital":
            if self.outstanding >= limit and missing <= 0:
                return False
        elif self.outstanding >= (limit - missing if missing > 0 else limit) or (
            sort == "grouped" and of[sort] >= self._shared
        ):
            return False
        self.outstanding += 1
        of[sort] += 1
        return True

    def enter_many(self, count: int, sort: Literal["ordinary", "grouped"] = "ordinary") -> int:
        """Let commands of one sort pass, as many of these as there is room for; how many do."""
        limit = self._limit.limit
        if limit != self._for:
            self._follow(limit)
        of = self._of
        room = limit - max(self._kept - of["vital"], 0) - self.outstanding
        if sort == "grouped":
            room = min(room, self._shared - of[sort])
        count = max(min(count, room), 0)
        self.outstanding += count
        of[sort] += count
        return count

    def room(self) -> int:
        """How many commands of batches could pass now, one after the other."""
        limit = self._limit.limit
        if limit != self._for:
            self._follow(limit)
        of = self._of
        missing = max(self._kept - of["vital"], 0)
        return max(min(limit - missing - self.outstanding, self._shared - of["grouped"]), 0)

    def _follow(self, limit: int) -> None:
        """Share another limit out."""
        self._for = limit
        self._kept = min(max(ceil(limit * VITAL_SHARE), _LEAST_VITAL), limit)
        self._shared = self._limit.grouped

    def leave(self, sort: Sort = "ordinary", count: int = 1) -> None:
        """Commands that had passed are over."""
        self.outstanding -= count
        self._of[sort] -= count
