"""`auth.*`, `token.*` and `user.*`: who gets in, and who no longer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from flx_api.commands.permissions import ROLES
from flx_api.daemon.handlers import idempotency
from flx_api.daemon.users import change, check_roles
from flx_api.models.auth import LoginResult, LogoutResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.daemon.journal import Tx
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
        UserUpdateArgs,
    )


LOGOUT, REVOKE, RESTORE = "auth.logout", "token.revoke", "token.restore"
ADD_USER, UPDATE_USER = "user.add", "user.update"


async def login(context: Context, args: LoginArgs) -> LoginResult:
    """Exchange a user name and a password for an access token."""
    services = context.services
    user = await services.users.log_in(args.username, args.password, context.client_address)
    issued = services.tokens.issue(user.username, user.roles, user.tenant)
    return LoginResult(issued.token, "Bearer", issued.expires_in, user.username, user.roles)


async def logout(context: Context, args: LogoutArgs) -> LogoutResult:
    """End the token that asks."""
    once = partial(idempotency.once, context, LOGOUT, shown=_logged_out)
    return _logged_out(
        await context.services.revocations.log_out(context.principal, everywhere=args.everywhere, once=once)
    )


def _logged_out(found: Revocation) -> LogoutResult:
    return LogoutResult(found.kind)


async def revoke(context: Context, args: TokenRevokeArgs) -> Revocation:
    """Revoke something within the caller's tenant."""
    once = partial(idempotency.once, context, REVOKE)
    return await context.services.revocations.revoke(args, context.principal, once)


def revocations(context: Context, args: RevocationListArgs) -> RevocationPage:
    """A page of the tenant's revocations."""
    return context.services.revocations.page(args, context.principal.tenant)


async def restore(context: Context, args: RevocationIdArgs) -> Revocation:
    """Take a revocation of the caller's tenant back."""
    once = partial(idempotency.once, context, RESTORE)
    return await context.services.revocations.restore(args.id, context.principal, once)


async def add_user(context: Context, args: UserAddArgs) -> User:
    """Make a user of the caller's tenant."""
    check_roles(args.roles, tuple(ROLES))
    once = partial(idempotency.once, await _guarded(context), ADD_USER)
    return await context.services.users.add(args.username, args.password, args.roles, context.principal.tenant, once)


async def update_user(context: Context, args: UserUpdateArgs) -> User:
    """Change a user of the caller's tenant, and end its tokens."""
    if args.roles is not None:
        check_roles(args.roles, tuple(ROLES))
    services, tenant = context.services, context.principal.tenant
    password_hash = await services.users.hashed(args.password)
    kept = context if args.password is None else await _guarded(context)
    once = partial(idempotency.once, kept, UPDATE_USER)

    def changed(tx: Tx) -> User:
        return change(tx, args, password_hash, tenant)

    if args.roles is None and args.password is None and args.disabled is False:
        return await services.journal.write(once(changed))
    with services.users.while_changed(args.username):
        return await services.revocations.with_change(args.username, context.principal, changed, once)


async def _guarded(context: Context) -> Context:
    """A command whose arguments hold a password: what is kept of them is as hard to guess from as a password's hash."""
    if context.idempotency_key is None:
        return context
    digest = await context.services.users.digest(context.raw_args, context.idempotency_key)
    return msgspec.structs.replace(context, body_hash=digest)


HANDLERS: Mapping[str, Handler] = {
    "auth.login": login,
    LOGOUT: logout,
    REVOKE: revoke,
    "token.revocations": revocations,
    RESTORE: restore,
    ADD_USER: add_user,
    UPDATE_USER: update_user,
}
