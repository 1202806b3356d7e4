"""`auth.*`, `token.*` and `user.add`: who gets in, and who no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.commands.permissions import ROLES
from flx_api.daemon.users import check_roles
from flx_api.models.auth import LoginResult, LogoutResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.models.auth import (
        LoginArgs,
        LogoutArgs,
        Revocation,
        RevocationIdArgs,
        RevocationListArgs,
        RevocationPage,
        TokenRevokeArgs,
        User,
        UserAddArgs,
    )


async def login(context: Context, args: LoginArgs) -> LoginResult:
    """Exchange a user name and a password for an access token."""
    services = context.services
    user = await services.users.log_in(args.username, args.password, context.client_address)
    issued = services.tokens.issue(user.username, user.roles, user.tenant)
    return LoginResult(issued.token, "Bearer", issued.expires_in, user.username, user.roles)


async def logout(context: Context, args: LogoutArgs) -> LogoutResult:
    """End the token that asks."""
    found = await context.services.revocations.log_out(context.principal, everywhere=args.everywhere)
    return LogoutResult(found.kind)


async def revoke(context: Context, args: TokenRevokeArgs) -> Revocation:
    """Revoke something within the caller's tenant."""
    return await context.services.revocations.revoke(args, context.principal)


def revocations(context: Context, args: RevocationListArgs) -> RevocationPage:
    """A page of the tenant's revocations."""
    return context.services.revocations.page(args, context.principal.tenant)


async def restore(context: Context, args: RevocationIdArgs) -> Revocation:
    """Take a revocation of the caller's tenant back."""
    return await context.services.revocations.restore(args.id, context.principal)


async def add_user(context: Context, args: UserAddArgs) -> User:
    """Make a user of the caller's tenant."""
    check_roles(args.roles, tuple(ROLES))
    return await context.services.users.add(args.username, args.password, args.roles, context.principal.tenant)


HANDLERS: Mapping[str, Handler] = {
    "auth.login": login,
    "auth.logout": logout,
    "token.revoke": revoke,
    "token.revocations": revocations,
    "token.restore": restore,
    "user.add": add_user,
}
