"""Liveness and readiness.

Liveness says only that this process answers: nothing else may restart it. Readiness is the conjunction of the checks
that parts register beside their construction (`flx_api.dependencies`); each says in a sentence why it is not well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.models.envelope import CheckView, Readiness

if TYPE_CHECKING:
    from collections.abc import Callable


class Health:
    """The checks of one process. A check returns an empty string, or why its part is not well."""

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], str]] = {}
        self._notes: dict[str, Callable[[], str]] = {}

    def register(self, name: str, check: Callable[[], str], note: Callable[[], str] | None = None) -> None:
        """Let readiness depend on this check. `note` says more about a part, well or not."""
        self._checks[name] = check
        if note is not None:
            self._notes[name] = note

    def readiness(self) -> Readiness:
        """Ask all checks."""
        reasons = {name: check() for name, check in self._checks.items()}
        notes = {name: note() for name, note in self._notes.items()}
        return Readiness(
            status="not_ready" if any(reasons.values()) else "ready",
            reasons=tuple(f"{name}: {reason}" for name, reason in reasons.items() if reason),
            checks={
                name: CheckView(ok=not reason, reason=reason, note=notes.get(name, ""))
                for name, reason in reasons.items()
            },
        )
