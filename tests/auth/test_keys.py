"""The key set."""

from __future__ import annotations

import jwt
import msgspec
from tests.gateway_app import settings
from tests.gateway_process import SECRET

from flx_api._core import verify_jws
from flx_api.auth.keys import key_set, public_keys


def test_the_core_verifies_with_it_what_was_signed_with_the_secret() -> None:
    token = jwt.encode({"sub": "anna"}, SECRET, algorithm="HS256").encode()
    assert msgspec.json.decode(verify_jws(token, key_set(settings()))) == {"sub": "anna"}


def test_a_secret_is_never_published() -> None:
    assert public_keys(settings()) == ()
