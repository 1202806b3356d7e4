"""Login, tokens and users."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

# A user name is chosen by an administrator and appears in tokens, topics and logs: a plain word or an e-mail address.
UserName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$(?!\n)")]
Password = Annotated[str, Meta(min_length=8, max_length=1024)]
RoleName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$(?!\n)")]


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


class User(msgspec.Struct, frozen=True):
    """A user as others see it."""

    username: str
    roles: tuple[str, ...]
    tenant: str
    created_us: int
