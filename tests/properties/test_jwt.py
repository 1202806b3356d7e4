"""Token verification against two judges: PyJWT for what must agree, and the rules written out for what must not.

PyJWT is laxer than the RFCs in ways that matter, so it is no oracle alone. `LAXER` is the list of intended differences:
each token is accepted by PyJWT and refused here. Beyond the list: whatever is accepted here PyJWT accepts with the same
claims (fractions of seconds apart, which PyJWT cuts off), and every refusal follows from a rule of `acceptable`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, tzinfo
from typing import Any, Self

import jwt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flx_api._core import TokenVerifier, verify_jws
from flx_api.errors import TokenRejected

NOW = 1_700_000_000
SECRET = b"0123456789abcdef0123456789ABCDEF"
OTHER = b"fedcba9876543210fedcba9876543210"
FIXED = settings(derandomize=True, database=None, max_examples=120)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:jwt")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def key(secret: bytes = SECRET, **members: object) -> dict[str, object]:
    return {"kty": "oct", "k": b64(secret), **members}


def key_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def sign(header: str | bytes, payload: str | bytes, secret: bytes = SECRET) -> bytes:
    """A token of exactly these texts, however wrong they are."""
    parts = [part.encode() if isinstance(part, str) else part for part in (header, payload)]
    signed = ".".join(map(b64, parts)).encode()
    return signed + b"." + b64(hmac.new(secret, signed, hashlib.sha256).digest()).encode()


def minted(claims: object, **header: object) -> bytes:
    return sign(json.dumps({"alg": "HS256", **header}), json.dumps(claims))


def reason(token: bytes, now_s: float = NOW, **expected: Any) -> str | None:
    """Why a token is refused; None when it is accepted."""
    expected = {"required": (), **expected}
    try:
        TokenVerifier(key_set(key(kid="k1", alg="HS256")), **expected).verify(token, now_s)
    except TokenRejected as refusal:
        return refusal.reason
    return None


class Clock(datetime):
    """PyJWT asks the wall clock; here it stands still."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp(NOW, tz or UTC)


@pytest.fixture(autouse=True)
def _standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jwt.api_jwt.datetime", Clock)


HS256 = '{"alg":"HS256"}'
LAXER: dict[str, tuple[bytes, str]] = {
    "exp as a string": (sign(HS256, '{"exp":"9999999999"}'), "invalid_claim"),
    "exp as a padded string": (sign(HS256, '{"exp":" 9999999999 "}'), "invalid_claim"),
    "exp with underscores": (sign(HS256, '{"exp":"9_999_999_999"}'), "invalid_claim"),
    "exp in Arabic digits": (sign(HS256, '{"exp":"٩٩٩٩٩٩٩٩٩٩"}'), "invalid_claim"),
    "exp out of range": (sign(HS256, '{"exp":1e30}'), "invalid_claim"),
    "exp as a huge integer": (sign(HS256, '{"exp":' + "9" * 30 + "}"), "invalid_payload"),
    "nbf as a string": (sign(HS256, '{"nbf":"1"}'), "invalid_claim"),
    "nbf as a truth value": (sign(HS256, '{"nbf":true}'), "invalid_claim"),
    "nbf before 1970": (sign(HS256, '{"nbf":-1}'), "invalid_claim"),
    "nbf a fraction ahead": (sign(HS256, f'{{"nbf":{NOW}.5}}'), "not_yet_valid"),
    "a claim twice": (sign(HS256, '{"sub":"a","sub":"admin"}'), "invalid_payload"),
    "a claim twice, once escaped": (sign(HS256, '{"sub":"a","s\\u0075b":"admin"}'), "invalid_payload"),
    "a nested name twice": (sign(HS256, '{"x":{"a":1,"a":2}}'), "invalid_payload"),
    "alg twice": (sign('{"alg":"none","alg":"HS256"}', "{}"), "invalid_header"),
    "payload in UTF-16": (sign(HS256, '{"sub":"a"}'.encode("utf-16")), "invalid_payload"),
    "payload with a byte order mark": (sign(HS256, b'\xef\xbb\xbf{"sub":"a"}'), "invalid_payload"),
    "lone surrogate in sub": (sign(HS256, '{"sub":"\\ud800"}'), "invalid_payload"),
    "NUL in sub": (sign(HS256, '{"sub":"a\\u0000"}'), "invalid_subject"),
    "empty sub": (sign(HS256, '{"sub":""}'), "invalid_subject"),
    "NaN": (sign(HS256, '{"x":NaN}'), "invalid_payload"),
    "empty aud": (sign(HS256, '{"aud":""}'), "wrong_audience"),
    "aud without members": (sign(HS256, '{"aud":[]}'), "wrong_audience"),
    "aud as zero": (sign(HS256, '{"aud":0}'), "invalid_claim"),
    "padding after the signature": (sign(HS256, "{}") + b"=", "invalid_base64"),
    "zip": (sign('{"alg":"HS256","zip":"DEF"}', "{}"), "unsupported_header"),
    "a key of its own": (sign('{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}', "{}"), "untrusted_key_header"),
    "an address of a key": (sign('{"alg":"HS256","jku":"https://evil"}', "{}"), "untrusted_key_header"),
    "a certificate": (sign('{"alg":"HS256","x5c":["AA"]}', "{}"), "untrusted_key_header"),
    "an address of a certificate": (sign('{"alg":"HS256","x5u":"https://evil"}', "{}"), "untrusted_key_header"),
    "typ as a number": (sign('{"alg":"HS256","typ":1}', "{}"), "invalid_header"),
    "a large header": (sign('{"alg":"HS256","x":"' + "x" * 9000 + '"}', "{}"), "token_too_large"),
    "nesting": (sign(HS256, '{"x":' + "[" * 100 + "]" * 100 + "}"), "invalid_payload"),
}


@pytest.mark.parametrize("name", LAXER)
def test_pyjwt_is_laxer(name: str) -> None:
    """PyJWT accepts it, RFC 7515, 7519 or 8725 does not, and neither do we."""
    token, expected = LAXER[name]
    jwt.decode(token, SECRET, ["HS256"], options={"verify_aud": "aud" not in name})
    assert reason(token) == expected


REFUSED: dict[str, tuple[bytes, str]] = {
    "two parts": (b"e30.e30", "malformed_token"),
    "four parts": (sign(HS256, "{}") + b".e30", "malformed_token"),
    "empty parts": (b"..", "malformed_token"),
    "a megabyte of dots": (b"." * 2**20, "token_too_large"),
    "alg none": (b"eyJhbGciOiJub25lIn0.e30.", "unsupported_algorithm"),
    "alg nOnE": (sign('{"alg":"nOnE"}', "{}"), "unsupported_algorithm"),
    "alg empty": (sign('{"alg":""}', "{}"), "unsupported_algorithm"),
    "alg null": (sign('{"alg":null}', "{}"), "invalid_header"),
    "alg list": (sign('{"alg":["HS256"]}', "{}"), "invalid_header"),
    "alg missing": (sign("{}", "{}"), "invalid_header"),
    "alg of another kind": (sign('{"alg":"RS256"}', "{}"), "algorithm_mismatch"),
    "alg unknown": (sign('{"alg":"RS257"}', "{}"), "unsupported_algorithm"),
    "kid unknown": (sign('{"alg":"HS256","kid":"../../dev/null"}', "{}"), "unknown_key"),
    "kid as a number": (sign('{"alg":"HS256","kid":1}', "{}"), "invalid_header"),
    "crit": (sign('{"alg":"HS256","crit":["exp"]}', "{}"), "unsupported_header"),
    "crit empty": (sign('{"alg":"HS256","crit":[]}', "{}"), "unsupported_header"),
    "crit as text": (sign('{"alg":"HS256","crit":"b64"}', "{}"), "unsupported_header"),
    "b64": (sign('{"alg":"HS256","b64":false}', "{}"), "unsupported_header"),
    "signature missing": (sign(HS256, "{}").rpartition(b".")[0] + b".", "invalid_signature"),
    "signature cut": (sign(HS256, "{}")[:-3], "invalid_signature"),
    "another key": (sign(HS256, "{}", OTHER), "invalid_signature"),
    "a list as payload": (sign(HS256, "[]"), "invalid_payload"),
    "roles as text": (minted({"roles": "admin"}), "invalid_roles"),
    "roles twice": (minted({"roles": ["admin", "admin"]}), "invalid_roles"),
    "roles nested": (minted({"roles": [["admin"]]}), "invalid_roles"),
    "tenant as a number": (minted({"tenant": 1}), "invalid_tenant"),
    "jti as a number": (minted({"jti": 1}), "invalid_claim"),
    "sid as a number": (minted({"sid": 1}), "invalid_session"),
    "sid empty": (minted({"sid": ""}), "invalid_session"),
    "sid with NUL": (minted({"sid": "s\0"}), "invalid_session"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_tokens_are_refused(name: str) -> None:
    token, expected = REFUSED[name]
    assert reason(token) == expected


def is_time(value: object) -> bool:
    return type(value) in {int, float} and 0 <= value <= 253_402_300_799  # type: ignore[operator]


def is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def acceptable(
    claims: dict[str, Any], issuer: str | None, audience: str | None, leeway: int, needed: list[str]
) -> bool:
    """The rules for claims, one a line."""
    aud = claims.get("aud", [])
    auds = aud if isinstance(aud, list) else [aud]
    roles = claims.get("roles", [])
    return all(
        [
            all(name in claims for name in needed),
            all(is_time(claims[name]) for name in ("exp", "nbf", "iat") if name in claims),
            "exp" not in claims or (is_time(claims["exp"]) and claims["exp"] + leeway > NOW),
            "nbf" not in claims or (is_time(claims["nbf"]) and claims["nbf"] - leeway <= NOW),
            "iat" not in claims or (is_time(claims["iat"]) and claims["iat"] - leeway <= NOW),
            isinstance(claims.get("iss", ""), str),
            issuer is None or claims.get("iss") == issuer,
            all(isinstance(one, str) for one in auds),
            audience in auds if audience is not None else "aud" not in claims,
            all(is_text(claims[name]) for name in ("sub", "jti", "sid", "tenant") if name in claims),
            isinstance(roles, list) and all(map(is_text, roles)) and len(set(roles)) == len(roles),
        ]
    )


odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, "", "a", "\0", 0, 1.5, -1, 10**13, [], ["a"], ["a", "a"], [1], {}]
)
times = st.one_of(st.integers(-35, 35).map(lambda off: NOW + off), st.sampled_from([NOW, NOW - 1, NOW + 1, 0]), odd)
texts = st.one_of(st.sampled_from(["flx", "flx-api", "flx/", "FLX", "a"]), odd)
claim_sets = st.fixed_dictionaries(
    {},
    optional={
        "exp": times,
        "nbf": times,
        "iat": times,
        "iss": st.one_of(st.just("flx"), texts),
        "aud": st.one_of(st.just("flx-api"), st.just(["x", "flx-api"]), texts),
        "sub": texts,
        "jti": texts,
        "sid": texts,
        "tenant": texts,
        "roles": st.one_of(st.lists(st.sampled_from(["admin", "viewer"]), max_size=3), odd),
        "other": odd,
    },
)


@given(
    claims=claim_sets,
    issuer=st.sampled_from([None, "flx"]),
    audience=st.sampled_from([None, "flx-api"]),
    leeway=st.sampled_from([0, 30]),
    needed=st.sampled_from([[], ["exp"], ["exp", "sub"]]),
)
@settings(FIXED, max_examples=250)
def test_claims_follow_the_rules_and_pyjwt_agrees(
    claims: dict[str, Any], issuer: str | None, audience: str | None, leeway: int, needed: list[str]
) -> None:
    """Accepted exactly when every rule holds, and then PyJWT accepts it too, with the same claims."""
    token = minted(claims, kid="k1", typ="JWT")
    verifier = TokenVerifier(key_set(key(kid="k1")), issuer=issuer, audience=audience, leeway_s=leeway, required=needed)
    try:
        ours = verifier.verify(token, NOW)
    except TokenRejected:
        assert not acceptable(claims, issuer, audience, leeway, needed)
        return
    assert acceptable(claims, issuer, audience, leeway, needed)
    assert ours == claims
    assert list(map(type, ours.values())) == list(map(type, claims.values()))
    judged = jwt.decode(
        token, SECRET, ["HS256"], issuer=issuer, audience=audience, leeway=leeway, options={"require": needed}
    )
    assert judged == ours


@given(
    at=st.integers(0, 10**6), byte=st.integers(0, 255), claims=st.dictionaries(st.text(max_size=4), st.text(max_size=8))
)
@FIXED
def test_a_changed_byte_is_refused(at: int, byte: int, claims: dict[str, str]) -> None:
    """No byte of a token is free: there is one spelling of each."""
    token = bytearray(minted({"x": claims}))
    at %= len(token)
    assume(token[at] != byte)
    assert reason(bytes(token)) is None
    token[at] = byte
    assert reason(bytes(token)) is not None


@given(payload=st.binary(min_size=1, max_size=300), secret=st.binary(min_size=32, max_size=100))
@FIXED
def test_any_payload_of_a_sound_jws_comes_back(payload: bytes, secret: bytes) -> None:
    """`verify_jws` does not interpret the payload, and agrees with PyJWT's signature for every secret."""
    assume(not secret.lstrip().startswith((b"-----BEGIN", b"0")))
    token = jwt.api_jws.encode(payload, secret, "HS256")
    assert verify_jws(token.encode(), key_set(key(OTHER, kid="other"), key(secret))) == payload


def test_a_token_ends_at_exp() -> None:
    """`exp` itself is over, fractions count, and leeway moves the end."""
    token = minted({"exp": NOW + 0.5})
    assert reason(token, NOW + 0.25) is None
    assert reason(token, NOW + 0.5) == "expired"
    assert reason(token, NOW + 30.25, leeway_s=30) is None
    with pytest.raises(ValueError, match="now_s"):
        reason(token, float("inf"))


def test_typ_is_checked_when_configured() -> None:
    for typ, expected in [("at+jwt", None), ("application/AT+JWT", None), ("JWT", "wrong_type"), ("", "wrong_type")]:
        assert reason(minted({}, typ=typ), typ="at+jwt") == expected
    assert reason(minted({}), typ="at+jwt") == "wrong_type"


def test_the_key_decides_the_algorithm_and_the_use() -> None:
    """Only a key meant for HS256 verification is tried; the rest of a set is left alone."""
    token = minted({"sub": "a"}, kid="k1")
    rsa: dict[str, object] = {"kty": "RSA", "kid": "r", "n": "AQAB", "e": "AQAB", "use": "enc"}
    cases: list[tuple[list[dict[str, object]], bool]] = [
        ([key(kid="k1")], True),
        ([rsa, key(kid="k1", use="sig", key_ops=["verify", "sign"])], True),
        ([key(SECRET * 2, kid="k1", alg="HS512")], False),
        ([key(kid="k1", use="enc")], False),
        ([key(kid="k1", key_ops=["sign"])], False),
        ([key(kid="k2")], False),
        ([key()], False),
        ([rsa], False),
        ([], False),
    ]
    for keys, good in cases:
        if good:
            assert verify_jws(token, key_set(*keys)) == b'{"sub": "a"}'
        else:
            with pytest.raises(TokenRejected, match="token"):
                verify_jws(token, key_set(*keys))


PEM = b"-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize(
    "jwks",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[],"keys":[]}',
        key_set({}),
        key_set(key(kid="a"), key(OTHER, kid="a")),
        key_set(key(b"secret")),
        key_set(key(b"")),
        key_set(key(SECRET[:31])),
        key_set(key(PEM)),
        key_set(key(b" \n" + PEM)),
        key_set(key(b"\xef\xbb\xbf" + PEM)),
        key_set(key(b'{"kty":"RSA","n":"AQABAQABAQAB","e":"AQAB"}')),
        key_set(key(b"0\x82\x01\x22" + bytes(0x122))),
        key_set(key(kid="k1", alg="HS512")),
        key_set({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
        key_set({"kty": "oct", "k": b64(SECRET) + "="}),
        key_set(key(kid=1)),
        key_set(key(key_ops="verify")),
    ],
)
def test_unusable_key_sets_are_errors(jwks: bytes) -> None:
    """A weak or ambiguous key set stops the start; it never becomes a refusal of some tokens."""
    with pytest.raises(ValueError, match="key set"):
        TokenVerifier(jwks)


def test_a_remembered_token_is_worth_what_it_was_and_no_longer() -> None:
    claims = {"sub": "a", "exp": NOW + 10, "roles": ["r"], "more": {"deep": [1]}}
    token = minted(claims)
    plain = TokenVerifier(key_set(key(kid="k1", alg="HS256")), leeway_s=5)
    remembering = plain.remembering(100_000)
    for _ in range(3):
        found, key_id = remembering.verify_full(token, NOW + 14.9)
        assert ({**claims, "roles": ("r",), "more": {"deep": (1,)}}, "k1") == (found, key_id)
        # Many may hold it at once, so nobody can change it.
        for mapping in (found, found["more"]):
            with pytest.raises(TypeError, match="assignment"):
                mapping["sub"] = "b"  # type: ignore[index]
        assert claims == remembering.verify(token, NOW)
    assert found is remembering.verify_full(token, NOW)[0], "it was remembered"
    for verify in (plain.verify, plain.verify_full, remembering.verify, remembering.verify_full):
        with pytest.raises(TokenRejected) as refusal:
            verify(token, NOW + 15)
        assert "expired" == refusal.value.reason
    with pytest.raises(TokenRejected) as refusal:
        remembering.verify_full(token[:-4] + b"AAAA", NOW)
    assert "invalid_signature" == refusal.value.reason


def test_memory_for_tokens_is_bounded() -> None:
    for room in (0, 10_000):
        remembering = TokenVerifier(key_set(key(kid="k1", alg="HS256"))).remembering(room)
        for number in [*range(50), *range(50)]:
            token = minted({"sub": str(number), "exp": NOW + 10})
            assert str(number) == remembering.verify_full(token, NOW)[0]["sub"]
    with pytest.raises(ValueError, match="16 GiB"):
        remembering.remembering(1 << 40)
