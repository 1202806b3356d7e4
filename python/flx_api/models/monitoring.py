"""The state of the service itself."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class SystemInfo(msgspec.Struct, frozen=True):
    """Versions and identity; nothing that changes while the daemon lives."""

    version: str
    meltano_version: str | None
    python: str
    project_id: str
    epoch: str
    started_us: int


class Component(msgspec.Struct, frozen=True):
    """One part and whether it works."""

    healthy: bool
    message: str = ""


class SystemStatus(msgspec.Struct, frozen=True):
    """How the daemon is."""

    status: Literal["healthy", "degraded", "starting", "stopping"]
    components: dict[str, Component]
    active_runs: int
    queued_runs: int
    run_slots: int
    uptime_s: float
    journal_seq: int


class CommandView(msgspec.Struct, frozen=True):
    """A command in a list."""

    name: str
    sentence: str
    mode: str
    idempotency: str
    permission: str


class CommandPage(msgspec.Struct, frozen=True):
    """All commands."""

    items: tuple[CommandView, ...]


class CommandDescription(msgspec.Struct, frozen=True):
    """A command with the JSON Schemas of its arguments and its result."""

    name: str
    sentence: str
    mode: str
    idempotency: str
    permission: str
    args_schema: dict[str, Any]
    result_schema: dict[str, Any]
