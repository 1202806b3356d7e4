"""Every signature algorithm against PyJWT: what one accepts the other accepts, with a written list of differences.

`stricter` is that list for keys: each set verifies with PyJWT, and is unusable here. Tokens and claims, which are the
same for all algorithms, have theirs in `test_jwt`. Nothing is accepted here that PyJWT refuses.
"""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms

from flx_api._core import TokenVerifier, verify_jws
from flx_api.errors import TokenRejected

NOW = 1_700_000_000
ALGORITHMS = [
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
]
FIXED = settings(derandomize=True, database=None, max_examples=60)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:jwt")


@functools.cache
def private_key(algorithm: str) -> Any:
    if algorithm.startswith("HS"):
        return bytes(range(64))
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    return ec.generate_private_key(curves[algorithm]) if algorithm in curves else rsa_key()


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def as_jwk(algorithm: str, key: Any) -> dict[str, Any]:
    """All of a key, as PyJWT writes it."""
    made: dict[str, Any] = get_default_algorithms()[algorithm].to_jwk(key, as_dict=True)
    return made


def jwk_of(algorithm: str, key: Any, **members: object) -> dict[str, Any]:
    public = key if isinstance(key, bytes) else key.public_key()
    made = as_jwk(algorithm, public)
    kept = {name: made[name] for name in ("kty", "k", "n", "e", "crv", "x", "y") if name in made}
    return kept | members


def jwk(algorithm: str, **members: object) -> dict[str, Any]:
    return jwk_of(algorithm, private_key(algorithm), alg=algorithm, kid=f"k-{algorithm}", **members)


def key_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


ALL = key_set(*map(jwk, ALGORITHMS))


@given(
    algorithm=st.sampled_from(ALGORITHMS),
    claims=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5), st.integers(-(2**63), 2**63 - 1), max_size=5
    ),
    named=st.booleans(),
)
@FIXED
def test_what_pyjwt_signs_verifies(algorithm: str, claims: dict[str, int], named: bool) -> None:
    payload = {**{f"x{name}": value for name, value in claims.items()}, "sub": "anna", "exp": NOW}
    headers = {"kid": f"k-{algorithm}"} if named else None
    token = jwt.encode(payload, private_key(algorithm), algorithm=algorithm, headers=headers).encode()
    assert TokenVerifier(ALL, mixed=True).verify_full(token, NOW - 1) == (payload, f"k-{algorithm}")
    assert json.loads(verify_jws(token, key_set(jwk(algorithm)))) == payload


@given(
    signed_as=st.sampled_from(ALGORITHMS),
    verified_as=st.sampled_from(ALGORITHMS),
    at=st.integers(0, 10_000),
    byte=st.sampled_from(b"ABab019-_.=+/ \x00\xff"),
    change=st.booleans(),
)
@settings(FIXED, max_examples=400)
def test_whatever_verifies_here_verifies_with_pyjwt(
    signed_as: str, verified_as: str, at: int, byte: int, change: bool
) -> None:
    token = bytearray(jwt.encode({"sub": "anna"}, private_key(signed_as), algorithm=signed_as).encode())
    if change:
        token[at % len(token)] = byte
    given_key = jwk(verified_as)
    try:
        payload = verify_jws(bytes(token), key_set(given_key))
    except TokenRejected:
        assert change or signed_as != verified_as
        return
    judged = jwt.api_jws.decode(bytes(token), jwt.PyJWK(given_key).key, [verified_as])
    assert judged == payload
    assert signed_as == verified_as


def number(value: int, extra: int = 0) -> str:
    return b64(bytes(extra) + value.to_bytes((value.bit_length() + 7) // 8, "big"))


def stricter() -> dict[str, tuple[Any, str, dict[str, Any]]]:
    """Name: the signing key, the algorithm, and the JWK that PyJWT verifies with."""
    numbers, point = rsa_key().public_key().public_numbers(), private_key("ES256").public_key().public_numbers()
    small = rsa_key(1024)
    return {
        "RSA of 1024 bits": (small, "RS256", jwk_of("RS256", small)),
        "a modulus with a leading zero": (rsa_key(), "RS256", jwk_of("RS256", rsa_key(), n=number(numbers.n, 1))),
        "an exponent with a leading zero": (
            rsa_key(),
            "PS256",
            jwk_of("PS256", rsa_key(), e=number(65537, 1), alg="PS256"),
        ),
        "a modulus with padding": (rsa_key(), "RS256", jwk_of("RS256", rsa_key(), n=number(numbers.n) + "==")),
        "a private RSA key": (rsa_key(), "RS256", as_jwk("RS256", rsa_key())),
        "a private EC key": (
            private_key("ES256"),
            "ES256",
            as_jwk("ES256", private_key("ES256")),
        ),
        "a coordinate with padding": (
            private_key("ES256"),
            "ES256",
            jwk_of("ES256", private_key("ES256"), x=number(point.x) + "="),
        ),
        "a secret shorter than its hash": (b"k" * 32, "HS512", {"kty": "oct", "k": b64(b"k" * 32), "alg": "HS512"}),
    }


@pytest.mark.parametrize("name", stricter())
def test_keys_that_pyjwt_takes(name: str) -> None:
    key, algorithm, given_key = stricter()[name]
    token = jwt.encode({"sub": "anna"}, key, algorithm=algorithm)
    judge = jwt.PyJWK(given_key, algorithm=algorithm)
    public = judge.key.public_key() if hasattr(judge.key, "public_key") else judge.key
    assert jwt.decode(token, public, [algorithm]) == {"sub": "anna"}
    with pytest.raises(ValueError, match="key set"):
        verify_jws(token.encode(), key_set(given_key))


def test_kinds_that_pyjwt_has_besides_are_left_out() -> None:
    """Ed448 and secp256k1: not weak, but nobody here can verify them, so a set may hold them."""
    besides: list[tuple[Any, str]] = [
        (ed448.Ed448PrivateKey.generate(), "EdDSA"),
        (ec.generate_private_key(ec.SECP256K1()), "ES256K"),
    ]
    for key, algorithm in besides:
        token = jwt.encode({"sub": "anna"}, key, algorithm=algorithm).encode()
        with pytest.raises(TokenRejected) as caught:
            verify_jws(token, key_set(jwk("ES256"), jwk_of(algorithm, key)))
        assert caught.value.reason in {"algorithm_mismatch", "unsupported_algorithm"}


def test_only_allowed_algorithms_are_used() -> None:
    for algorithm in ALGORITHMS:
        token = jwt.encode({"sub": "anna", "exp": NOW}, private_key(algorithm), algorithm=algorithm).encode()
        others = [name for name in ALGORITHMS if name != algorithm]
        assert TokenVerifier(ALL, mixed=True, algorithms=[algorithm]).verify(token, 0)["sub"] == "anna"
        assert TokenVerifier(ALL, mixed=True, algorithms=others).key_count == len(others)
        with pytest.raises(TokenRejected):
            TokenVerifier(ALL, mixed=True, algorithms=others).verify(token, 0)
    for names in (["none"], ["HS256", "HS256"], ["hs256"]):
        with pytest.raises(ValueError, match="algorithms"):
            TokenVerifier(ALL, mixed=True, algorithms=names)


def test_secrets_and_public_keys_are_mixed_on_purpose_only() -> None:
    token = jwt.encode({"sub": "anna"}, private_key("ES256"), algorithm="ES256").encode()
    both = key_set(jwk("HS256"), jwk("ES256"))
    with pytest.raises(ValueError, match="mixed"):
        verify_jws(token, both)
    assert verify_jws(token, both, mixed=True) == b'{"sub":"anna"}'
