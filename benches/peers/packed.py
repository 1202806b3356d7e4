"""What an application does that packs events itself: the events of a window in one message, in the words of `flx.v1`.

Strategy: `Topic` numbers the events of one topic and writes what has become due as one batch; a command line says what
is published, as for `bare-sender` (benches/native). Both are used by applications on servers that send what they are
given (Granian, wse-server).
"""

from __future__ import annotations

from typing import Final, NamedTuple

NATIVE: Final = "native"


class Command(NamedTuple):
    """What is to be published: `name` is shared, unshared or lone; `topics` are those of unshared events.

    With `native` at the end of its line ours makes unshared events where its hub is, and not in Python.
    """

    name: str
    per_s: float
    count: int
    size: int
    window_s: float
    topics: int = 0
    native: bool = False

    @classmethod
    def parse(cls, line: str) -> Command:
        """A line as `bare-sender` reads it.

        Raises:
            ValueError: it is none.
        """
        name, *words = line.split()
        native = words[-1:] == [NATIVE]
        if native:
            words.pop()
        if name == "lone":
            count, every_ms, size = map(float, words)
            return cls(name, 1000 / every_ms, int(count), int(size), 0.001)
        per_s, seconds, size, *more = map(float, words)
        if name == "unshared":
            return cls(name, per_s, int(per_s * seconds), int(size), 0.001, int(more[0]), native)
        return cls(name, per_s, int(per_s * seconds), int(size), more[0] / 1000)

    def due(self, elapsed_s: float) -> int:
        """How many events are due after so long."""
        return min(self.count, int(elapsed_s * self.per_s) + 1)

    def at_us(self, began_us: int, number: int) -> int:
        """When an event is due."""
        return began_us + int(number / self.per_s * 1e6)


class Topic:
    """The events of one topic."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.count = 0

    def batch(self, stamps: list[int], size: int) -> str:
        """The next events, one for each time at which one was due, as one message."""
        first, prev = self.count + 1, self.count
        events = []
        for at_us in stamps:
            head = f'{{"at":{at_us},"n":{self.count},"data":"'
            events.append(f'{head}{"x" * max(0, size - len(head) - 2)}"}}')
            self.count += 1
        numbers = f"{first}" if first == self.count else f"{first},{self.count}"
        head = f'{{"t":"{self._name}","e":"packed","s":[{numbers}],"prev":{prev},"pos":"","ts":0,"d":['
        return f"{head}{','.join(events)}]}}"
