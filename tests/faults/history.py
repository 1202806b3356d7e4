"""What clients saw and what there is afterwards: a checker of "accepted once".

Strategy: each try of a client is one `Seen`: which key, and what it was told. Effects are then counted by key,
from the database itself. The rules are few enough to be read as the promise itself.

Rules:
- Acknowledged once: a key that was acknowledged has exactly one effect, whatever was killed.
- At most once: a key that was never acknowledged has one effect or none.
- One answer: all acknowledgements of a key name the same effect, and it is the one that there is.
- Replays say so: of all acknowledgements of a key at most one is not a replay.
- What was refused and never acknowledged has no effect.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Seen(NamedTuple):
    """How one try ended: acknowledged with an effect, refused for good, or nobody knows."""

    key: str
    outcome: Literal["acknowledged", "refused", "unknown"]
    effect: str = ""
    replayed: bool = False


def faults(history: Iterable[Seen], effects: Mapping[str, Sequence[str]]) -> list[str]:
    """Every broken promise, in words; empty when all were kept.

    Args:
        history: all tries of all clients.
        effects: what there is by key, one entry for each time that it happened.
    """
    tries: dict[str, list[Seen]] = defaultdict(list)
    for seen in history:
        tries[seen.key].append(seen)
    found = [f"{key}: happened and nobody asked for it" for key in effects if key not in tries]
    for key, all_seen in tries.items():
        happened = effects.get(key, ())
        acknowledged = [seen for seen in all_seen if seen.outcome == "acknowledged"]
        if len(happened) > 1:
            found.append(f"{key}: happened {len(happened)} times")
        if acknowledged and not happened:
            found.append(f"{key}: was acknowledged and is lost")
        told = Counter(seen.effect for seen in acknowledged)
        if len(told) > 1:
            found.append(f"{key}: was answered in {len(told)} ways")
        if acknowledged and happened and set(told) != set(happened):
            found.append(f"{key}: was answered with something else than what happened")
        if sum(not seen.replayed for seen in acknowledged) > 1:
            found.append(f"{key}: two answers call themselves the first")
        if happened and all(seen.outcome == "refused" for seen in all_seen):
            found.append(f"{key}: was refused and happened")
    return found
