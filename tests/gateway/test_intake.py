"""Bodies: counted while they come, refused as soon as they are known to be wrong."""

from __future__ import annotations

import asyncio

import pytest
from tests.gateway_app import Wire, scope

from flx_api.errors import InvalidRequest
from flx_api.gateway.exchange import Exchange
from flx_api.gateway.intake import take_body

JSON = {"content-type": "application/json"}


def take(headers: dict[str, str], *chunks: bytes, limit: int = 10) -> bytes:
    messages = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks)}
        for index, chunk in enumerate(chunks, 1)
    ]
    wire = Wire(*messages)
    exchange = Exchange(scope("POST", "/", headers), wire.receive, wire.send, "r")
    return asyncio.run(take_body(exchange, limit))


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
def test_json_is_taken(kind: str) -> None:
    assert take({"content-type": kind, "content-length": "4"}, b"{}", b"  ") == b"{}  "


@pytest.mark.parametrize(
    ("headers", "chunks", "code"),
    [
        ({**JSON, "content-length": "11"}, [], "payload_too_large"),
        ({**JSON, "transfer-encoding": "chunked"}, [b"x" * 6, b"x" * 6, b"never read"], "payload_too_large"),
        ({**JSON, "content-encoding": "gzip", "content-length": "2"}, [b"{}"], "unsupported_encoding"),
        ({"content-length": "2"}, [b"{}"], "unsupported_media_type"),
        (
            {"content-type": "application/json; charset=latin-1", "content-length": "2"},
            [b"{}"],
            "unsupported_media_type",
        ),
        ({**JSON, "content-length": "-1"}, [], "invalid_request"),
        ({**JSON, "content-length": "4"}, [], "invalid_request"),
        ({**JSON, "content-length": "2", "transfer-encoding": "chunked"}, [b"{}"], "invalid_request"),
        ({**JSON, "content-length": "0", "transfer-encoding": "chunked"}, [], "invalid_request"),
    ],
)
def test_what_is_wrong_is_refused(headers: dict[str, str], chunks: list[bytes], code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        take(headers, *chunks)
    assert caught.value.code == code


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.gateway.intake.BODY_TIMEOUT_S", 0.01)

    async def story() -> None:
        wire = Wire()
        request = scope("POST", "/", {**JSON, "content-length": "4"})
        with pytest.raises(InvalidRequest) as caught:
            await take_body(Exchange(request, asyncio.Event().wait, wire.send, "r"), 10)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.spec.http) == ("request_timeout", 408)

    asyncio.run(story())


def test_nothing_is_nothing() -> None:
    assert take({}) == b""
    assert take({"content-length": "0"}) == b""
    assert take({"content-length": "2", **JSON, "content-encoding": "identity"}, b"{}") == b"{}"
