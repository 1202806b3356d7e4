"""Cross-origin answers."""

from __future__ import annotations

import pytest

from flx_api.gateway.cors import Cors

ORIGIN = b"https://app.example.com"


@pytest.mark.parametrize("origin", [None, b"null", b"https://app.example.com.evil", b"http://app.example.com"])
def test_others_hear_nothing(origin: bytes | None) -> None:
    cors = Cors((ORIGIN.decode(),))
    assert cors.headers(origin) == [(b"vary", b"Origin")]
    assert cors.preflight(origin, "GET") == []


def test_an_origin_on_the_list_is_named() -> None:
    headers = dict(Cors((ORIGIN.decode(),)).headers(ORIGIN))
    assert headers[b"access-control-allow-origin"] == ORIGIN
    assert b"access-control-allow-credentials" not in headers


def test_a_star_allows_anyone_and_never_credentials() -> None:
    headers = dict(Cors(("*",)).headers(ORIGIN))
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-credentials" not in headers
    assert not Cors(()).active
