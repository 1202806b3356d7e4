"""Revocations: tokens that are no longer good, kept until nothing is left that they could hit.

Strategy: a row for each thing that is revoked; revoking it again widens the row. Each change is one write with its
event, which every gateway hears on its Watch stream; a gateway that has no position takes all rows first (`snapshot`).
The daemon itself asks its own set, when it listens where clients bring their own tokens (`learn`).

Rules:
- A name is revoked within the tenant of whoever revokes it. A key belongs to the service: only the default tenant may.
- A token may have been issued in the same second as the revocation of its subject: it is hit too, since `iat` has no
  finer grain.
- What is over stays in force for `STILL_S` more, although it is not listed any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sqlalchemy import delete, insert, or_, select, update

from flx_api.daemon.executions.ids import uuid7_factory
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.journal.tables import revocations
from flx_api.errors import Conflict, Forbidden, NotFound, ValidationFailed
from flx_api.models.auth import STILL_S, Revocation, RevocationPage
from flx_api.models.event import REVOCATION_EVENTS, RevocationEvent
from flx_api.models.listing import decode_cursor, encode_cursor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Row

    from flx_api import _core
    from flx_api.daemon.journal import Journal, Tx
    from flx_api.daemon.principal import Principal
    from flx_api.models.auth import RevocationKind, RevocationListArgs, TokenRevokeArgs

KEPT_S = 366 * 86_400
"""How long a revocation is kept when nobody says when what it hits ends: no token should live longer."""

T = TypeVar("T")

# Lets a change happen once for a key.
Once = Callable[[Callable[["Tx"], Revocation]], Callable[["Tx"], Revocation]]

_MAX_CHARS = 1024
# A page is read and packed between two turns of the loop, so it must not take long.
_PAGE = 250
_FORGET_EVERY_S = 3600
_SHOWN = tuple(column for column in revocations.c if column.name != "project_id")


class Named(NamedTuple):
    """What is revoked."""

    kind: RevocationKind
    value: str
    tenant: str


def put(
    tx: Tx,
    named: Named,
    new_id: str,
    by: str,
    *,
    issued_before: int | None = None,
    expires_at: int | None = None,
    reason: str = "",
) -> Revocation:
    """Put a revocation in force, with its event; one that is there is widened, never narrowed."""
    row = tx.connection.execute(
        select(*_SHOWN).where(
            revocations.c.project_id == tx.project_id,
            revocations.c.tenant == named.tenant,
            revocations.c.kind == named.kind,
            revocations.c.value == named.value,
        )
    ).one_or_none()
    if row is None:
        found = Revocation(new_id, *_of(named), issued_before, expires_at, reason, tx.now_us, by)
        values = {"project_id": tx.project_id, **{name: getattr(found, name) for name in found.__struct_fields__}}
        tx.connection.execute(insert(revocations), values)
    else:
        known = _shown(row)
        found = Revocation(
            known.id,
            *_of(named),
            _later(known.issued_before, issued_before),
            _later(known.expires_at, expires_at),
            reason or known.reason,
            known.created_us,
            known.created_by,
        )
        tx.connection.execute(
            update(revocations)
            .where(revocations.c.id == found.id)
            .values(issued_before=found.issued_before, expires_at=found.expires_at, reason=found.reason)
        )
    event = RevocationEvent("revoked", found.kind, found.value, found.issued_before, found.expires_at)
    tx.emit(REVOCATION_EVENTS, event, tenant=found.tenant)
    return found


def take_back(tx: Tx, revocation_id: str, tenant: str) -> Revocation:
    """End a revocation, with its event.

    Raises:
        NotFound: there is none of this id in the tenant.
    """
    mine = (
        revocations.c.project_id == tx.project_id,
        revocations.c.tenant == tenant,
        revocations.c.id == revocation_id,
    )
    row = tx.connection.execute(select(*_SHOWN).where(*mine)).one_or_none()
    if row is None:
        raise NotFound
    tx.connection.execute(delete(revocations).where(*mine))
    found = _shown(row)
    tx.emit(REVOCATION_EVENTS, RevocationEvent("restored", found.kind, found.value), tenant=tenant)
    return found


def _always(change: Callable[[Tx], Revocation]) -> Callable[[Tx], Revocation]:
    return change


class Revocations:
    """The revocations of one project.

    Args:
        journal: where they are.
        clock: microseconds since the epoch.
    """

    def __init__(self, journal: Journal, clock: Callable[[], int]) -> None:
        self._journal = journal
        self._clock = clock
        self._ids = uuid7_factory(clock)
        self._learner: _core.Revocations | None = None
        self._forget_at_s = 0

    async def revoke(self, args: TokenRevokeArgs, principal: Principal, once: Once = _always) -> Revocation:
        """Revoke what the arguments name, in the principal's tenant.

        Raises:
            Forbidden: a key, and the principal is not of the default tenant.
            ValidationFailed: `expires_at` has passed.
        """
        kind, value = args.named
        if kind == "key" and principal.tenant != DEFAULT_TENANT:
            detail = "Keys are of the service; only its default tenant may revoke them"
            raise Forbidden(detail)
        now_s = self._clock() // 1_000_000
        if args.expires_at is not None and args.expires_at <= now_s:
            raise ValidationFailed.field("args.expires_at", "has passed")
        issued_before = now_s if args.issued_before is None and kind == "subject" else args.issued_before
        expires_at = args.expires_at
        if expires_at is None and kind != "key":
            expires_at = max(now_s, issued_before or 0) + KEPT_S
        named = Named(kind, value, principal.tenant)
        return await self._put(named, principal, issued_before, expires_at, args.reason, once)

    async def log_out(self, principal: Principal, *, everywhere: bool, once: Once = _always) -> Revocation:
        """Revoke the principal's own session or token, or all its tokens until now.

        Raises:
            Conflict: the token has nothing by which it alone could be revoked.
        """
        now_s = self._clock() // 1_000_000
        tenant, reason = principal.tenant, "logout"
        if everywhere:
            named = Named("subject", principal.subject, tenant)
            return await self._put(named, principal, now_s, now_s + KEPT_S, reason, once)
        # A session may have tokens that live longer than the one that asks.
        if principal.session is not None:
            named, expires_at = Named("session", principal.session, tenant), now_s + KEPT_S
        elif principal.token_id is not None:
            named = Named("jti", principal.token_id, tenant)
            expires_at = max(principal.expires_at or now_s + KEPT_S, now_s + 1)
        else:
            detail = "The token has neither `jti` nor `sid`; only `everywhere` can end it"
            raise Conflict(detail)
        if len(named.value) > _MAX_CHARS:
            detail = "The token's `jti` or `sid` is too long; only `everywhere` can end it"
            raise Conflict(detail)
        return await self._put(named, principal, None, expires_at, reason, once)

    async def with_change(
        self,
        subject: str,
        principal: Principal,
        change: Callable[[Tx], T],
        once: Callable[[Callable[[Tx], T]], Callable[[Tx], T]],
    ) -> T:
        """Make a change in the principal's tenant that ends all tokens of a subject which were issued until then."""
        new_id, made = self._ids(), list[Revocation]()

        def both(tx: Tx) -> T:
            result, now_s = change(tx), tx.now_us // 1_000_000
            named = Named("subject", subject, principal.tenant)
            expires_at = now_s + KEPT_S
            made[:] = [
                put(
                    tx,
                    named,
                    new_id,
                    principal.subject,
                    issued_before=now_s,
                    expires_at=expires_at,
                    reason="the user was changed",
                )
            ]
            return result

        result = await self._journal.write(once(both))
        if self._learner is not None:
            for found in made:
                self._learner.apply(*entry_of(found))
        return result

    async def restore(self, revocation_id: str, principal: Principal, once: Once = _always) -> Revocation:
        """Take a revocation back.

        Raises:
            NotFound: there is none of this id in the principal's tenant.
        """
        found = await self._journal.write(once(lambda tx: take_back(tx, revocation_id, principal.tenant)))
        if self._learner is not None:
            self._learner.remove(found.kind, found.value, found.tenant)
        return found

    def page(self, args: RevocationListArgs, tenant: str) -> RevocationPage:
        """A page of the tenant's revocations, newest first: ids grow with time."""
        expires_at = revocations.c.expires_at
        query = select(*_SHOWN).where(
            revocations.c.tenant == tenant,
            revocations.c.project_id == self._journal.project_id,
            or_(expires_at.is_(None), expires_at > self._clock() // 1_000_000),
        )
        if args.kind is not None:
            query = query.where(revocations.c.kind == args.kind)
        after = decode_cursor(args.cursor)
        if after is not None:
            query = query.where(revocations.c.id < after)
        with self._journal.read() as connection:
            rows = connection.execute(query.order_by(revocations.c.id.desc()).limit(args.limit + 1)).all()
        items = tuple(_shown(row) for row in rows[: args.limit])
        return RevocationPage(items, encode_cursor(items[-1].id) if len(rows) > args.limit else None)

    def snapshot(self) -> Iterator[tuple[Revocation, ...]]:
        """All revocations in force, of all tenants, in pages; the caller may wait between two of them."""
        # Along the primary key alone: with a condition more, the planner takes another index and sorts for each page.
        after, project_id = "", self._journal.project_id
        while True:
            query = select(revocations).where(revocations.c.id > after).order_by(revocations.c.id).limit(_PAGE)
            with self._journal.read() as connection:
                rows = connection.execute(query).all()
            over_s = self._clock() // 1_000_000 - STILL_S
            page = tuple(
                _shown(row)
                for row in rows
                if row.project_id == project_id and (row.expires_at is None or row.expires_at > over_s)
            )
            if page:
                yield page
            if len(rows) < _PAGE:
                return
            after = rows[-1].id

    def learn(self, learner: _core.Revocations) -> None:
        """Keep a set of the daemon's own up to date from here on."""
        self._learner = learner
        self._learn_all()
        # Changes of which nobody knew were committed: there may be one of ours among them.
        self._journal.on_found(self._learn_all)

    def _learn_all(self) -> None:
        if self._learner is not None:
            self._learner.replace_all([entry_of(found) for page in self.snapshot() for found in page])

    async def _put(  # noqa: PLR0917 - what a row holds, and how often
        self,
        named: Named,
        principal: Principal,
        issued_before: int | None,
        expires_at: int | None,
        reason: str,
        once: Once,
    ) -> Revocation:
        def change(tx: Tx) -> Revocation:
            return put(
                tx,
                named,
                new_id,
                principal.subject,
                issued_before=issued_before,
                expires_at=expires_at,
                reason=reason,
            )

        new_id = self._ids()
        found = await self._journal.write(once(change))
        if self._learner is not None:
            self._learner.apply(*entry_of(found))
            self._forget(self._learner)
        return found

    def _forget(self, learner: _core.Revocations) -> None:
        now_s = self._clock() // 1_000_000
        if now_s >= self._forget_at_s:
            learner.forget_expired(now_s - STILL_S)
            self._forget_at_s = now_s + _FORGET_EVERY_S


def entry_of(found: Revocation) -> tuple[str, str, str, int | None, int | None]:
    """A revocation as the native set takes it."""
    return found.kind, found.value, found.tenant, found.issued_before, found.expires_at


def _of(named: Named) -> tuple[RevocationKind, str, str]:
    return named.kind, named.value, named.tenant


def _later(one: int | None, other: int | None) -> int | None:
    """The later of two bounds; None is no bound."""
    return None if one is None or other is None else max(one, other)


def _shown(row: Row[tuple[object, ...]]) -> Revocation:
    return Revocation(
        row.id,
        row.kind,
        row.value,
        row.tenant,
        row.issued_before,
        row.expires_at,
        row.reason,
        row.created_us,
        row.created_by,
    )
