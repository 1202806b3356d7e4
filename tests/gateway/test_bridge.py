"""A response out of the messages of ASGI, for servers that are none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flx_api.gateway.bridge import Answering

START = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}


class Written(Answering):
    """Writes down what a server would be told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Any, ...]] = []

    def whole(self, status: int, headers: list[Any], body: bytes) -> None:
        self.told.append(("whole", status, headers, body))

    def begin(self, status: int, headers: list[Any]) -> None:
        self.told.append(("begin", status, headers))

    async def part(self, body: bytes) -> None:
        self.told.append(("part", body))

    def end(self) -> None:
        self.told.append(("end",))


def told(*messages: dict[str, Any]) -> list[tuple[Any, ...]]:
    async def story() -> list[tuple[Any, ...]]:
        written = Written()
        for message in messages:
            await written.send(message)
        return written.told

    return asyncio.run(story())


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def test_a_whole_one_is_one_call() -> None:
    assert told(START, body(b"x")) == [("whole", 200, [(b"a", b"b")], b"x")]
    assert told(START, {"type": "http.response.body"}) == [("whole", 200, [(b"a", b"b")], b"")]


def test_parts_leave_as_they_come_and_empty_ones_do_not() -> None:
    parts = [body(b"x", more=True), body(b"", more=True), body(b"y", more=True), body(b"")]
    assert told(START, *parts) == [("begin", 200, [(b"a", b"b")]), ("part", b"x"), ("part", b"y"), ("end",)]
    assert told(START, body(b"x", more=True), body(b"z"))[-2:] == [("part", b"z"), ("end",)]


def test_what_has_no_beginning_or_is_over_has_no_body() -> None:
    for before in ((), (START, body(b"x")), (START, body(b"x", more=True), body(b""))):
        with pytest.raises(RuntimeError, match="no response that could have a body"):
            told(*before, body(b"x"))
