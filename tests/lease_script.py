"""The naive twin of `limits/lua/sync.lua`: the same answers from plain dictionaries, on a clock that a test sets.

Strategy: it takes the very bytes that a node sends (a RESP command) and gives the very bytes that the script answers,
so the simulator drives real `LeaseBook`s and `tests/contracts/test_lease_script.py` can hold both against each other.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

DONE, NEW_EPOCH, STALE, DOUBT = range(4)
SILENT_US = 10_000_000
DOUBT_US = 1_000_000
RING = 65


def words(command: bytes) -> list[bytes]:
    """The words of a RESP command."""
    count, _, rest = command.partition(b"\r\n")
    found = []
    for _ in range(int(count[1:])):
        length, _, rest = rest.partition(b"\r\n")
        size = int(length[1:])
        found.append(rest[:size])
        rest = rest[size + 2 :]
    assert not rest
    return found


@dataclass
class Lease:
    """What one node holds of a key."""

    spent: int
    units: int
    expiry: int


@dataclass
class Key:
    """What is remembered of a key."""

    epoch: int
    ring: dict[int, int] = field(default_factory=dict)
    leases: dict[bytes, Lease] = field(default_factory=dict)
    gone_at: float = math.inf


class Script:
    """A Redis that knows one script."""

    def __init__(self) -> None:
        self.wipe()

    def wipe(self) -> None:
        """Begin empty."""
        self.fleet: dict[str, int] = {}
        self.seed = b""
        self.sure = False
        self.nodes: dict[bytes, int] = {}
        self.calls: dict[bytes, int] = {}
        self.keys: dict[bytes, Key] = {}

    def execute(self, command: bytes, wall_us: int) -> bytes:  # noqa: C901, PLR0912, PLR0915 - in the script's order
        """The answer to a node's call, at this time of the server's clock."""
        verb, _sha, count, *rest = words(command)
        assert verb == b"EVALSHA"
        names, (blob,) = rest[: int(count)], rest[int(count) :]
        form = struct.Struct("<8sQQIqB16sIH")
        node, call, epoch, clock, step, flags, seed, grace_us, policies = form.unpack_from(blob)
        at = form.size
        fresh, bye, judged = flags % 2 == 1, flags % 4 >= 2, flags >= 4
        fleet = self.fleet
        began = not fleet
        if began:
            fleet |= {"epoch": wall_us, "clock": 0, "offset": 0, "last": 0, "grace": wall_us + grace_us}
            self.seed, self.sure = seed, not fresh
        elif step != 0 and clock == fleet["clock"] and epoch == fleet["epoch"]:
            fleet["offset"] -= step
            fleet["clock"] += 1
            judged = True
            if fleet["last"] > wall_us + fleet["offset"] + DOUBT_US / 4:
                fleet["last"] = 0
                fleet["epoch"] = max(wall_us, fleet["epoch"] + 1)
                fleet["grace"] = wall_us + fleet["offset"] + grace_us
        now, last = max(wall_us + fleet["offset"], fleet["last"]), fleet["last"]
        doubt = not began and last > 0 and now - last > DOUBT_US and not judged
        if not doubt:
            fleet["last"] = now
        grace_left = max(0, min(fleet["grace"] - now, grace_us))
        if not fresh and not self.sure:
            if grace_left > 0:
                self.seed = seed
            self.sure = True

        def head(status: int) -> bytes:
            return struct.pack(
                "<BQIQII16s",
                status, fleet["epoch"], fleet["clock"], now, max(1, len(self.nodes)), grace_left, self.seed,
            )  # fmt: skip

        if node in self.calls and call <= self.calls[node]:
            return head(STALE)
        self.calls[node] = call
        if doubt and epoch == fleet["epoch"]:
            return head(DOUBT)
        if bye:
            self.nodes.pop(node, None)
        else:
            self.nodes[node] = now
        for silent in [name for name, seen in self.nodes.items() if seen <= now - SILENT_US]:
            del self.nodes[silent]
            self.calls.pop(silent, None)
        if epoch != fleet["epoch"] or began or seed != self.seed:
            return head(NEW_EPOCH)

        rules = []
        for _ in range(policies):
            rules.append(struct.unpack_from("<IQQB", blob, at))
            at += 21
        answer = head(DONE)
        for name in names[3:]:
            report = struct.unpack_from("<HQIIIIIQB", blob, at)
            at += 39
            told = []
            for _ in range(report[8]):
                told.append(struct.unpack_from("<BI", blob, at))
                at += 5
            grants = grace_left == 0 and not bye
            answer += self._settle(name, node, rules[report[0] - 1], report, told, now, wall_us, grants=grants)
        assert at == len(blob)
        return answer

    def _settle(
        self,
        name: bytes,
        node: bytes,
        rule: tuple[int, int, int, int],
        report: tuple[int, ...],
        told: list[tuple[int, int]],
        now: int,
        wall_us: int,
        *,
        grants: bool,
    ) -> bytes:
        limit, window, lease, fast = rule
        _, spent, units_told, keep, need, extra, unit, newest, _ = report
        slot_us = math.ceil(window / 64)
        slot = now // slot_us
        key = self.keys.get(name)
        if key is None or key.epoch != self.fleet["epoch"] or key.gone_at <= wall_us:
            key = self.keys[name] = Key(self.fleet["epoch"])
        key.ring = {when: units for when, units in key.ring.items() if when > slot - RING}
        mine = key.leases.pop(node, None)
        key.leases = {who: held for who, held in key.leases.items() if held.expiry + window > now}
        others = sum(held.units for held in key.leases.values())

        skip = max(spent - units_told, mine.spent if mine else 0) - (spent - units_told)
        for back, units in told:
            skipped = min(skip, units)
            skip -= skipped
            when = min(newest - back, slot)
            if units > skipped and when > slot - RING:
                key.ring[when] = key.ring.get(when, 0) + units - skipped

        free = max(0, limit - sum(key.ring.values()) - others - keep)
        grant = 0
        if grants:
            grant = min(need, free) // unit * unit
            rest = free - grant
            share = rest // (2 * max(1, len(self.nodes)))
            if fast and share == 0 and rest > 0:
                share = 1
            grant += min(extra, share) // unit * unit
        leaving = [(when + RING) * slot_us for when in key.ring]
        leaving += [held.expiry + window for held in key.leases.values() if held.units > 0]
        retry = max(0, min(leaving) - now) if leaving else 0
        if others > 0:
            retry = min(retry, math.floor(now / slot_us + 1.5) * slot_us - now)
        key.leases[node] = Lease(spent, keep + grant, now + lease)
        key.gone_at = wall_us + 1000 * (math.ceil(2 * (window + lease) / 1000) + 10_000)
        return struct.pack("<IIQ", grant, free - grant, retry)
