"""Login, tokens and users."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from flx_api.models.listing import Limit

# A user name is chosen by an administrator and appears in tokens, topics and logs: a plain word or an e-mail address.
UserName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$(?!\n)")]
Password = Annotated[str, Meta(min_length=8, max_length=1024)]
# As in tokens: any text without NUL.
ClaimText = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[^\x00]+$(?!\n)")]
# A NumericDate in whole seconds, up to the year 9999.
Moment = Annotated[int, Meta(ge=0, le=253_402_300_799)]
RevocationKind = Literal["jti", "session", "subject", "key"]
RevocationId = Annotated[str, Meta(min_length=1, max_length=64)]
RoleName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$(?!\n)")]

STILL_S: Final = 3600
"""How long a revocation stays in force beyond its `expires_at`. Tokens of another issuer have a leeway, clocks of hosts
differ, and one that was put forward and back must not bring a token back."""


class LoginArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Credentials. Any password up to 1024 characters is looked at, so that a wrong one and a short one look alike."""

    username: Annotated[str, Meta(min_length=1, max_length=128)]
    password: Annotated[str, Meta(min_length=1, max_length=1024)]


class LoginResult(msgspec.Struct, frozen=True):
    """An access token and what it says; `expires_in` is seconds."""

    access_token: str
    token_type: str
    expires_in: int
    subject: str
    roles: tuple[str, ...]


class UserAddArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new user."""

    username: UserName
    password: Password
    roles: Annotated[tuple[RoleName, ...], Meta(min_length=1, max_length=16)]


class UserUpdateArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different about a user: roles, password, or whether it may log in.

    Roles are in tokens. So all tokens of the user that were issued until now end with the change, and live connections
    with them; only to enable a user ends none.
    """

    username: UserName
    roles: Annotated[tuple[RoleName, ...], Meta(min_length=1, max_length=16)] | None = None
    password: Password | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        """Hold that something is to be different."""
        if self.roles is None and self.password is None and self.disabled is None:
            msg = "gives at least one of roles, password and disabled"
            raise ValueError(msg)


class User(msgspec.Struct, frozen=True):
    """A user as others see it."""

    username: str
    roles: tuple[str, ...]
    tenant: str
    created_us: int
    disabled: bool = False


class LogoutArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """End the token that asks; `everywhere`: all tokens of its subject that were issued until now."""

    everywhere: bool = False


class LogoutResult(msgspec.Struct, frozen=True):
    """What was revoked: the session when the token names one, else the token alone; or the subject."""

    revoked: RevocationKind


class TokenRevokeArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be revoked: exactly one of `jti`, `session` (`sid`), `subject` (`sub`) and `key` (`kid`).

    Times are seconds as in tokens. Tokens issued (`iat`) at or before `issued_before` are hit, and those that do not
    say when; a subject's default is now, the others' none: all tokens. An hour after `expires_at` the revocation may be
    forgotten: give the token's `exp` when you know it. By default a key's is never, the others' a year.
    """

    jti: ClaimText | None = None
    session: ClaimText | None = None
    subject: ClaimText | None = None
    key: ClaimText | None = None
    issued_before: Moment | None = None
    expires_at: Moment | None = None
    reason: Annotated[str, Meta(max_length=1000)] = ""

    def __post_init__(self) -> None:
        """Hold that one thing is named."""
        if len(self._named()) != 1:
            msg = "names exactly one of jti, session, subject and key"
            raise ValueError(msg)

    @property
    def named(self) -> tuple[RevocationKind, str]:
        """What is to be revoked, and its value."""
        return self._named()[0]

    def _named(self) -> list[tuple[RevocationKind, str]]:
        given: tuple[tuple[RevocationKind, str | None], ...] = (
            ("jti", self.jti),
            ("session", self.session),
            ("subject", self.subject),
            ("key", self.key),
        )
        return [(kind, value) for kind, value in given if value is not None]


class RevocationListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of revocations, newest first."""

    limit: Limit = 50
    cursor: str | None = None
    kind: RevocationKind | None = None


class RevocationIdArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One revocation."""

    id: RevocationId


class Revocation(msgspec.Struct, frozen=True):
    """A revocation in force. `issued_before` and `expires_at` are seconds as in tokens; None: no bound."""

    id: str
    kind: RevocationKind
    value: str
    tenant: str
    issued_before: int | None
    expires_at: int | None
    reason: str
    created_us: int
    created_by: str


class RevocationPage(msgspec.Struct, frozen=True):
    """A page of revocations; `next_cursor` is None on the last."""

    items: tuple[Revocation, ...]
    next_cursor: str | None


class WhoAmI(msgspec.Struct, frozen=True):
    """Who a token speaks for. `expires_at` is in seconds since 1970."""

    subject: str
    tenant: str | None
    roles: tuple[str, ...]
    token_id: str | None
    session: str | None
    expires_at: int
