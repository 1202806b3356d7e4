"""`auth.login` and `user.add`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.commands.permissions import ROLES
from flx_api.daemon.users import check_roles
from flx_api.models.auth import LoginResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.models.auth import LoginArgs, User, UserAddArgs


async def login(context: Context, args: LoginArgs) -> LoginResult:
    """Exchange a user name and a password for an access token."""
    services = context.services
    user = await services.users.log_in(args.username, args.password, context.client_address)
    issued = services.tokens.issue(user.username, user.roles, user.tenant)
    return LoginResult(issued.token, "Bearer", issued.expires_in, user.username, user.roles)


async def add_user(context: Context, args: UserAddArgs) -> User:
    """Make a user of the caller's tenant."""
    check_roles(args.roles, tuple(ROLES))
    return await context.services.users.add(args.username, args.password, args.roles, context.principal.tenant)


HANDLERS: Mapping[str, Handler] = {"auth.login": login, "user.add": add_user}
