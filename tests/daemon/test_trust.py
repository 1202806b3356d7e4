"""Who is believed to be whom."""

from __future__ import annotations

from typing import Any

import pytest

from flx_api.daemon.principal import Principal
from flx_api.daemon.trust import Gateway, Nobody, SocketTrust, TokenTrust, principal_of
from flx_api.errors import TokenRejected, Unauthenticated
from flx_api.proto.flx.v1.daemon_pb2 import Principal as Named

CLAIMS = {"sub": "bob", "tenant": "t", "roles": ["viewer"], "exp": 100}
NAMED = Named(subject="root", tenant="x", roles=["admin"])


class Now:
    s = 50.0

    def __call__(self) -> float:
        return self.s


def verify(token: bytes, _now_s: float) -> dict[str, Any]:
    if token != b"good":
        reason = "malformed_token"
        raise TokenRejected(reason)
    return dict(CLAIMS)


def trust(shared: bytes | None = b"shared", now: Now | None = None) -> TokenTrust:
    return TokenTrust(shared, verify, now or Now())


def test_the_socket_names_whom_it_likes() -> None:
    caller = SocketTrust().caller({})
    assert caller.principal(NAMED) == Principal("root", "x", ("admin",))
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
    caller = trust(now=now).caller({"authorization": "Bearer good"})
    assert caller.principal(NAMED) == Principal("bob", "t", ("viewer",))
    assert caller.tenant == "t"
    now.s = 100.0
    with pytest.raises(TokenRejected):
        caller.principal(NAMED)


def test_no_token_is_nobody_and_a_bad_one_is_refused() -> None:
    caller = trust().caller({})
    assert isinstance(caller, Nobody)
    assert caller.principal(NAMED) is None
    for credentials in ("Bearer bad", "Basic good", "good", ""):
        with pytest.raises(Unauthenticated):
            trust().caller({"authorization": credentials})


@pytest.mark.parametrize("claims", [{"roles": "admin"}, {"roles": [1]}, {"tenant": 1}])
def test_claims_of_another_shape_grant_nothing(claims: dict[str, Any]) -> None:
    with pytest.raises(TokenRejected):
        principal_of(CLAIMS | claims)
