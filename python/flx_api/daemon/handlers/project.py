"""`project.*`, `plugin.list` and `environment.list`: the Meltano project as it is on disk now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.daemon.executions.outcome import without_url_credentials
from flx_api.errors import ProjectInvalid
from flx_api.models.project import (
    EnvironmentPage,
    EnvironmentView,
    PluginPage,
    PluginView,
    Project,
    ProjectValidation,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.daemon.project import Plugin
    from flx_api.models.project import NoArgs, PluginListArgs


def get(context: Context, _args: NoArgs) -> Project:
    """The project in short."""
    model = context.services.projects.current()
    return Project(
        id=context.services.journal.project_id,
        revision=model.revision,
        default_environment=model.default_environment,
        environments=tuple(environment.name for environment in model.environments),
        plugins=len(model.plugins),
        jobs=len(model.jobs),
        schedules=len(model.schedules),
    )


def validate(context: Context, _args: NoArgs) -> ProjectValidation:
    """What is wrong with the project's files."""
    try:
        context.services.projects.current()
    except ProjectInvalid as error:
        return ProjectValidation(valid=False, errors=error.errors)
    return ProjectValidation(valid=True, errors=())


def plugins(context: Context, args: PluginListArgs) -> PluginPage:
    """The project's plugins."""
    model = context.services.projects.current()
    shown = (plugin for plugin in model.plugins if args.type is None or plugin.type == args.type)
    return PluginPage(tuple(_view(plugin, model.root) for plugin in shown))


def environments(context: Context, _args: NoArgs) -> EnvironmentPage:
    """The project's environments."""
    model = context.services.projects.current()
    return EnvironmentPage(
        tuple(EnvironmentView(item.name, item.name == model.default_environment) for item in model.environments)
    )


def _view(plugin: Plugin, root: Path) -> PluginView:
    return PluginView(
        type=plugin.type,
        name=plugin.name,
        variant=plugin.variant,
        namespace=plugin.namespace,
        inherit_from=plugin.inherit_from,
        # A private repository's token may stand in it, and whoever may look is not whoever may install.
        pip_url=None if plugin.pip_url is None else without_url_credentials(plugin.pip_url),
        executable=plugin.executable,
        capabilities=plugin.capabilities,
        settings=tuple(setting.name for setting in plugin.settings),
        commands=tuple(plugin.commands),
        installed=_is_installed(plugin, root),
    )


def _is_installed(plugin: Plugin, root: Path) -> bool:
    """Whether the plugin has a virtual environment: its own, or that of the plugin it inherits from."""
    if plugin.pip_url is None and not plugin.parents:
        # Nothing to install: an executable that stands by itself.
        return True
    names = (plugin.name, *(parent.name for parent in plugin.parents))
    return any((root / ".meltano" / plugin.type / name / "venv").is_dir() for name in names)


HANDLERS: Mapping[str, Handler] = {
    "project.get": get,
    "project.validate": validate,
    "plugin.list": plugins,
    "environment.list": environments,
}
