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
        connection.send(json.dumps({"type": "subscribed", "event": "t"}))
        connection.send(_event("t", f"pos-{len(asked)}"))
        connection.close(1012 if len(asked) == 1 else 1008)

    seen: list[str] = []
    with _server(handler) as client, pytest.raises(CommandFailed, match=r"closed the connection \(1008\)"):
        seen.extend(event["pos"] for event in follow.events(client, ["t"]))
    assert [{"type": "subscribe", "event": "t"}, {"type": "subscribe", "event": "t", "from": "pos-1"}] == asked


def test_an_error_message_ends_it() -> None:
    def handler(connection: ServerConnection) -> None:
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
