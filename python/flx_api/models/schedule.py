"""Schedules of meltano.yml: when they fire, and what became of it. All times are microseconds since the epoch."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flx_api.models.pipeline import EnvironmentName, Retries

# Schedules bear any name that Meltano accepts.
ScheduleName = Annotated[str, Meta(min_length=1, max_length=255)]
Coming = Annotated[int, Meta(ge=0, le=100)]


class ScheduleListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All schedules, each with its next `coming` fire times."""

    coming: Coming = 3


class ScheduleGetArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One schedule with its next `coming` fire times."""

    name: ScheduleName
    coming: Coming = 10


class ScheduleNameArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One schedule."""

    name: ScheduleName


class ScheduleRunArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Run what a schedule runs, now. `timeout_s` ends each attempt as `timed_out`; `retries` as for `pipeline.run`."""

    name: ScheduleName
    refresh: Literal["incremental", "full"] = "incremental"
    environment: EnvironmentName | None = None
    timeout_s: Annotated[int, Meta(ge=1, le=604_800)] | None = None
    retries: Retries | None = None


class Schedule(msgspec.Struct, frozen=True):
    """A schedule and how it did last.

    `cron` is what fires it, in `timezone`; None for one that only a person starts. `problem` says why it never fires
    although it should. `pipeline` is what its executions bear. `next_us` are the next fire times, `next_local` the same
    by the zone's clock; none while it is disabled. `env` are names only.
    """

    name: str
    enabled: bool
    interval: str | None
    cron: str | None
    timezone: str
    pipeline: str
    job: str | None
    extractor: str | None
    loader: str | None
    transform: str | None
    start_date: str | None
    env: tuple[str, ...]
    problem: str | None
    next_us: tuple[int, ...]
    next_local: tuple[str, ...]
    last_fired_us: int | None = None
    last_execution: str | None = None
    last_skipped_us: int | None = None
    last_skip_reason: str | None = None
    last_missed_us: int | None = None


class SchedulePage(msgspec.Struct, frozen=True):
    """All schedules in the order of meltano.yml; `firing` says whether this service fires them at all."""

    items: tuple[Schedule, ...]
    timezone: str
    firing: bool
