"""A rate limit policy, as settings say it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)")]

_WINDOW = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_WINDOW_MS = 366 * _UNIT_MS["d"]


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most `limit` cost in any `window`."""

    limit: Annotated[int, Meta(ge=1, le=1_000_000_000)]
    window: str


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rate limit policy: at most `limit` cost in any `window`, counted by `by`.

    `windows` in place of `limit` and `window` gives several at once. `routes` and `commands` are patterns (`*`) of
    templates and names; without them a policy is about every request. `costs` is by pattern of commands, the first that
    fits; `cost` is for the rest. `mode` matters with Redis only; `shadow` counts and reports without refusing.
    """

    name: Name
    by: Literal["ip", "subject", "tenant", "api_key"]
    limit: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    window: str | None = None
    windows: tuple[Window, ...] = ()
    routes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    cost: Annotated[int, Meta(ge=1)] = 1
    costs: dict[str, Annotated[int, Meta(ge=1)]] = {}
    mode: Literal["fast", "strict"] = "fast"
    shadow: bool = False

    @property
    def each_window(self) -> tuple[tuple[str, int, int], ...]:
        """Name, limit and milliseconds of each window. Raises ValueError when they are not given as they should be."""
        if (self.limit is None) != (self.window is None) or (self.limit is None) == (not self.windows):
            msg = "window: a policy has limit and window, or windows"
            raise ValueError(msg)
        windows = self.windows or (Window(self.limit or 0, self.window or ""),)
        names = [self.name, *(f"{self.name}-{window.window}" for window in windows[1:])]
        try:
            lengths = [duration_ms(window.window) for window in windows]
        except ValueError as error:
            msg = f"window: {error}"
            raise ValueError(msg) from None
        if max(lengths) > _LONGEST_WINDOW_MS:
            msg = "window: is longer than 366 days"
            raise ValueError(msg)
        limits = [window.limit for window in windows]
        return tuple(zip(names, limits, lengths, strict=True))


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `500ms`, `60s`, `5m`, `1h` or `1d`. Raises ValueError for anything else."""
    found = _WINDOW.fullmatch(text)
    if not found or int(found[1]) == 0:
        msg = "a duration is a whole number and a unit, such as 500ms, 60s, 5m, 1h or 1d"
        raise ValueError(msg)
    return int(found[1]) * _UNIT_MS[found[2]]
