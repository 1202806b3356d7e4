"""Following topics from a command, against a server of the test's own. The client itself is tested in tests/client."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.server import ServerConnection, serve

from flx_api.cli import follow, show
from flx_api.cli.client import Client, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr(follow, "_FIRST_PAUSE_S", 0.0)


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


_numbers = itertools.count(1)


def _event(topic: str, pos: str, **data: Any) -> str:
    head = {"type": "event", "event": topic, "seq": next(_numbers), "prev": 0, "epoch": "e", "ts": 0, "pos": pos}
    return json.dumps({**head, "data": data})


def _asked(connection: ServerConnection) -> dict[str, str | None]:
    """What a client subscribes to, and from where; the last thing it says is a ping."""
    asked = {}
    while (message := json.loads(connection.recv()))["type"] == "subscribe":
        asked[message["event"]] = message.get("from")
    assert {"type": "ping"} == message
    return asked


def test_it_comes_again_from_its_last_position() -> None:
    asked: list[dict[str, Any]] = []

    def handler(connection: ServerConnection) -> None:
        assert "Bearer token" == (connection.request.headers["Authorization"] if connection.request else None)
        asked.append(_asked(connection))
        connection.send(_event("t", f"pos-{len(asked)}"))
        connection.close(1012 if len(asked) == 1 else 1008)

    seen: list[str] = []
    with _server(handler) as client, pytest.raises(CommandFailed, match=r"closed the connection \(1008\)"):
        seen.extend(event.pos for event in follow.events(client, ["t"]) if event is not None)
    assert [{"t": None}, {"t": "pos-1"}] == asked
    assert ["pos-1", "pos-2"] == seen


def test_an_error_message_ends_it() -> None:
    def handler(connection: ServerConnection) -> None:
        _asked(connection)
        connection.send(json.dumps({"type": "error", "code": "forbidden", "message": "not yours"}))

    with _server(handler) as client, pytest.raises(CommandFailed, match=r"^forbidden: t: not yours$"):
        next(follow.events(client, ["t"]))


def test_a_silence_is_told_and_loses_nothing() -> None:
    go_on = threading.Event()

    def handler(connection: ServerConnection) -> None:
        _asked(connection)
        go_on.wait(10)
        connection.send(_event("t", "1", n=1))
        connection.recv()

    with _server(handler) as client, contextlib.closing(follow.events(client, ["t"], idle_s=0.05)) as events:  # type: ignore[type-var]
        assert next(events) is None
        go_on.set()
        assert [{"n": 1}] == [event.data for event in itertools.islice(filter(None, events), 1)]


def test_events_and_gaps_are_printed_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[dict[str, Any]] = []

    def handler(connection: ServerConnection) -> None:
        asked.append(_asked(connection))
        connection.send(
            json.dumps({"type": "error", "code": "gap", "message": "m", "reason": "evicted", "epoch": "e", "pos": "7"})
        )
        connection.send(_event("t", "8", n=1))
        connection.close(1008)

    with _server(handler) as client, pytest.raises(CommandFailed):
        show.print_events(client, ["t"], start="5")
    assert [{"t": "5"}] == asked
    gap, event = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {"type": "gap", "reason": "evicted", "topic": None, "after": None, "before": None} == gap
    assert ("event", "t", "8", {"n": 1}) == (event["type"], event["event"], event["pos"], event["data"])


def test_an_execution_is_followed_to_its_end() -> None:
    def handler(connection: ServerConnection) -> None:
        assert ["execution.x.log", "execution.x.metric", "execution.x.status"] == sorted(_asked(connection))
        connection.send(_event("execution.x.status", "1", status="running"))
        connection.send(_event("execution.x.log", "2", line="hello"))
        connection.send(_event("execution.x.status", "3", status="succeeded"))
        connection.recv()

    with _server(handler) as client:
        kinds = [event.event.rsplit(".", 1)[-1] for event in follow.execution_events(client, "x")]
    assert ["status", "log", "status"] == kinds


def test_several_are_followed_until_the_last_is_over() -> None:
    def handler(connection: ServerConnection) -> None:
        assert 6 == len(_asked(connection))
        for number, (execution, status) in enumerate([("x", "running"), ("y", "failed"), ("x", "succeeded")]):
            connection.send(_event(f"execution.{execution}.status", str(number), status=status))
        connection.recv()

    with _server(handler) as client:
        seen = [event.data["status"] for event in follow.execution_events(client, "x", "y")]
    assert ["running", "failed", "succeeded"] == seen


def test_a_run_that_was_over_before_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "execution", lambda *_: {"status": "failed"})
    monkeypatch.setattr(follow, "events", lambda *_, **__: iter([None]))
    assert [] == list(follow.execution_events(Client("http://x", None), "x"))


def test_nobody_there_is_said_in_the_end() -> None:
    with pytest.raises(CommandFailed, match="cannot be reached"):
        next(follow.events(Client("http://127.0.0.1:1", None), ["t"]))


def test_a_service_that_is_away_while_nothing_is_told_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's own attempts say how long; a refusal ends it at once."""
    asked: list[str] = []
    go_on = threading.Event()

    def away(_client: Client, execution: str) -> dict[str, Any]:
        asked.append(execution)
        go_on.set()
        raise CommandFailed("upstream_unavailable: Away", is_passing=True)

    def handler(connection: ServerConnection) -> None:
        _asked(connection)
        go_on.wait(10)
        connection.send(_event("execution.x.status", "1", status="succeeded"))
        connection.recv()

    monkeypatch.setattr(Client, "execution", away)
    with _server(handler) as client:
        assert ["succeeded"] == [event.data["status"] for event in follow.execution_events(client, "x")]
    assert asked

    def gone(_client: Client, _execution: str) -> dict[str, Any]:
        raise CommandFailed("not_found: There is none")

    monkeypatch.setattr(Client, "execution", gone)
    go_on.clear()
    with _server(handler) as client:
        with pytest.raises(CommandFailed, match="not_found"):
            list(follow.execution_events(client, "x"))
        go_on.set()
