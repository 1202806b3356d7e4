"""Make a user from the command line: through the running daemon, or into the database while none runs."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import msgspec

from flx_api.cli.daemon_client import execute
from flx_api.cli.runtime import prepare_data_folder, running_service
from flx_api.commands.permissions import ROLES
from flx_api.errors import StartupError
from flx_api.models.auth import UserAddArgs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flx_api.config import Settings

_TENANT = "default"


def add(settings: Settings, name: str, roles: Sequence[str], password: str) -> None:
    """Make a user who can log in.

    Raises:
        FlxError: the name is taken, or a field is not acceptable.
        StartupError: there is neither a daemon nor a database that can be written.
    """
    args = _checked(name, roles, password)
    if settings.grpc_daemon_host is not None and not settings.database_url:
        msg = "FLX_GRPC_DAEMON_HOST: the daemon is elsewhere, and its users with it; make them there, or by `user.add`"
        raise StartupError(msg)
    service = running_service(settings)
    if service is not None and service.daemon_socket:
        execute(service.daemon_socket, "user.add", args)
    else:
        prepare_data_folder(settings)
        asyncio.run(_into_database(settings, args))


def _checked(name: str, roles: Sequence[str], password: str) -> UserAddArgs:
    """The arguments, held against their constraints here already, so that a mistake is named as an option."""
    for role in roles:
        if role not in ROLES:
            msg = f"--role: {role} is none of {', '.join(ROLES)}"
            raise StartupError(msg)
    try:
        return msgspec.convert({"username": name, "password": password, "roles": list(roles)}, UserAddArgs)
    except msgspec.ValidationError as error:
        option = "--password-stdin" if "password" in str(error) else "NAME"
        reason = str(error).partition(" - at ")[0]
        msg = f"{option}: {reason[:1].lower()}{reason[1:]}"
        raise StartupError(msg) from None


async def _into_database(settings: Settings, args: UserAddArgs) -> None:
    from flx_api.daemon import users  # noqa: PLC0415 - the database is only opened where no daemon runs
    from flx_api.daemon.identity import project_id_of  # noqa: PLC0415
    from flx_api.daemon.journal import Journal  # noqa: PLC0415
    from flx_api.daemon.lock import DataLock  # noqa: PLC0415

    with DataLock(settings.data_path):
        journal = await Journal.open(
            settings.database, project_id_of(settings, os.environ), lambda: time.time_ns() // 1000
        )
        try:
            password_hash = users.hash_password(args.password)
            await journal.write(lambda tx: users.add(tx, args.username, password_hash, args.roles, _TENANT))
        finally:
            await journal.close()
