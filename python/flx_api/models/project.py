"""The Meltano project as the API shows it: no configuration values, which may be secrets."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flx_api.errors import FieldError


class NoArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command without arguments."""


class Project(msgspec.Struct, frozen=True):
    """The project in short; `revision` is a hash over its files."""

    id: str
    revision: str
    default_environment: str | None
    environments: tuple[str, ...]
    plugins: int
    jobs: int
    schedules: int


class ProjectValidation(msgspec.Struct, frozen=True):
    """What is wrong with the project's files, field by field; empty when nothing is."""

    valid: bool
    errors: tuple[FieldError, ...]


class PluginListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Plugins, of one type if given."""

    type: (
        Literal["extractors", "loaders", "mappers", "utilities", "transformers", "transforms", "orchestrators", "files"]
        | None
    ) = None


class PluginView(msgspec.Struct, frozen=True):
    """One plugin of the project; `settings` are names only."""

    type: str
    name: str
    variant: str | None
    namespace: str | None
    inherit_from: str | None
    pip_url: str | None
    executable: str | None
    capabilities: tuple[str, ...]
    settings: tuple[str, ...]
    commands: tuple[str, ...]
    installed: bool


class PluginPage(msgspec.Struct, frozen=True):
    """All plugins of the project."""

    items: tuple[PluginView, ...]


class EnvironmentView(msgspec.Struct, frozen=True):
    """One environment of the project."""

    name: str
    default: bool


class EnvironmentPage(msgspec.Struct, frozen=True):
    """All environments of the project."""

    items: tuple[EnvironmentView, ...]


class EchoArgs(msgspec.Struct, frozen=True):
    """Anything; the command returns its arguments as they came."""


class CommandNameArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One command."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
