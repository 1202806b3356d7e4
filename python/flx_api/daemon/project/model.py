"""The Meltano project as the daemon knows it: frozen values, made by `parse`, kept by `cache`.

Strategy: one immutable `ProjectModel` per revision of the project's files. Everything a reader asks is a look-up in it;
what takes work (blocks, state ids) is computed from it by the pure functions of `blocks`.

Rules:
- Pure and frozen: no file, clock or environment is looked at from here.
- Configuration may hold secrets. It is in the model because runs need it, and no `repr` shows it; what is sent to a
  client must be redacted first.
- Names mean what they mean to Meltano: of two things with one name the first counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from flx_api.daemon.project.blocks import Block, SingerBlock, expand
from flx_api.daemon.project.settings import Setting, env_names, flatten
from flx_api.errors import NotFound
from flx_api.models.pipeline import RetryPolicy

# In this order Meltano looks for a plugin by name alone.
PLUGIN_TYPES = (
    "extractors",
    "loaders",
    "transforms",
    "orchestrators",
    "transformers",
    "files",
    "utilities",
    "mappers",
    "mappings",
)
NOTHING: Mapping[str, Any] = MappingProxyType({})
_EXPANDED_MAX = 256

Source = Literal["custom", "lock", "inherited", "hub", "broken"]
"""Where a plugin's definition comes from: its own entry, its lock file, another plugin of the project; `hub` means that
there is no lock file and Meltano would ask the Hub, `broken` that it cannot be resolved (`Plugin.problem` says why)."""


class SettingModel(msgspec.Struct, frozen=True):
    """A setting of a plugin; `env` names every variable through which it can be set."""

    name: str
    kind: str | None
    env: tuple[str, ...]
    sensitive: bool
    custom: bool = False


class Command(msgspec.Struct, frozen=True):
    """A command of a plugin: `meltano invoke plugin:name`."""

    args: str = ""
    description: str | None = None
    executable: str | None = None


class Plugin(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A plugin of the project with everything it inherits."""

    type: str
    name: str
    variant: str | None = None
    inherit_from: str | None = None
    namespace: str | None = None
    pip_url: str | None = None
    executable: str | None = None
    python: str | None = None
    label: str | None = None
    description: str | None = None
    capabilities: tuple[str, ...] = ()
    settings: tuple[SettingModel, ...] = ()
    extra_settings: tuple[SettingModel, ...] = ()
    config: Mapping[str, Any] = NOTHING
    extras: Mapping[str, Any] = NOTHING
    select: tuple[str, ...] = ()
    commands: Mapping[str, Command] = NOTHING
    env: tuple[str, ...] = ()
    mappings: tuple[str, ...] = ()
    source: Source = "custom"
    problem: str | None = None
    parents: tuple[Plugin, ...] = ()
    suffix_variables: Mapping[str, str] = NOTHING

    @property
    def is_custom(self) -> bool:
        """Whether the definition stands in meltano.yml itself."""
        return self.source == "custom"

    @cached_property
    def settings_by_name(self) -> Mapping[str, SettingModel]:
        """Settings and extras by name."""
        return MappingProxyType({setting.name: setting for setting in (*self.extra_settings, *self.settings)})

    def __repr__(self) -> str:
        """Type and name only: the configuration may hold secrets."""
        return f"<Plugin {self.type}/{self.name}>"


class Job(msgspec.Struct, frozen=True):
    """A job: each task is one run line, split in block names. `problem` says why it cannot be run, if it cannot.

    `retry` is what its `annotations.flx` says about failed attempts.
    """

    name: str
    tasks: tuple[tuple[str, ...], ...]
    problem: str | None = None
    retry: RetryPolicy = RetryPolicy()

    @property
    def blocks(self) -> tuple[str, ...]:
        """The block names of all tasks, in order."""
        return tuple(name for task in self.tasks for name in task)


class Schedule(msgspec.Struct, frozen=True):
    """A schedule of a job, or in the old form of an extractor and a loader.

    `cron` is the expression behind the interval; None for schedules that only a person starts (`@once`, none at all).
    As in Meltano its text is not judged here. `env` are the names of `variables`, which its runs get.
    """

    name: str
    interval: str | None
    cron: str | None
    job: str | None = None
    extractor: str | None = None
    loader: str | None = None
    transform: str | None = None
    start_date: str | None = None
    env: tuple[str, ...] = ()
    variables: Mapping[str, str] = NOTHING

    def __repr__(self) -> str:
        """Name and interval only: the variables may hold secrets."""
        return f"<Schedule {self.name} {self.interval}>"


class Override(msgspec.Struct, frozen=True):
    """What an environment changes at one plugin: names of settings (extras with an underscore) and of variables."""

    type: str
    name: str
    keys: tuple[str, ...]
    env: tuple[str, ...] = ()
    config: Mapping[str, Any] = NOTHING

    def __repr__(self) -> str:
        """Without values: they may be secrets."""
        return f"<Override {self.type}/{self.name} {self.keys}>"


class Environment(msgspec.Struct, frozen=True):
    """An environment; `state_id_suffix` is as written, with its variables."""

    name: str
    overrides: tuple[Override, ...] = ()
    env: tuple[str, ...] = ()
    state_id_suffix: str | None = None

    def override(self, plugin_type: str, name: str) -> Override | None:
        """What this environment changes at a plugin."""
        return next((item for item in self.overrides if (item.type, item.name) == (plugin_type, name)), None)


class ProjectModel(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A Meltano project at one revision.

    `default_environment` is what Meltano activates when a run names none: MELTANO_ENVIRONMENT of the process or the
    `.env` file, else the setting; None is none. `database_uri` is what Meltano's own setting resolves to, None for its
    default; `state_backend_uri` likewise. `revision` changes with the content of any of `files`, which are relative to
    `root`.
    """

    root: Path
    revision: str
    files: tuple[str, ...]
    project_id: str | None = None
    default_environment: str | None = None
    environments: tuple[Environment, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    jobs: tuple[Job, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    database_uri: str | None = None
    state_backend_uri: str | None = None
    requires_meltano: str | None = None
    dotenv_names: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    run_suffix: str | None = None
    suffix_variables: Mapping[str, str] = NOTHING

    def plugin(self, plugin_type: str, name: str) -> Plugin:
        """The plugin of this type and name.

        Raises:
            NotFound: there is none; the error suggests near names.
        """
        try:
            return self.plugins_by_name[plugin_type, name]
        except KeyError:
            known = [plugin.name for plugin in self.plugins if plugin.type == plugin_type]
            raise _not_found(name, "plugin", known) from None

    def job(self, name: str) -> Job:
        """The job of this name.

        Raises:
            NotFound: there is none; the error suggests near names.
        """
        try:
            return self.jobs_by_name[name]
        except KeyError:
            raise _not_found(name, "job", [job.name for job in self.jobs]) from None

    def schedule(self, name: str) -> Schedule:
        """The schedule of this name.

        Raises:
            NotFound: there is none; the error suggests near names.
        """
        try:
            return self.schedules_by_name[name]
        except KeyError:
            raise _not_found(name, "schedule", [schedule.name for schedule in self.schedules]) from None

    def environment(self, name: str) -> Environment:
        """The environment of this name.

        Raises:
            NotFound: there is none; the error suggests near names.
        """
        try:
            return self.environments_by_name[name]
        except KeyError:
            known = [environment.name for environment in self.environments]
            raise _not_found(name, "environment", known) from None

    def blocks(
        self, names: Sequence[str], environment: str | None = None, suffix: str | None = None
    ) -> tuple[Block, ...]:
        """What `meltano run NAMES` would run, in order.

        Args:
            names: jobs, plugins, mappings and `plugin:command`.
            environment: the active environment; None means none, not the default one.
            suffix: the value of `--state-id-suffix`.

        Raises:
            ValidationFailed: Meltano would refuse this; the field is `blocks[i]` or `environment`.
        """
        asked = (tuple(names), environment, suffix)
        found = self._expanded.get(asked)
        if found is None:
            if len(self._expanded) >= _EXPANDED_MAX:
                self._expanded.clear()
            found = self._expanded[asked] = expand(self, names, environment, suffix)
        return found

    @cached_property
    def _expanded(self) -> dict[tuple[tuple[str, ...], str | None, str | None], tuple[Block, ...]]:
        """Answers of `blocks`: a model is of one revision, so they stay true; the same few pipelines are asked for."""
        return {}

    def state_ids(
        self, names: Sequence[str], environment: str | None = None, suffix: str | None = None
    ) -> tuple[str, ...]:
        """The state ids such a run reads and writes, in order; none without an environment.

        Raises:
            ValidationFailed: as `blocks`.
        """
        return tuple(
            block.state_id
            for block in self.blocks(names, environment, suffix)
            if isinstance(block, SingerBlock) and block.state_id is not None
        )

    def settings_env_names(self) -> frozenset[str]:
        """Every environment variable through which a setting of one of the plugins can be set."""
        return self._settings_env_names

    @cached_property
    def _settings_env_names(self) -> frozenset[str]:
        return frozenset(
            name
            for plugin in self.plugins
            for setting in (*plugin.settings, *plugin.extra_settings)
            for name in setting.env
        ) | frozenset(
            name
            for plugin in self.plugins
            for key in self._undeclared(plugin)
            for name in env_names(Setting(key), (plugin.name, plugin.namespace), own_names=False)
        )

    def _undeclared(self, plugin: Plugin) -> Iterator[str]:
        """Settings that Meltano makes up while an environment that sets them is active, or while a mapping runs."""
        for environment in self.environments:
            if override := environment.override(plugin.type, plugin.name):
                yield from override.keys
        if plugin.type == "mappers":
            mappings = plugin.extras.get("mappings", ())
            for key, _ in (item for mapping in mappings for item in flatten(mapping.get("config") or {})):
                yield key
            if mappings:
                yield "_mapping"

    @cached_property
    def plugins_by_name(self) -> Mapping[tuple[str, str], Plugin]:
        """Plugins by type and name."""
        return MappingProxyType({(plugin.type, plugin.name): plugin for plugin in reversed(self.plugins)})

    @cached_property
    def jobs_by_name(self) -> Mapping[str, Job]:
        """Jobs by name."""
        return MappingProxyType({job.name: job for job in reversed(self.jobs)})

    @cached_property
    def schedules_by_name(self) -> Mapping[str, Schedule]:
        """Schedules by name."""
        return MappingProxyType({schedule.name: schedule for schedule in reversed(self.schedules)})

    @cached_property
    def environments_by_name(self) -> Mapping[str, Environment]:
        """Environments by name."""
        return MappingProxyType({environment.name: environment for environment in reversed(self.environments)})

    @cached_property
    def runnable(self) -> Mapping[str, Plugin]:
        """What a block's name finds: plugins of any type and mappings, in Meltano's order; the first counts."""
        found: dict[str, Plugin] = {}
        for plugin in self.plugins:
            for name in (plugin.name, *plugin.mappings):
                found.setdefault(name, plugin)
        return MappingProxyType(found)

    @cached_property
    def ambiguous_mappings(self) -> frozenset[str]:
        """Names of mappings that occur more than once."""
        names = [name for plugin in self.plugins for name in plugin.mappings]
        return frozenset(name for name in names if names.count(name) > 1)

    def __repr__(self) -> str:
        """Revision and sizes only: the content may hold secrets."""
        return f"<ProjectModel {self.revision} plugins={len(self.plugins)} jobs={len(self.jobs)}>"


def _not_found(name: str, kind: str, known: Sequence[str]) -> NotFound:
    return NotFound(f"The project has no such {kind}.", suggestions=get_close_matches(name, dict.fromkeys(known), 3))
