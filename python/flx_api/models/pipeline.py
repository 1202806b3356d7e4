"""Pipelines: jobs of meltano.yml (read only) and those made through the API.

A pipeline's id is its name. `tasks` are the lines of a Meltano job: each is a list of block names, run one after the
other (`["tap-nyc", "target-jsonl"]`, `["dbt-duckdb:build"]`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from flx_api.models.listing import Limit

PipelineName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)")]
# Jobs of meltano.yml may bear any name that Meltano accepts, so look-ups take more than creation does.
PipelineId = Annotated[str, Meta(min_length=1, max_length=255)]
# A block is a plugin, a mapping, a job or plugin:command; never an option of the command line.
BlockName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,126}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,62})?$(?!\n)")
]
Task = Annotated[tuple[BlockName, ...], Meta(min_length=1, max_length=64)]
Tasks = Annotated[tuple[Task, ...], Meta(min_length=1, max_length=64)]
Description = Annotated[str, Meta(max_length=1000)]
Tag = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)")]
Tags = Annotated[tuple[Tag, ...], Meta(max_length=32)]
EnvironmentName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$(?!\n)")]
# Failures that another attempt may mend.
RetryOn = Literal["failed", "crashed", "timed_out"]
Retries = Annotated[int, Meta(ge=0, le=10, description="how many more attempts a run gets by itself")]
Backoff = Annotated[
    int, Meta(ge=0, le=3600, description="seconds before the second attempt; doubled before each further one")
]
RetryOns = Annotated[tuple[RetryOn, ...], Meta(max_length=3, description="the ends after which there is another one")]
USUAL_ENDS: tuple[RetryOn, ...] = ("failed", "crashed")


class RetryPolicy(msgspec.Struct, frozen=True):
    """Whether and when a failed attempt is followed by another one."""

    retries: Retries = 0
    backoff_s: Backoff = 10
    on: RetryOns = USUAL_ENDS


class PipelineCreateArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pipeline of the API's own: `tasks`, or `extractor` and `loader` (and perhaps `transform`) in their place."""

    name: PipelineName
    description: Description = ""
    tasks: Tasks | None = None
    extractor: BlockName | None = None
    loader: BlockName | None = None
    transform: BlockName | None = None
    environment: EnvironmentName | None = None
    tags: Tags = ()
    retries: Retries = 0
    retry_backoff_s: Backoff = 10
    retry_on: RetryOns = USUAL_ENDS


class PipelineUpdateArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to a pipeline; what is not given stays. `revision`, when given, must be the present one."""

    id: PipelineId
    description: Description | UnsetType = UNSET
    tasks: Tasks | UnsetType = UNSET
    environment: EnvironmentName | UnsetType | None = UNSET
    tags: Tags | UnsetType = UNSET
    retries: Retries | UnsetType = UNSET
    retry_backoff_s: Backoff | UnsetType = UNSET
    retry_on: RetryOns | UnsetType = UNSET
    revision: Annotated[int, Meta(ge=1)] | None = None


class PipelineIdArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pipeline."""

    id: PipelineId


class PipelineDeleteArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One pipeline. `revision`, when given, must be the present one."""

    id: PipelineId
    revision: Annotated[int, Meta(ge=1)] | None = None


class PipelineListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of pipelines, by name."""

    limit: Limit = 100
    cursor: str | None = None
    source: Literal["project", "api"] | None = None
    tag: str | None = None


class PipelineRunArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Start a pipeline. `timeout_s` ends each attempt as `timed_out`; `retries` stands for the pipeline's own."""

    id: PipelineId
    refresh: Literal["incremental", "full"] = "incremental"
    environment: EnvironmentName | None = None
    timeout_s: Annotated[int, Meta(ge=1, le=604_800)] | None = None
    retries: Retries | None = None


class Pipeline(msgspec.Struct, frozen=True):
    """A pipeline and how it did last."""

    id: str
    name: str
    source: Literal["project", "api"]
    description: str
    tasks: tuple[tuple[str, ...], ...]
    environment: str | None
    tags: tuple[str, ...]
    revision: int
    created_us: int | None = None
    updated_us: int | None = None
    created_by: str | None = None
    active_execution: str | None = None
    last_execution: str | None = None
    last_status: str | None = None
    last_finished_us: int | None = None
    retries: int = 0
    retry_backoff_s: int = 10
    retry_on: tuple[RetryOn, ...] = USUAL_ENDS

    @property
    def retry(self) -> RetryPolicy:
        """What becomes of failed attempts of its runs."""
        return RetryPolicy(self.retries, self.retry_backoff_s, self.retry_on)


class PipelinePage(msgspec.Struct, frozen=True):
    """A page of pipelines; `next_cursor` is None on the last."""

    items: tuple[Pipeline, ...]
    next_cursor: str | None
    total: int


class Deleted(msgspec.Struct, frozen=True):
    """What is no more."""

    id: str
    deleted: bool = True
