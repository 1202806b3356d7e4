"""Admission against its naive twin: exact logs per key and the rules written out one after another."""

from __future__ import annotations

import base64
import ipaddress
import json
from typing import NamedTuple

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flx_api._core import Admission, Decision, Principal

SECRET = b"0123456789abcdef0123456789ABCDEF"
JWKS = json.dumps({"keys": [{"kty": "oct", "k": base64.urlsafe_b64encode(SECRET).rstrip(b"=").decode()}]}).encode()
NOW = 1_700_000_000
SECOND = 10**9
FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=100)


def token(subject: str, tenant: str | None = None) -> bytes:
    claims: dict[str, object] = {"sub": subject, "exp": NOW + 60, "iss": "flx", "aud": "flx-api", "roles": ["viewer"]}
    if tenant is not None:
        claims["tenant"] = tenant
    return jwt.encode(claims, SECRET, "HS256").encode()


GOOD = {(subject, tenant): token(subject, tenant) for subject in ("ann", "bob") for tenant in (None, "t")}
ADDRESSES = ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]


class Policy(NamedTuple):
    name: str
    by: str
    limit: int
    window_ms: int
    cost: int
    shadow: bool


class Twin:
    """The rules, slowly."""

    def __init__(self, policies: list[Policy]) -> None:
        self.policies = policies
        self.charged: dict[tuple[str, str], list[int]] = {}

    @staticmethod
    def address(text: str) -> str:
        ip = ipaddress.ip_address(text)
        if isinstance(ip, ipaddress.IPv6Address):
            return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
        return str(ip)

    def fits(self, policy: Policy, key: str, now_ns: int) -> bool:
        times = self.charged.get((policy.name, key), [])
        used = sum(1 for at in times if now_ns - at < policy.window_ms * 10**6)
        return used + policy.cost <= policy.limit

    def status(self, address: str, who: tuple[str, str | None] | None, now_ns: int, fault: int | None) -> int:
        """What to answer to a request by `who`, or with the `fault` its credentials have."""
        keys = {"ip": self.address(address)}
        wanted = [policy for policy in self.policies if policy.by == "ip"]
        if any(not self.fits(policy, keys["ip"], now_ns) for policy in wanted if not policy.shadow):
            return 429
        if who is not None:
            keys["subject"] = repr(who)
            own = [policy for policy in self.policies if policy.by == "subject"]
            if any(not self.fits(policy, keys["subject"], now_ns) for policy in own if not policy.shadow):
                return 429
            wanted += own
        for policy in wanted:
            if self.fits(policy, keys[policy.by], now_ns):
                self.charged.setdefault((policy.name, keys[policy.by]), []).extend([now_ns] * policy.cost)
        return fault or 200


policies = st.lists(
    st.builds(
        Policy,
        name=st.uuids().map(str),
        by=st.sampled_from(["ip", "subject"]),
        limit=st.integers(2, 6),
        window_ms=st.sampled_from([100, 1000]),
        cost=st.integers(1, 2),
        shadow=st.booleans(),
    ),
    max_size=4,
)
FAULTS: dict[str, tuple[list[tuple[bytes, bytes]], int]] = {
    "none": ([], 401),
    "basic": ([(b"authorization", b"Basic YTpi")], 401),
    "empty": ([(b"authorization", b"Bearer")], 401),
    "spaces": ([(b"authorization", b"Bearer  x y")], 401),
    "forged": ([(b"authorization", b"Bearer " + GOOD["ann", None][:-4] + b"AAAA")], 401),
    "twice": ([(b"authorization", b"Bearer " + GOOD["ann", None])] * 2, 400),
}
requests = st.lists(
    st.tuples(
        st.integers(0, 150 * 10**6),
        st.sampled_from(ADDRESSES),
        st.one_of(st.sampled_from(list(GOOD)), st.sampled_from(list(FAULTS)), st.just(None)),
    ),
    max_size=60,
)


def built(policies: list[Policy]) -> Admission:
    return Admission(JWKS, issuer="flx", audience="flx-api", policies=policies)


@given(policies=policies, asked=requests)
@FIXED
def test_statuses_agree_with_the_rules(
    policies: list[Policy], asked: list[tuple[int, str, tuple[str, str | None] | str | None]]
) -> None:
    """Checked first and charged only together; bad tokens cost the address alone; shadows never refuse."""
    admission, twin, now_ns = built(policies), Twin(policies), 0
    for step, address, what in asked:
        now_ns += step
        headers = [(b"host", b"x"), (b"x-authorization", b"Bearer x")]
        if isinstance(what, tuple):
            headers.append((b"Authorization", b"bearer " + GOOD[what]))
            expected = twin.status(address, what, now_ns, None)
        elif what is not None:
            headers += FAULTS[what][0]
            expected = twin.status(address, None, now_ns, FAULTS[what][1])
        else:
            expected = twin.status(address, None, now_ns, None)
        decision = admission.admit(headers, address, what is not None, NOW, now_ns)
        assert decision.status == expected
        who = decision.principal and (decision.principal.subject, decision.principal.tenant)
        assert who == (what if isinstance(what, tuple) and expected == 200 else None)
        assert (decision.reason is None) == (expected == 200)
        assert (decision.retry_after_s > 0) == (expected == 429)


def test_a_decision_carries_what_headers_need() -> None:
    """Seconds are rounded up, the tightest window speaks, and the longest wait when refused."""
    admission = built([Policy("wide", "ip", 9, 60_000, 1, False), Policy("tight", "subject", 1, 1500, 1, False)])
    headers = [(b"authorization", b"Bearer " + GOOD["ann", "t"])]

    def told(decision: Decision) -> tuple[object, ...]:
        return decision.policy, decision.limit, decision.remaining, decision.window_s, decision.reset_s

    first = admission.admit(headers, "10.0.0.1", True, NOW, 0)
    assert (first.status, first.shadow, *told(first)) == (200, (), "tight", 1, 0, 2, 2)
    assert first.principal == Principal(subject="ann", tenant="t", roles=("viewer",), expires_at=NOW + 60)
    second = admission.admit(tuple(headers), "10.0.0.1", True, NOW, SECOND)
    assert (second.status, second.reason, second.retry_after_s) == (429, "rate_limited", 1)
    assert told(second) == ("tight", 1, 0, 2, 1)
    open_route = admission.admit(headers, "10.0.0.1", False, NOW, SECOND)
    assert (open_route.status, open_route.principal, open_route.policy, open_route.remaining) == (200, None, "wide", 7)


def test_a_token_may_come_another_way() -> None:
    admission = built([])
    good = admission.admit_token(GOOD["bob", None], "10.0.0.1", NOW, 0)
    assert (good.status, good.policy, good.limit) == (200, None, 0)
    assert admission.admit_token(None, "10.0.0.1", NOW, 0).reason == "missing_token"
    assert admission.admit_token(b"x", "10.0.0.1", NOW, 0).reason == "malformed_token"
    assert admission.admit_token(GOOD["bob", None], "10.0.0.1", NOW + 60, 0).reason == "expired"


def test_principals_are_values() -> None:
    """Made with keywords by tickets and tests, equal by content, frozen."""
    principal = Principal(subject="a", roles=("x", "y"), token_id="j")
    assert (principal.tenant, principal.roles, principal.token_id, principal.expires_at) == (None, ("x", "y"), "j", 0)
    assert {principal} == {Principal(subject="a", roles=["x", "y"], token_id="j")}
    assert principal != Principal(subject="a")
    assert repr(Principal(subject="a")) == "Principal(subject='a', tenant=None, roles=())"
    with pytest.raises(AttributeError):
        principal.subject = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    "policy",
    [
        ("a", "tenant", 1, 1, 1, False),
        ("", "ip", 1, 1, 1, False),
        ("a", "ip", 1, 1, 2, False),
        ("a", "ip", 0, 1, 1, False),
    ],
)
def test_unusable_policies_are_refused(policy: tuple[str, str, int, int, int, bool]) -> None:
    with pytest.raises(ValueError, match=r"polic|limit"):
        Admission(JWKS, issuer=None, audience=None, policies=[policy])


def test_wrong_arguments_are_errors_and_not_decisions() -> None:
    admission = built([])
    with pytest.raises(TypeError, match="headers"):
        admission.admit([("authorization", "Bearer x")], "", True, NOW, 0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="now_s"):
        admission.admit([], "", True, float("nan"), 0)
