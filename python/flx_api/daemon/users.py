"""Users who can log in: argon2id hashes in the database, checked in a small pool of threads.

Strategy: hashing is meant to be slow, so it leaves the loop, at most two at once: a flood of logins waits in line and
starves nobody else. An unknown user costs the same hash as a wrong password (a dummy is verified) and gets the same
answer.

Rules:
- A password is never kept, logged or echoed.
- Failures are throttled per account and per client address, before any hash is computed; a try counts as a failure
  from its beginning until it succeeds, so that tries at the same time cannot slip through together.
- What is kept of a command that holds a password is `digest`: as slow to guess from as the password's own hash.
- `add` is the one way to make a user: the command and `flx user add` without a daemon both use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from sqlalchemy import insert, select, update

from flx_api.daemon.journal.tables import users
from flx_api.daemon.throttle import Throttle, place_of
from flx_api.errors import Conflict, FieldError, NotFound, RateLimited, Unauthenticated, Unavailable, ValidationFailed
from flx_api.models.auth import User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from argon2 import PasswordHasher

    from flx_api.daemon.journal import Journal, Tx
    from flx_api.models.auth import UserUpdateArgs

T = TypeVar("T")

_THREADS = 2
# OWASP's minimum for scrypt at 16 MiB.
_SCRYPT_COST, _SCRYPT_BLOCKS, _SCRYPT_LANES, _SCRYPT_MEMORY = 2**14, 8, 5, 64 * 1024 * 1024


class _Account(NamedTuple):
    tenant: str
    password_hash: str
    roles: tuple[str, ...]


def check_roles(roles: Sequence[str], known: Sequence[str]) -> None:
    """Refuse roles that grant nothing.

    Raises:
        ValidationFailed: with one error for each such role.
    """
    reason = f"is not a role; there are {', '.join(known)}"
    errors = [FieldError(f"args.roles[{at}]", reason) for at, role in enumerate(roles) if role not in known]
    if errors:
        raise ValidationFailed(errors=errors)


@cache
def default_hasher() -> PasswordHasher:
    """OWASP's minimum: argon2id with 19 MiB, two passes, one lane."""
    from argon2 import PasswordHasher  # noqa: PLC0415 - only a login needs it, every start would pay for it

    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def hash_password(password: str, hasher: PasswordHasher | None = None) -> str:
    """The hash to store: argon2id with its parameters and a fresh salt."""
    return (hasher or default_hasher()).hash(password)


def add(tx: Tx, username: str, password_hash: str, roles: Sequence[str], tenant: str) -> User:
    """Make a user.

    Raises:
        Conflict: `already_exists`.
    """
    taken = select(users.c.username).where(users.c.project_id == tx.project_id, users.c.username == username)
    if tx.connection.execute(taken).one_or_none() is not None:
        raise Conflict(code="already_exists")
    tx.connection.execute(
        insert(users),
        {
            "username": username,
            "tenant": tenant,
            "project_id": tx.project_id,
            "password_hash": password_hash,
            "roles": msgspec.json.encode(list(roles)),
            "disabled": False,
            "created_us": tx.now_us,
        },
    )
    return User(username, tuple(roles), tenant, tx.now_us)


def change(tx: Tx, args: UserUpdateArgs, password_hash: str | None, tenant: str) -> User:
    """Change a user of a tenant.

    Raises:
        NotFound: there is none of this name in the tenant.
    """
    mine = (users.c.project_id == tx.project_id, users.c.username == args.username, users.c.tenant == tenant)
    row = tx.connection.execute(select(users).where(*mine)).one_or_none()
    if row is None:
        raise NotFound
    values: dict[str, object] = {}
    if args.roles is not None:
        values["roles"] = msgspec.json.encode(list(args.roles))
    if password_hash is not None:
        values["password_hash"] = password_hash
    if args.disabled is not None:
        values["disabled"] = args.disabled
    tx.connection.execute(update(users).where(*mine).values(**values))
    roles = args.roles if args.roles is not None else msgspec.json.decode(row.roles, type=tuple[str, ...])
    disabled = bool(row.disabled) if args.disabled is None else args.disabled
    return User(args.username, roles, tenant, row.created_us, disabled)


class Users:
    """Checks passwords and makes users.

    Args:
        journal: where they are.
        clock: microseconds since the epoch.
        hasher: the parameters in force, `default_hasher` when not given; other hashes are renewed at the next login.
    """

    def __init__(self, journal: Journal, clock: Callable[[], int], hasher: PasswordHasher | None = None) -> None:
        self._journal = journal
        self._clock = clock
        self._given_hasher = hasher
        self._throttle = Throttle()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="flx-password")
        self._dummy: str | None = None
        self._changing: Counter[str] = Counter()

    async def add(
        self,
        username: str,
        password: str,
        roles: Sequence[str],
        tenant: str,
        once: Callable[[Callable[[Tx], User]], Callable[[Tx], User]] = lambda change: change,
    ) -> User:
        """Make a user.

        Args:
            username: its name.
            password: it may log in with.
            roles: it gets.
            tenant: it belongs to.
            once: lets the change happen once for a key.

        Raises:
            Conflict: `already_exists`.
        """
        password_hash = await self._in_pool(lambda: hash_password(password, self._hasher))
        return await self._journal.write(once(lambda tx: add(tx, username, password_hash, roles, tenant)))

    @contextlib.contextmanager
    def while_changed(self, username: str) -> Iterator[None]:
        """A change of a user is under way that ends its tokens: nobody logs in as this one meanwhile."""
        self._changing[username] += 1
        try:
            yield
        finally:
            self._changing[username] -= 1
            if not self._changing[username]:
                del self._changing[username]

    async def hashed(self, password: str | None) -> str | None:
        """The hash of a password, if there is one."""
        return None if password is None else await self._in_pool(lambda: hash_password(password, self._hasher))

    async def digest(self, secret: bytes, salt: str) -> str:
        """64 characters by which two secrets of one salt can be compared, and from which neither can be guessed."""
        return await self._in_pool(
            lambda: hashlib.scrypt(
                secret,
                salt=salt.encode(),
                n=_SCRYPT_COST,
                r=_SCRYPT_BLOCKS,
                p=_SCRYPT_LANES,
                maxmem=_SCRYPT_MEMORY,
                dklen=32,
            ).hex()
        )

    async def log_in(self, username: str, password: str, client_address: str) -> User:
        """The user whose name and password these are.

        Raises:
            Unauthenticated: `invalid_credentials`, whatever of the two is wrong.
            RateLimited: too many failures of this account or address.
            Unavailable: the user is being changed.
        """
        keys = [f"account {username}"] + ([f"address {place_of(client_address)}"] if client_address else [])
        now_s = self._clock() / 1_000_000
        wait_s = max(self._throttle.wait_s(key, now_s) for key in keys)
        if wait_s > 0:
            detail = "Too many failed logins"
            raise RateLimited(detail, retry_after_s=max(round(wait_s, 3), 0.001))
        tries = [self._throttle.failed(key, now_s) for key in keys]
        try:
            account = self._find(username)
        except Unavailable:
            # A password that could not be looked at was not wrong.
            for key, tried in zip(keys, tries, strict=True):
                self._throttle.take_back(key, 1, tried)
            raise
        if account is None:
            self._dummy = self._dummy or await self._in_pool(lambda: hash_password("", self._hasher))
        known = account.password_hash if account else self._dummy or ""
        right = await self._in_pool(lambda: self._verify(known, password))
        if account is None or not right:
            raise Unauthenticated(code="invalid_credentials")
        own = self._throttle.succeeded(keys[0])
        for key, tried in zip(keys[1:], tries[1:], strict=True):
            self._throttle.take_back(key, max(own, 1), tried)
        if self._hasher.check_needs_rehash(account.password_hash):
            # Where nothing can be stored the old hash is as good, and reads go on.
            with contextlib.suppress(Unavailable):
                account = account._replace(password_hash=await self._renew(username, account.password_hash, password))
        # It took a while: a change meanwhile has ended all tokens, and this must not make another of what was before.
        if self._find(username) != account:
            raise Unauthenticated(code="invalid_credentials")
        if username in self._changing:
            # It ends the tokens of until now, and is not written down yet: one that is made meanwhile would outlive it.
            detail = "The user is being changed"
            raise Unavailable(detail, retry_after_s=1.0)
        return User(username, account.roles, account.tenant, 0)

    def close(self) -> None:
        """End the threads; hashes that have not begun are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _hasher(self) -> PasswordHasher:
        return self._given_hasher or default_hasher()

    def _find(self, username: str) -> _Account | None:
        query = select(users.c.tenant, users.c.password_hash, users.c.roles).where(
            users.c.project_id == self._journal.project_id,
            users.c.username == username,
            users.c.disabled.is_(False),
        )
        with self._journal.read() as connection:
            row = connection.execute(query).one_or_none()
        return (
            _Account(row.tenant, row.password_hash, msgspec.json.decode(row.roles, type=tuple[str, ...]))
            if row
            else None
        )

    def _verify(self, password_hash: str, password: str) -> bool:
        import argon2  # noqa: PLC0415 - as in `default_hasher`

        try:
            return self._hasher.verify(password_hash, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    async def _renew(self, username: str, old_hash: str, password: str) -> str:
        new_hash = await self._in_pool(lambda: hash_password(password, self._hasher))
        # Only in place of the hash that was verified: the password may have been changed meanwhile.
        change = (
            update(users)
            .where(
                users.c.project_id == self._journal.project_id,
                users.c.username == username,
                users.c.password_hash == old_hash,
            )
            .values(password_hash=new_hash)
        )
        await self._journal.write(lambda tx: tx.connection.execute(change).rowcount)
        return new_hash

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
