"""Problem documents and common headers."""

from __future__ import annotations

import msgspec
import pytest
from tests.gateway_app import Wire, built, exchange, scope

from flx_api._core import reasons
from flx_api.errors import CODES, FieldError, FlxError, TokenRejected, Unauthenticated, ValidationFailed
from flx_api.gateway.responses import PolicyRefusals, item_problem, problem


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_a_whole_document(code: str) -> None:
    status, headers, body = problem(FlxError(code=code), "r1")
    document = msgspec.json.decode(body)
    assert (status, document["status"], document["code"]) == (CODES[code].http, CODES[code].http, code)
    assert document["retryable"] is CODES[code].retryable
    assert document["request_id"] == "r1"
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    assert (b"retry-after" in dict(headers)) == (status in {429, 503})


def test_only_a_token_that_was_given_is_called_invalid() -> None:
    assert dict(problem(Unauthenticated(), "r")[1])[b"www-authenticate"] == b"Bearer"
    assert dict(problem(TokenRejected("expired"), "r")[1])[b"www-authenticate"] == b'Bearer error="invalid_token"'
    assert b"expired" not in problem(TokenRejected("expired"), "r")[2]


def test_fields_and_waits_are_told() -> None:
    error = ValidationFailed(errors=[FieldError("name", "is needed")], retry_after_s=1.2)
    _, headers, body = problem(error, "r")
    assert msgspec.json.decode(body)["errors"] == [{"field": "name", "reason": "is needed"}]
    assert dict(headers)[b"retry-after"] == b"2"


@pytest.mark.parametrize("code", CODES)
def test_an_operations_problem_says_the_same_and_when_to_come_again(code: str) -> None:
    error = FlxError(code=code, errors=[FieldError("name", "is needed")], suggestions=["a.b"])
    _, headers, body = problem(error, "r1")
    said = msgspec.json.decode(msgspec.json.encode(item_problem(error, "r1")))
    retry_after = said.pop("retry_after", None)
    assert msgspec.json.decode(body) == said
    assert dict(headers).get(b"retry-after") == (None if retry_after is None else b"%d" % retry_after)


def test_a_policys_refusal_says_what_it_allows() -> None:
    refusals = PolicyRefusals([("few", "ip", 2, 1500, 1, False), ("day", "subject", 9, 86_400_000, 1, False)])
    error = refusals.refusal("rate_limited", (0, 7))
    assert ("The policy few allows 2 in 2 s", 7) == (error.detail, error.retry_after_s)
    status, headers, before, after = refusals.prepared()[1]
    assert (429, [(b"content-type", b"application/problem+json")]) == (status, headers)
    assert b"The policy day allows 9 in 86400 s" in before
    assert "x" == msgspec.json.decode(before + b"x" + after)["request_id"]


def test_every_reason_has_an_answer_and_all_token_faults_the_same() -> None:
    prepared = PolicyRefusals([]).prepared_by_reason()
    assert set(reasons()) - {"rate_limited", "method_not_allowed"} == set(prepared)
    token_faults = {str(prepared[word]) for word in ("expired", "revoked", "invalid_signature", "unknown_key")}
    assert 1 == len(token_faults)
    assert 401 == prepared["expired"][0]
    assert [400, 404, 413, 415] == [
        prepared[word][0] for word in ("invalid_host", "not_found", "payload_too_large", "unsupported_encoding")
    ]


def test_where_leases_cannot_be_had_the_answer_says_when_to_come_again() -> None:
    prepared = PolicyRefusals([]).prepared_by_reason()
    for word in ("lease_awaited", "lease_unavailable"):
        status, headers, *_ = prepared[word]
        assert (503, b"1") == (status, dict(headers).get(b"retry-after"))


def test_every_response_is_hardened() -> None:
    parts = built()
    headers = dict(exchange(Wire(), scope(headers={"x-request-id": "r1"}), parts).admitted.headers([], 3))
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"server"] == b"flx"
    assert headers[b"x-request-id"] == b"r1"
    assert headers[b"content-length"] == b"3"
    assert b"strict-transport-security" not in headers
    secure = exchange(Wire(), {**scope(), "scheme": "https"}, parts).admitted
    assert b"strict-transport-security" in dict(secure.headers([], None))
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'")
    own = [(b"content-security-policy", b"x")]
    assert [b"x"] == [value for key, value in secure.headers(own, None) if key == b"content-security-policy"]
