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


class PipelineUpdateArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to a pipeline; what is not given stays. `revision`, when given, must be the present one."""

    id: PipelineId
    description: Description | UnsetType = UNSET
    tasks: Tasks | UnsetType = UNSET
    environment: EnvironmentName | UnsetType | None = UNSET
    tags: Tags | UnsetType = UNSET
    revision: Annotated[int, Meta(ge=1)] | None = None


class PipelineIdArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pipeline."""

    id: PipelineId


class PipelineListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of pipelines, by name."""

    limit: Limit = 100
    cursor: str | None = None
    source: Literal["project", "api"] | None = None
    tag: str | None = None


class PipelineRunArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Start a pipeline. `timeout_s` ends the run as `timed_out`."""

    id: PipelineId
    refresh: Literal["incremental", "full"] = "incremental"
    environment: EnvironmentName | None = None
    timeout_s: Annotated[int, Meta(ge=1, le=604_800)] | None = None


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


class PipelinePage(msgspec.Struct, frozen=True):
    """A page of pipelines; `next_cursor` is None on the last."""

    items: tuple[Pipeline, ...]
    next_cursor: str | None
    total: int


class Deleted(msgspec.Struct, frozen=True):
    """What is no more."""

    id: str
    deleted: bool = True
