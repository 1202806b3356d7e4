"""The rules of admission, one after another, over exact logs: the judge of the native core."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.small_admission import Policy

MS = 10**6
EXACT = 64
"""Limits up to this one are exact logs."""


class Who(NamedTuple):
    """A principal."""

    subject: str
    tenant: str | None


class Ask(NamedTuple):
    """One request: what it passes, who asks, and what else is wrong with it."""

    tolls: list[tuple[int, int]]
    address: str
    api_key: str | None
    who: Who | None
    token_fault: str | None
    later_fault: str | None
    now_ns: int


class Window(NamedTuple):
    """One window that a request passes."""

    policy: int
    cost: int
    key: str


def address_key(text: str) -> str:
    """What a client's address is counted under."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip)


class Twin:
    """Every unit that was ever charged, and the rules.

    A window with a large limit counts its oldest part in full: there it may refuse for one part in 64 longer than it
    has to. Only then are two answers right, and the twin takes over the one that was given.
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = policies
        self.charged: dict[tuple[int, str], list[int]] = {}

    def used(self, window: Window, now_ns: int, span_ns: int) -> list[int]:
        """The times of all units within the last `span_ns`."""
        return [at for at in self.charged.get((window.policy, window.key), []) if now_ns - at < span_ns]

    def fits(self, window: Window, now_ns: int) -> set[bool]:
        """What the window may say."""
        policy = self.policies[window.policy]
        span = policy.window_ms * MS
        if len(self.used(window, now_ns, span)) + window.cost > policy.limit:
            return {False}
        longer = span if policy.limit <= EXACT else span * 65 // 64 + 1
        return {True} if len(self.used(window, now_ns, longer)) + window.cost <= policy.limit else {True, False}

    def windows(self, ask: Ask, *, closed: bool) -> list[Window]:
        """What needs no principal, or what does, in their order."""
        found = []
        for policy, cost in ask.tolls:
            by = self.policies[policy].by
            if (by in {"subject", "tenant"}) != closed:
                continue
            if by == "ip":
                found.append(Window(policy, cost, address_key(ask.address)))
            elif by == "api_key" and ask.api_key is not None:
                found.append(Window(policy, cost, ask.api_key))
            elif by == "subject" and ask.who is not None:
                found.append(Window(policy, cost, repr(tuple(ask.who))))
            elif by == "tenant" and ask.who is not None:
                found.append(Window(policy, cost, ask.who.tenant or ""))
        return found

    def may_refuse(self, windows: list[Window], now_ns: int) -> set[bool]:
        """Whether one of these refuses."""
        said = [self.fits(window, now_ns) for window in windows if not self.policies[window.policy].shadow]
        return {False} if all(it == {True} for it in said) else {True} if {False} in said else {True, False}

    def reasons(self, ask: Ask) -> set[str | None]:
        """Every right answer."""
        refuses = self.may_refuse(self.windows(ask, closed=False), ask.now_ns)
        found: set[str | None] = {"rate_limited"} if True in refuses else set()
        if False in refuses and ask.token_fault is None:
            refuses = self.may_refuse(self.windows(ask, closed=True), ask.now_ns)
            found |= {"rate_limited"} if True in refuses else set()
        if False in refuses:
            found.add(ask.token_fault or ask.later_fault)
        return found

    def take(self, ask: Ask, reason: str | None, shadows: set[int]) -> None:
        """Charge what the given answer means. `shadows` said that they would have refused."""
        opened = self.windows(ask, closed=False)
        closed = [] if ask.token_fault is not None else self.windows(ask, closed=True)
        if reason == "rate_limited":
            return
        for window in [*opened, *closed]:
            if self.policies[window.policy].shadow:
                assert (window.policy not in shadows) in self.fits(window, ask.now_ns), "a shadow has judged wrongly"
                if window.policy in shadows:
                    continue
            self.charged.setdefault((window.policy, window.key), []).extend([ask.now_ns] * window.cost)

    def quota(self, ask: Ask) -> tuple[int, int, int] | None:
        """Policy, units left and nanoseconds, as headers tell; before `take`, and where all windows are exact."""
        opened = self.windows(ask, closed=False)
        windows = opened
        if self.may_refuse(opened, ask.now_ns) == {False} and ask.token_fault is None:
            windows = [*opened, *self.windows(ask, closed=True)]
        windows = [window for window in windows if not self.policies[window.policy].shadow]
        refusing = [window for window in windows if self.fits(window, ask.now_ns) == {False}]
        told = [self._told(window, ask.now_ns) for window in (refusing or windows)]
        if not told:
            return None
        # The first of those that wait the longest, or that have the least left.
        return max(told, key=lambda it: it[2]) if refusing else min(told, key=lambda it: it[1])

    def _told(self, window: Window, now_ns: int) -> tuple[int, int, int]:
        policy = self.policies[window.policy]
        span = policy.window_ms * MS
        times = sorted(self.used(window, now_ns, span))
        over = len(times) + window.cost - policy.limit
        if over > 0:
            return window.policy, policy.limit - len(times), times[over - 1] + span - now_ns
        return window.policy, -over, min([*times, now_ns]) + span - now_ns
