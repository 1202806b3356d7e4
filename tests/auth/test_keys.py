"""The key set."""

from __future__ import annotations

import jwt
import msgspec
import pytest
from tests.gateway_app import settings
from tests.gateway_process import SECRET

from flx_api._core import verify_jws
from flx_api.auth.keys import key_set, public_keys, ticket_key
from flx_api.errors import TokenRejected


def test_the_core_verifies_with_it_what_was_signed_with_the_secret() -> None:
    token = jwt.encode({"sub": "anna"}, SECRET, algorithm="HS256").encode()
    assert msgspec.json.decode(verify_jws(token, key_set(settings()))) == {"sub": "anna"}


def test_a_ticket_and_a_token_are_signed_with_different_keys() -> None:
    key = ticket_key(settings())
    assert key not in {SECRET.encode(), ticket_key(settings(jwt_secret_key=SECRET + "x"))}
    assert len(key) == 32
    with pytest.raises(TokenRejected):
        verify_jws(jwt.encode({"sub": "anna"}, key, algorithm="HS256").encode(), key_set(settings()))


def test_a_secret_is_never_published() -> None:
    assert public_keys(settings()) == ()
