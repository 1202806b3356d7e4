"""The WebSocket of the client; what is said over it is in test_stream.py."""

from __future__ import annotations

import asyncio

import pytest
from tests.client.scripted_server import Script, answer, event_frame, says, serving
from tests.gateway_process import free_port

from flx_api.client import EventStream
from flx_api.client.connection import LOST, Closed, Denied, NotMade
from flx_api.client.websocket import opened
from flx_api.models.message import Ping, Subscribe, Subscribed


def test_many_topics_are_asked_for_no_faster_than_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.client.websocket._BURST_S", 0.25)
    topics = [f"app.{number}" for number in range(85)]

    async def story() -> None:
        async with serving(Script(says(event_frame("app.1", 1)))) as script, EventStream(script.url, topics) as events:
            begin = asyncio.get_running_loop().time()
            await events.receive()
            assert asyncio.get_running_loop().time() - begin >= 0.5
        assert topics == list(script.asked[0])

    asyncio.run(story())


def test_an_end_has_a_code_in_any_case() -> None:
    async def story() -> None:
        async def codes(script: Script) -> int:
            connection = await opened(script.url.replace("http", "ws") + "/ws/x", "a", None)
            connection.ask([Subscribe("t"), Ping()])
            assert Subscribed("t", "0") == await connection.receive()
            with pytest.raises(Closed) as ended:  # noqa: PT012 - whatever comes before does not matter
                while True:
                    await connection.receive()
            await connection.close()
            return ended.value.code

        async with serving(Script(says('{"type":"of a later version"}', code=4408))) as script:
            assert 4408 == await codes(script)

        async def breaks(connection: object) -> None:
            connection.transport.abort()  # type: ignore[attr-defined]

        async with serving(Script(breaks)) as script:
            assert LOST == await codes(script)

    asyncio.run(story())


def test_what_is_no_connection_says_whether_somebody_was_there() -> None:
    async def story() -> None:
        async with serving(Script(answer(503, b"{}", after="3"))) as script:
            with pytest.raises(Denied) as denied:
                await opened(script.url.replace("http", "ws"), None, None)
            assert (503, "3", "") == (denied.value.status, denied.value.retry_after, denied.value.code)
        with pytest.raises(NotMade) as nobody:
            await opened(f"ws://127.0.0.1:{free_port()}", None, None)
        assert not nobody.value.speaks

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"what?\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        async with server:
            with pytest.raises(NotMade) as somebody:
                await opened(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", None, None)
            assert somebody.value.speaks

    asyncio.run(story())
