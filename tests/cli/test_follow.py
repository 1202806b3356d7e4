"""Following topics over the WebSocket, against a server of the test's own."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.server import ServerConnection, serve

from flx_api.cli import follow
from flx_api.cli.client import Client, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def _server(handler: Callable[[ServerConnection], None]) -> Iterator[Client]:
    with serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{server.socket.getsockname()[1]}", "token")
        finally:
            server.shutdown()
            thread.join()


def _event(topic: str, pos: str, **data: Any) -> str:
    return json.dumps({"type": "event", "event": topic, "pos": pos, "data": data})


def test_it_comes_again_from_its_last_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.cli.follow.time.sleep", lambda _: None)
    asked: list[dict[str, Any]] = []

    def handler(connection: ServerConnection) -> None:
        assert "Bearer token" == (connection.request.headers["Authorization"] if connection.request else None)
        asked.append(json.loads(connection.recv()))
        assert {"type": "ping"} == json.loads(connection.recv())
        connection.send(json.dumps({"type": "subscribed", "event": "t"}))
        connection.send(_event("t", f"pos-{len(asked)}"))
        connection.close(1012 if len(asked) == 1 else 1008)

    seen: list[str] = []
    with _server(handler) as client, pytest.raises(CommandFailed, match=r"closed the connection \(1008\)"):
        seen.extend(event["pos"] for event in follow.events(client, ["t"]))
    assert [{"type": "subscribe", "event": "t"}, {"type": "subscribe", "event": "t", "from": "pos-1"}] == asked


def _asked(connection: ServerConnection) -> dict[str, str | None]:
    """What a client subscribes to, and from where; the last thing it says is a ping."""
    asked = {}
    while (message := json.loads(connection.recv()))["type"] == "subscribe":
        asked[message["event"]] = message.get("from")
    assert {"type": "ping"} == message
    return asked


def _subscribed(topic: str, pos: str) -> str:
    return json.dumps({"type": "subscribed", "event": topic, "pos": pos})


def test_a_catch_up_that_is_cut_off_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.cli.follow.time.sleep", lambda _: None)
    asked: list[dict[str, str | None]] = []
    pong = json.dumps({"type": "pong"})
    stories = [
        # New: "a" has a start, "b" begins where it is told that it does. Then both are level at 5, and hear 6.
        [_subscribed("a", "4"), _event("a", "3"), _subscribed("b", "5"), pong, _event("a", "6")],
        # "a" has caught up to 9, "b" not yet begun.
        [_subscribed("a", "9"), _event("a", "9")],
        # "b" was subscribed, and in the middle of it.
        [_subscribed("a", "9"), _event("a", "9"), _subscribed("b", "9"), _event("b", "7")],
        # All are level at what the last answer said, though nothing new has happened.
        [_subscribed("a", "9"), _event("a", "9"), _subscribed("b", "10"), _event("b", "8"), pong],
        [],
    ]

    def handler(connection: ServerConnection) -> None:
        asked.append(_asked(connection))
        for message in stories[len(asked) - 1]:
            connection.send(message)
        connection.close(1012 if len(asked) < len(stories) else 1008)

    with _server(handler) as client, pytest.raises(CommandFailed, match="1008"):
        assert all(event["type"] == "event" for event in follow.events(client, ["a", "b"], start={"a": "1"}))
    begins = [("1", None), ("6", "6"), ("6", "6"), ("6", "6"), ("10", "10")]
    assert [{"a": first, "b": second} for first, second in begins] == asked


def test_a_topic_without_a_start_begins_where_it_first_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.cli.follow.time.sleep", lambda _: None)
    asked: list[dict[str, str | None]] = []

    def handler(connection: ServerConnection) -> None:
        asked.append(_asked(connection))
        connection.send(_subscribed("a", str(len(asked))))
        connection.close(1012 if len(asked) == 1 else 1008)

    with _server(handler) as client, pytest.raises(CommandFailed, match="1008"):
        next(follow.events(client, ["a", "b"]))
    assert [{"a": None, "b": None}, {"a": "1", "b": None}] == asked


def test_an_error_message_ends_it() -> None:
    def handler(connection: ServerConnection) -> None:
        for _ in ("subscribe", "ping"):
            connection.recv()
        connection.send(json.dumps({"type": "error", "code": "forbidden", "message": "not yours"}))

    with _server(handler) as client, pytest.raises(CommandFailed, match=r"^forbidden: not yours$"):
        next(follow.events(client, ["t"]))


def test_an_execution_is_followed_to_its_end() -> None:
    def handler(connection: ServerConnection) -> None:
        topics = sorted(json.loads(connection.recv())["event"] for _ in range(3))
        assert ["execution.x.log", "execution.x.metric", "execution.x.status"] == topics
        connection.send(_event("execution.x.status", "1", status="running"))
        connection.send(_event("execution.x.log", "2", line="hello"))
        connection.send(_event("execution.x.status", "3", status="succeeded"))
        connection.recv()

    with _server(handler) as client:
        kinds = [event["event"].rsplit(".", 1)[-1] for event in follow.execution_events(client, "x")]
    assert ["status", "log", "status"] == kinds


def test_several_are_followed_until_the_last_is_over() -> None:
    def handler(connection: ServerConnection) -> None:
        for _ in range(6):
            connection.recv()
        for number, (execution, status) in enumerate([("x", "running"), ("y", "failed"), ("x", "succeeded")]):
            connection.send(_event(f"execution.{execution}.status", str(number), status=status))
        connection.recv()

    with _server(handler) as client:
        seen = [event["data"]["status"] for event in follow.execution_events(client, "x", "y")]
    assert ["running", "failed", "succeeded"] == seen


def test_a_run_that_was_over_before_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "execution", lambda *_: {"status": "failed"})
    silent = {"event": "", "type": "nothing"}
    monkeypatch.setattr(follow, "events", lambda *_, **__: iter([{}, silent]))
    assert [] == list(follow.execution_events(Client("http://x", None), "x"))


def test_nobody_there_is_said_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.cli.follow.time.sleep", lambda _: None)
    with pytest.raises(CommandFailed, match="cannot be opened"):
        next(follow.events(Client("http://127.0.0.1:1", None), ["t"]))
