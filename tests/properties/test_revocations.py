"""The native set of revocations, through Python, against a list that is searched from end to end."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api._core import Revocations

KINDS = ("jti", "session", "subject", "key")
NAMES = st.sampled_from(("a", "b", "é", "default"))
TENANTS = st.sampled_from(("default", "other"))
MOMENTS = st.none() | st.integers(0, 5)


class Entry(NamedTuple):
    """As `apply` takes it."""

    kind: str
    value: str
    tenant: str
    issued_before_s: int | None
    expires_at_s: int | None


class Token(NamedTuple):
    """What a token says."""

    subject: str
    tenant: str | None
    token_id: str | None
    session: str | None
    key_id: str | None
    issued_at: int | None


ENTRIES = st.builds(Entry, st.sampled_from(KINDS), NAMES, TENANTS, MOMENTS, MOMENTS)
TOKENS = st.builds(Token, NAMES, st.none() | TENANTS, st.none() | NAMES, st.none() | NAMES, st.none() | NAMES, MOMENTS)


def same(one: Entry, other: Entry) -> bool:
    scope = one.kind == "key" or one.tenant == other.tenant
    return (one.kind, one.value) == (other.kind, other.value) and scope


def hits(entry: Entry, token: Token) -> bool:
    said = dict(zip(KINDS, (token.token_id, token.session, token.subject, token.key_id), strict=True))
    if said[entry.kind] != entry.value:
        return False
    if entry.kind != "key" and entry.tenant != (token.tenant or "default"):
        return False
    return token.issued_at is None or entry.issued_before_s is None or token.issued_at <= entry.issued_before_s


@given(st.lists(ENTRIES, max_size=12), st.lists(ENTRIES, max_size=12), st.integers(0, 6), st.lists(TOKENS, max_size=12))
def test_it_agrees_with_the_list(whole: list[Entry], later: list[Entry], now_s: int, tokens: list[Token]) -> None:
    made, twin = Revocations(), list[Entry]()
    made.replace_all(whole)
    for entry in whole:
        twin = [known for known in twin if not same(known, entry)] + [entry]
    for number, entry in enumerate(later):
        there = any(same(known, entry) for known in twin)
        twin = [known for known in twin if not same(known, entry)]
        if number % 3 == 2:
            assert there == made.remove(entry.kind, entry.value, entry.tenant)
        else:
            made.apply(*entry)
            twin.append(entry)
    left = [entry for entry in twin if entry.expires_at_s is None or entry.expires_at_s > now_s]
    assert len(twin) - len(left) == made.forget_expired(now_s)
    assert len(left) == len(made)
    for token in tokens:
        assert any(hits(entry, token) for entry in left) == made.revokes(**token._asdict())


def test_a_kind_that_is_none_is_refused_and_changes_nothing() -> None:
    made = Revocations()
    made.apply("jti", "a", "default")
    epoch = made.epoch
    for entries in ([("sub", "a", "default", None, None)], [("jti", "b", "t", None, None), ("", "a", "t", None, None)]):
        with pytest.raises(ValueError, match="a revocation names"):
            made.replace_all(entries)
    with pytest.raises(ValueError, match="a revocation names"):
        made.apply("JTI", "a", "default")
    with pytest.raises(ValueError, match="a revocation names"):
        made.remove("sid", "a", "default")
    assert (epoch, 1, True) == (made.epoch, len(made), made.revokes(subject="x", token_id="a"))
