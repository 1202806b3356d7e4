"""`system.*` and `command.*`: the daemon about itself."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

import msgspec

from flx_api.commands import COMMANDS, Command, find
from flx_api.errors import FlxError
from flx_api.models.monitoring import (
    CommandDescription,
    CommandPage,
    CommandView,
    Component,
    SystemInfo,
    SystemStatus,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.models.project import CommandNameArgs, EchoArgs, NoArgs


def echo(context: Context, _args: EchoArgs) -> bytes:
    """The arguments as they came, byte for byte."""
    return context.raw_args


def info(context: Context, _args: NoArgs) -> SystemInfo:
    """Versions and identity."""
    services = context.services
    return SystemInfo(
        version=_version(),
        meltano_version=services.meltano_version(),
        python=platform.python_version(),
        project_id=services.journal.project_id,
        epoch=services.journal.epoch,
        started_us=services.started_us,
    )


def status(context: Context, _args: NoArgs) -> SystemStatus:
    """How the daemon is."""
    services = context.services
    active, queued = services.executions.counts()
    components = {
        "journal": Component(healthy=services.journal.fault is None, message=_message(services.journal.fault)),
        "project": _component(services.projects.current),
    }
    state: Literal["healthy", "degraded", "stopping"] = "healthy"
    if services.stopping():
        state = "stopping"
    elif not all(component.healthy for component in components.values()):
        state = "degraded"
    return SystemStatus(
        status=state,
        components=components,
        active_runs=active,
        queued_runs=queued,
        run_slots=services.settings.run_slots,
        uptime_s=(services.clock() - services.started_us) / 1_000_000,
        journal_seq=services.journal.seq,
    )


def commands(_context: Context, _args: NoArgs) -> CommandPage:
    """All commands."""
    views = (
        CommandView(item.name, item.sentence, item.mode, item.idempotency, item.name) for item in COMMANDS.values()
    )
    return CommandPage(tuple(views))


def describe(_context: Context, args: CommandNameArgs) -> CommandDescription:
    """One command with its schemas."""
    return _describe(find(args.name))


@cache
def _describe(command: Command) -> CommandDescription:
    return CommandDescription(
        name=command.name,
        sentence=command.sentence,
        mode=command.mode,
        idempotency=command.idempotency,
        permission=command.name,
        args_schema=msgspec.json.schema(command.args),
        result_schema=msgspec.json.schema(command.result),
    )


@cache
def _version() -> str:
    try:
        return version("flx-api")
    except PackageNotFoundError:
        return "0+unknown"


def _component(ping: Callable[[], object]) -> Component:
    try:
        ping()
    except FlxError as error:
        return Component(healthy=False, message=error.detail)
    return Component(healthy=True)


def _message(fault: FlxError | None) -> str:
    return "" if fault is None else fault.detail


HANDLERS: Mapping[str, Handler] = {
    "command.list": commands,
    "command.describe": describe,
    "system.echo": echo,
    "system.info": info,
    "system.status": status,
}
