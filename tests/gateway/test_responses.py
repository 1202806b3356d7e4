"""Problem documents and common headers."""

from __future__ import annotations

import msgspec
import pytest
from tests.gateway_app import Wire, scope

from flx_api.errors import CODES, FieldError, FlxError, TokenRejected, Unauthenticated, ValidationFailed
from flx_api.gateway.cors import Cors
from flx_api.gateway.exchange import Exchange
from flx_api.gateway.responses import finish, problem


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


def test_every_response_is_hardened() -> None:
    wire = Wire()
    exchange = Exchange(scope(), wire.receive, wire.send, "r1")
    headers = dict(finish(exchange, [], Cors(())))
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"server"] == b"flx"
    assert headers[b"x-request-id"] == b"r1"
    assert b"strict-transport-security" not in headers
    exchange.scope["scheme"] = "https"
    assert b"strict-transport-security" in dict(finish(exchange, [], Cors(())))
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'")
    assert dict(finish(exchange, [(b"content-security-policy", b"x")], Cors(())))[b"content-security-policy"] == b"x"
