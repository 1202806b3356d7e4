"""The key set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.gateway_app import settings
from tests.gateway_process import SECRET

from flx_api._core import verify_jws
from flx_api.auth.keys import key_set, public_keys, realms, ticket_key, verifier
from flx_api.errors import StartupError, TokenRejected

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000


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


def token(key: Any, algorithm: str, issuer: str) -> bytes:
    claims = {"iss": issuer, "aud": "flx-api", "sub": "anna", "exp": NOW}
    return jwt.encode(
        claims, key, algorithm=algorithm, headers={"kid": "of-theirs"} if algorithm != "HS256" else None
    ).encode()


def test_a_key_file_adds_an_issuer_beside_ours(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    for name, form in [("key.pem", Encoding.PEM), ("key.der", Encoding.DER)]:
        file = tmp_path / name
        file.write_bytes(key.public_key().public_bytes(form, PublicFormat.SubjectPublicKeyInfo))
        both = verifier(settings(jwt_jwks=str(file), jwt_jwks_issuer="them", jwt_jwks_leeway_s=10))
        assert both.key_count == 2
        assert both.verify(token(SECRET, "HS256", "flx"), NOW - 1)["iss"] == "flx"
        assert both.verify(token(key, "RS256", "them"), NOW + 9)["iss"] == "them"
        for bad, now_s in [
            (token(SECRET, "HS256", "flx"), NOW),
            (token(SECRET, "HS256", "them"), NOW - 1),
            (token(key, "RS256", "flx"), NOW - 1),
            (token(key, "RS256", "them"), NOW + 10),
            (token(key, "RS512", "them"), NOW - 1),
        ]:
            with pytest.raises(TokenRejected):
                both.verify(bad, now_s)


def test_the_order_of_algorithms_binds_a_key_that_names_none(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    file = tmp_path / "key.pem"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1))
    made = verifier(settings(jwt_jwks=str(file), jwt_algorithms=("PS384", "RS256")))
    assert made.key_count == 1
    assert made.verify(token(key, "PS384", "flx"), NOW - 1)["sub"] == "anna"
    with pytest.raises(TokenRejected):
        made.verify(token(SECRET, "HS256", "flx"), NOW - 1)


def test_fetched_keys_must_be_public_and_an_address_alone_is_no_key() -> None:
    given = settings(jwt_jwks="https://issuer.example/keys", jwt_algorithms=("ES256",))
    assert len(realms(given)) == 1
    assert verifier(given).key_count == 0
    secret = msgspec.json.encode({"keys": [{"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlBQkNERUY"}]})
    for unusable in [secret, b"", b"{}"]:
        with pytest.raises(StartupError, match="FLX_JWT_JWKS"):
            verifier(given, unusable)


def test_keys_that_are_all_left_out_stop_the_start() -> None:
    with pytest.raises(StartupError, match="FLX_JWT_ALGORITHMS"):
        verifier(settings(jwt_algorithms=("RS256",)))
