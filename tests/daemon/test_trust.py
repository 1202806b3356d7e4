"""Who is believed to be whom."""

from __future__ import annotations

from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from flx_api._core import Revocations, TokenVerifier
from flx_api.daemon.principal import Principal
from flx_api.daemon.trust import Gateway, Nobody, SocketTrust, TokenTrust, principal_of
from flx_api.errors import TokenRejected, Unauthenticated
from flx_api.proto.flx.v1.daemon_pb2 import Principal as Named

GOOD = "header.claims.signature"
CLAIMS = {"sub": "bob", "tenant": "t", "roles": ("viewer",), "exp": 100.5, "jti": "j", "sid": "s", "iat": 40.5}
NAMED = Named(subject="root", tenant="x", roles=["admin"])

KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
JWKS = [{**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid} for key, kid in ((OTHER, "k2"), (KEY, "k1"))]
VERIFIER = TokenVerifier(msgspec.json.encode({"keys": JWKS}))


class Now:
    s = 50.0

    def __call__(self) -> float:
        return self.s


def verify(token: bytes, _now_s: float) -> tuple[dict[str, Any], str | None]:
    if token != GOOD.encode():
        reason = "malformed_token"
        raise TokenRejected(reason)
    return dict(CLAIMS), "k1"


def trust(
    shared: bytes | None = b"shared", now: Now | None = None, revocations: Revocations | None = None
) -> TokenTrust:
    return TokenTrust(shared, verify, now or Now(), Revocations() if revocations is None else revocations)


def test_the_socket_names_whom_it_likes() -> None:
    caller = SocketTrust().caller({})
    assert caller.principal(NAMED) == Principal("root", "x", ("admin",))
    more = Named(subject="s", token_id="j", session="i", expires_at=9)
    assert caller.principal(more) == Principal("s", "default", (), "j", "i", 9)
    assert caller.principal(Named()) is None
    assert caller.principal(Named(subject="s")) == Principal("s", "default", ())
    assert caller.tenant is None


def test_over_tcp_only_the_shared_token_makes_a_gateway() -> None:
    assert isinstance(trust().caller({"x-flx-gateway-token": "shared"}), Gateway)
    for token in ("wrong", "", "shared "):
        with pytest.raises(TokenRejected):
            trust().caller({"x-flx-gateway-token": token})
    with pytest.raises(TokenRejected):
        trust(None).caller({"x-flx-gateway-token": ""})


def test_a_client_is_what_its_token_says_whatever_it_names_until_that_ends() -> None:
    now = Now()
    caller = trust(now=now).caller({"authorization": f"Bearer {GOOD}"})
    assert caller.principal(NAMED) == Principal("bob", "t", ("viewer",), "j", "s", 100)
    assert caller.tenant == "t"
    now.s = 100.5
    with pytest.raises(TokenRejected):
        caller.principal(NAMED)


@pytest.mark.parametrize(
    ("kind", "value", "tenant", "issued_before", "hit"),
    [
        ("jti", "j", "t", None, True),
        ("session", "s", "t", None, True),
        ("subject", "bob", "t", 40, True),
        ("subject", "bob", "t", 39, False),
        ("subject", "bob", "default", 40, False),
        ("key", "k1", "default", None, True),
        ("key", "k2", "default", None, False),
    ],
)
def test_a_revoked_token_is_refused_at_once_and_on_a_stream_that_is_open(
    kind: str, value: str, tenant: str, issued_before: int | None, *, hit: bool
) -> None:
    revocations = Revocations()
    made = trust(revocations=revocations)
    caller = made.caller({"authorization": f"Bearer {GOOD}"})
    revocations.apply(kind, value, tenant, issued_before)
    if hit:
        with pytest.raises(TokenRejected):
            caller.principal(None)
        with pytest.raises(TokenRejected):
            made.caller({"authorization": f"Bearer {GOOD}"})
    else:
        assert caller.principal(None) is not None


@pytest.mark.parametrize("header", [{}, {"kid": "k1"}])
def test_a_key_is_revoked_for_the_tokens_it_verified_whether_they_name_it_or_not(header: dict[str, str]) -> None:
    made = TokenTrust(None, VERIFIER.verify_full, Now(), revocations := Revocations())
    shown = {"authorization": "Bearer " + jwt.encode(CLAIMS, KEY, algorithm="ES256", headers=header)}
    revocations.apply("key", "k2", "default")
    caller = made.caller(shown)
    assert caller.principal(None) == Principal("bob", "t", ("viewer",), "j", "s", 100)
    revocations.apply("key", "k1", "default")
    with pytest.raises(TokenRejected):
        caller.principal(None)
    with pytest.raises(TokenRejected):
        made.caller(shown)


def test_the_name_that_a_token_gives_its_key_counts_for_nothing() -> None:
    def verify_with(_token: bytes, _now_s: float) -> tuple[dict[str, Any], str | None]:
        return dict(CLAIMS), verified_with

    made = TokenTrust(None, verify_with, Now(), revocations := Revocations())
    shown = {"authorization": "Bearer " + jwt.encode(CLAIMS, KEY, algorithm="ES256", headers={"kid": "k1"})}
    revocations.apply("key", "k2", "default")
    verified_with: str | None = "k2"
    with pytest.raises(TokenRejected):
        made.caller(shown)
    revocations.apply("key", "k1", "default")
    # A key in PEM has no name; it answers for every name that no other key has.
    verified_with = None
    assert made.caller(shown).principal(None) is not None


def test_no_token_is_nobody_and_a_bad_one_is_refused() -> None:
    caller = trust().caller({})
    assert isinstance(caller, Nobody)
    assert caller.principal(NAMED) is None
    for credentials in ("Bearer bad", f"Basic {GOOD}", GOOD, ""):
        with pytest.raises(Unauthenticated):
            trust().caller({"authorization": credentials})


@pytest.mark.parametrize("claims", [{"roles": "admin"}, {"roles": (1,)}, {"roles": ["viewer"]}, {"tenant": 1}])
def test_claims_of_another_shape_grant_nothing(claims: dict[str, Any]) -> None:
    with pytest.raises(TokenRejected):
        principal_of(CLAIMS | claims)


@pytest.mark.parametrize(
    ("names", "certificate", "kind"),
    [
        (None, {"subjectAltName": (("DNS", "gateway"),)}, Nobody),
        (frozenset(), {"subjectAltName": (("DNS", "gateway"),)}, Gateway),
        (frozenset(), {}, Nobody),
        (frozenset(), None, Nobody),
        (frozenset({"gateway", "other"}), {"subjectAltName": (("DNS", "gateway"),)}, Gateway),
        (frozenset({"gateway"}), {"subjectAltName": (("DNS", "gateway.evil"), ("URI", "gateway"))}, Nobody),
        (frozenset({"gateway"}), {"subject": ((("commonName", "gateway"),),)}, Nobody),
    ],
)
def test_a_certificate_makes_a_gateway_where_it_is_signed_for_one(
    names: frozenset[str] | None, certificate: dict[str, Any] | None, kind: type
) -> None:
    class Shown:
        def cert(self) -> dict[str, Any] | None:
            return certificate

        def addr(self) -> Any:
            return "10.0.0.9", 4711, 0, 0

    made = TokenTrust(b"shared", verify, Now(), Revocations(), names)
    assert isinstance(made.caller({}, Shown()), kind)
    # A token says more than a certificate, and a wrong one is not made good by it.
    client = made.caller({"authorization": f"Bearer {GOOD}"}, Shown()).principal(None)
    assert client is not None
    assert "bob" == client.subject
    with pytest.raises(TokenRejected):
        made.caller({"x-flx-gateway-token": "guess"}, Shown())


@pytest.mark.parametrize(
    ("peername", "address"), [(("10.0.0.9", 4711), "10.0.0.9"), (("::1", 4711, 0, 0), "::1"), ("", ""), (None, "")]
)
def test_where_a_caller_is_comes_from_its_connection(peername: Any, address: str) -> None:
    class Shown:
        def cert(self) -> dict[str, Any] | None:
            return None

        def addr(self) -> Any:
            return peername

    made = trust()
    assert made.caller({}, Shown()).address == address
    assert made.caller({"authorization": f"Bearer {GOOD}"}, Shown()).address == address
    assert made.caller({"x-flx-gateway-token": "shared"}, Shown()).address is None
    assert made.caller({}).address == ""
    assert SocketTrust().caller({}, Shown()).address is None
