"""Bodies: counted while they come, refused as soon as they are known to be wrong."""

from __future__ import annotations

import asyncio

import pytest
from tests.gateway_app import Wire, exchange, scope

from flx_api.errors import InvalidRequest
from flx_api.gateway.alarms import Alarms
from flx_api.gateway.intake import take_body

JSON = {"content-type": "application/json"}
CHUNKED = {"transfer-encoding": "chunked"}


def take(headers: dict[str, str], *chunks: bytes, limit: int = 10) -> bytes:
    messages = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks)}
        for index, chunk in enumerate(chunks, 1)
    ]
    asked = exchange(Wire(*messages), scope("POST", "/auth/login", headers))
    return asyncio.run(take_body(asked, limit, Alarms(60)))


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
@pytest.mark.parametrize("size", [{"content-length": "4"}, CHUNKED])
def test_json_is_taken(kind: str, size: dict[str, str]) -> None:
    assert b"{}  " == take({"content-type": kind, **size}, b"{}", b"  ")


@pytest.mark.parametrize(
    ("headers", "chunks", "code"),
    [
        ({**JSON, **CHUNKED}, [b"x" * 6, b"x" * 6, b"never read"], "payload_too_large"),
        ({**JSON, "content-length": "4"}, [b"x" * 12], "payload_too_large"),
        (CHUNKED, [b"{}"], "unsupported_media_type"),
        ({"content-type": "application/json; charset=latin-1", **CHUNKED}, [b"{}"], "unsupported_media_type"),
        ({**JSON, "content-length": "4"}, [], "invalid_request"),
    ],
)
def test_what_is_wrong_is_refused(headers: dict[str, str], chunks: list[bytes], code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        take(headers, *chunks)
    assert code == caught.value.code


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def story() -> None:
        waiting = exchange(Wire(), scope("POST", "/auth/login", {**JSON, "content-length": "4"}))
        waiting.receive = asyncio.Event().wait  # type: ignore[assignment]
        with pytest.raises(InvalidRequest) as caught:
            await take_body(waiting, 10, Alarms(0.01))
        assert ("request_timeout", 408) == (caught.value.code, caught.value.spec.http)
        task = asyncio.current_task()
        assert task is not None
        assert 0 == task.cancelling()

    asyncio.run(story())


def test_a_request_that_is_cancelled_while_its_body_comes_is_no_timeout() -> None:
    async def story() -> None:
        waiting = exchange(Wire(), scope("POST", "/auth/login", {**JSON, "content-length": "4"}))
        waiting.receive = asyncio.Event().wait  # type: ignore[assignment]
        task = asyncio.create_task(take_body(waiting, 10, Alarms(60)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())


def test_nothing_is_nothing() -> None:
    assert b"" == take({})
    assert b"" == take({"content-length": "0"})
    assert b"{}" == take({"content-length": "2", **JSON, "content-encoding": "identity"}, b"{}")
