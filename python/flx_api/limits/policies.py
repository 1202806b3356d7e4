"""Rate limit policies: from settings to what the native core takes.

The windows themselves (true sliding ones) live in Rust; a policy is a name, whom it counts by, and its numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flx_api.config import RateLimit

# name, by, limit, window_ms, cost, shadow
NativePolicy = tuple[str, str, int, int, int, bool]


def native(policies: Iterable[RateLimit]) -> list[NativePolicy]:
    """The policies as `flx_api._core.Admission` takes them, in the order of the settings."""
    return [(policy.name, policy.by, policy.limit, policy.window_ms, policy.cost, policy.shadow) for policy in policies]
