"""Tokens as they are issued."""

from __future__ import annotations

import jwt
import msgspec

from flx_api.daemon.tokens import TokenIssuer, issue, key_set

KEY = b"k" * 32


def test_issuing_is_pure_and_the_token_says_what_it_should() -> None:
    def once() -> str:
        return issue(
            KEY, issuer="i", audience="a", subject="s", roles=("r",), tenant="t", now_s=1000, jti="j", ttl_s=60
        ).token

    assert once() == once()
    claims = jwt.decode(once(), KEY, ["HS256"], audience="a", issuer="i", options={"verify_exp": False})
    assert claims == {
        "iss": "i",
        "aud": "a",
        "sub": "s",
        "roles": ["r"],
        "tenant": "t",
        "jti": "j",
        "iat": 1000,
        "exp": 1060,
    }


def test_an_issuer_makes_tokens_of_an_hour_with_ids_of_their_own() -> None:
    issuer = TokenIssuer(KEY, "flx", "flx-api", lambda: 5_000_000)
    first, second = issuer.issue("s", (), "t"), issuer.issue("s", (), "t")
    assert first.jti != second.jti
    assert first.expires_in == 3600
    assert "k" * 8 not in repr(issuer)


def test_the_native_verifier_takes_them() -> None:
    core = __import__("pytest").importorskip("flx_api._core")
    verifier = core.TokenVerifier(key_set(KEY), issuer="flx", audience="flx-api")
    issued = TokenIssuer(KEY, "flx", "flx-api", lambda: 5_000_000).issue("s", ("viewer",), "t")
    assert verifier.verify(issued.token.encode(), 6.0)["roles"] == ["viewer"]


def test_the_key_set_is_one_oct_key() -> None:
    (key,) = msgspec.json.decode(key_set(b"\xff" * 32))["keys"]
    assert (key["kty"], key["alg"], "=" in key["k"]) == ("oct", "HS256", False)
