"""RSGI as ASGI: what the bridge makes of a server that is played here. Real servers: e2e/test_faces.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api._core import asgi_scope, segments
from flx_api.gateway.rsgi import HttpBridge, Lifespan, RsgiFace, WebSocketBridge

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Message, Scope


class Headers:
    """RSGI's headers: what is not ASCII is left out of values, but not out of names."""

    def __init__(self, *pairs: tuple[str, bytes]) -> None:
        self._pairs = pairs

    def items(self) -> list[tuple[str, str]]:
        return [(name, value.decode()) for name, value in self._pairs if value.isascii()]

    def keys(self) -> list[str]:
        return list(dict(self._pairs))

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: str) -> bool:
        return name in self.keys()


class Rsgi:
    """A scope of RSGI."""

    def __init__(self, *headers: tuple[str, bytes], **more: Any) -> None:
        self.headers = Headers(*(headers or (("host", b"gateway"),)))
        self.proto = "ws"
        self.http_version, self.scheme, self.method = "1.1", "http", "GET"
        self.path, self.query_string, self.authority = "/", "", None
        self.client, self.server = "127.0.0.1:50000", "127.0.0.1:1"
        self.__dict__.update(more)


class Protocol:
    """The protocol of a request: chunks come in, calls are written down."""

    def __init__(self, *chunks: bytes, fails: bool = False) -> None:
        self._chunks = list(chunks)
        self._fails = fails
        self.calls: list[tuple[Any, ...]] = []

    async def __call__(self) -> bytes:
        if self._fails:
            msg = "closed"
            raise RuntimeError(msg)
        return b"".join(self._chunks)

    def __aiter__(self) -> Protocol:
        return self

    def __anext__(self) -> Any:
        if not self._chunks:
            raise StopAsyncIteration
        return self._one(self._chunks.pop(0))

    async def _one(self, chunk: bytes) -> bytes:
        return chunk

    async def client_disconnect(self) -> None:
        self.calls.append(("client_disconnect",))

    def response_bytes(self, *response: Any) -> None:
        self.calls.append(response)

    def response_stream(self, *begun: Any) -> Protocol:
        self.calls.append(begun)
        return self

    async def send_bytes(self, data: bytes) -> None:
        self.calls.append((data,))
        if self._fails:
            msg = "closed"
            raise RuntimeError(msg)


def body_of(protocol: Protocol, length: int | None = None, version: str = "1.1") -> list[Message]:
    """All messages of a body."""

    async def story() -> list[Message]:
        bridge = HttpBridge(Rsgi(http_version=version), protocol, length)
        messages = [await bridge.receive()]
        while messages[-1].get("more_body"):
            messages.append(await bridge.receive())
        assert {"type": "http.disconnect"} == await bridge.receive()
        return messages

    return asyncio.run(story())


def raw_path(path: str) -> bytes:
    """What is made of a decoded path."""
    raw: bytes = asgi_scope(Rsgi(path=path))["raw_path"]
    return raw


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


def test_a_body_of_known_length_comes_at_once() -> None:
    assert [part(b"abcd", more=False)] == body_of(Protocol(b"ab", b"cd"), 4)


def test_a_body_that_cannot_be_read_is_an_end() -> None:
    assert [GONE] == body_of(Protocol(fails=True), 4)


def test_chunks_are_passed_on_as_they_come() -> None:
    expected = [part(b"ab", more=True), part(b"cd", more=True), part(b"", more=False)]
    assert expected == body_of(Protocol(b"ab", b"cd", b""))
    assert [part(b"", more=False)] == body_of(Protocol(b""))


def test_a_broken_chunk_is_not_an_end() -> None:
    assert [part(b"ab", more=True), GONE] == body_of(Protocol(b"ab", b"", b""))


def test_http_2_may_have_empty_chunks() -> None:
    expected = [part(b"ab", more=True), part(b"", more=True), part(b"", more=False)]
    assert expected == body_of(Protocol(b"ab", b"", b""), version="2")


def test_a_whole_response_is_one_call() -> None:
    async def story() -> None:
        protocol = Protocol()
        bridge = HttpBridge(Rsgi(), protocol, 0)
        await bridge.send({"type": "http.response.start", "status": 201, "headers": [("etag", '"1"')]})
        assert [] == protocol.calls
        await bridge.send({"type": "http.response.body", "body": b"{}"})
        bridge.finish()
        assert [(201, [("etag", '"1"')], b"{}")] == protocol.calls

    asyncio.run(story())


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_goes_on_whoever_listens(fails: bool) -> None:
    async def story() -> None:
        protocol = Protocol(fails=fails)
        bridge = HttpBridge(Rsgi(), protocol, 0)
        await bridge.send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"", b"one", b"two"):
            await bridge.send({"type": "http.response.body", "body": body, "more_body": True})
        await bridge.send({"type": "http.response.body", "body": b"", "more_body": False})
        bridge.finish()
        assert [(200, []), (b"one",), (b"two",)] == protocol.calls

    asyncio.run(story())


def test_a_body_needs_a_response() -> None:
    with pytest.raises(RuntimeError):
        asyncio.run(HttpBridge(Rsgi(), Protocol(), 0).send({"type": "http.response.body", "body": b""}))


def test_unreadable_headers_are_there_and_useless() -> None:
    rsgi = Rsgi(("host", b"a"), ("authorization", b"Bearer \xc3\xa9"), ("x", b"1"), ("x", b"2"))
    # Two of one name and one that cannot be read: their numbers alone would not tell.
    expected = [(b"host", b"a"), (b"x", b"1"), (b"x", b"2"), (b"authorization", b"Bearer \xff")]
    assert expected == asgi_scope(rsgi)["headers"]


def test_the_host_of_http_2_is_its_authority() -> None:
    assert [(b"host", b"flx:1"), (b"x", b"1")] == asgi_scope(Rsgi(("x", b"1"), authority="flx:1"))["headers"]
    assert (b"host", b"") == asgi_scope(Rsgi(("x", b"1")))["headers"][0]


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("/v1/a b", "/v1/a%20b"),
        ("/v1/\xe4", "/v1/%C3%A4"),
        ("/v1/a%2fb", "/v1/a%252fb"),
        ("/v1/\ufffd", "/v1/%FF"),
        ("/v1/a?b#c", "/v1/a%3Fb%23c"),
        ("/v1/;/[x]", "/v1/;/[x]"),
    ],
)
def test_paths_are_escaped_again(path: str, raw: str) -> None:
    assert raw.encode() == raw_path(path)


@given(st.lists(st.sampled_from("abzAZ09_.~!$&'()*+,=:@-"), min_size=1, max_size=20).map("".join))
def test_plain_paths_stay_as_they_are(segment: str) -> None:
    assert f"/{segment}".encode() == raw_path(f"/{segment}")


@given(st.text(max_size=20))
def test_an_acceptable_path_means_itself(text: str) -> None:
    """Whatever was decoded: what passes our rules decodes to the same text, so nobody reads another path in it."""
    read = segments(raw_path(f"/{text}"))
    assert read is None or f"/{text}" == f"/{'/'.join(read)}"


class Transport:
    """An accepted WebSocket."""

    def __init__(self, *messages: Any) -> None:
        self._messages = list(messages)
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if not self._messages:
            msg = "closed"
            raise RuntimeError(msg)
        return self._messages.pop(0)

    async def send_str(self, data: str) -> None:
        self.sent.append(data)

    async def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)


class Upgrade:
    """The protocol of a WebSocket."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.closed: list[int] = []

    async def accept(self) -> Transport:
        return self._transport

    def close(self, status: int) -> None:
        self.closed.append(status)


class Said:
    """A message of a WebSocket."""

    def __init__(self, kind: int, data: Any = None) -> None:
        self.kind = kind
        self.data = data


def test_a_websocket_is_accepted_spoken_over_and_closed() -> None:
    async def story() -> None:
        transport = Transport(Said(2, "a"), Said(1, b"b"), Said(0))
        upgrade = Upgrade(transport)
        offered = ("sec-websocket-protocol", b"flx.plain, bearer.x")
        bridge = WebSocketBridge(Rsgi(("host", b"a"), offered, proto="ws", scheme="https"), upgrade)
        # One that is selected would not be told.
        assert ("wss", []) == (bridge.scope["scheme"], bridge.scope["subprotocols"])
        assert {"type": "websocket.connect"} == await bridge.receive()
        assert "websocket.disconnect" == (await bridge.receive())["type"]
        await bridge.send({"type": "websocket.accept", "subprotocol": "flx.plain"})
        assert {"type": "websocket.receive", "text": "a"} == await bridge.receive()
        assert {"type": "websocket.receive", "bytes": b"b"} == await bridge.receive()
        for _ in range(2):
            assert {"type": "websocket.disconnect", "code": 1005} == await bridge.receive()
        await bridge.send({"type": "websocket.send", "text": "c"})
        await bridge.send({"type": "websocket.send", "bytes": b"d"})
        await bridge.send({"type": "websocket.close", "code": 1012})
        assert (["c", b"d"], 1) == (transport.sent, len(upgrade.closed))

    asyncio.run(story())


def test_a_refusal_keeps_its_status() -> None:
    async def story() -> None:
        upgrade = Upgrade(Transport())
        bridge = WebSocketBridge(Rsgi(proto="ws"), upgrade)
        assert "websocket.http.response" in bridge.scope["extensions"]
        await bridge.send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        await bridge.send({"type": "websocket.http.response.body", "body": b"lost"})
        assert [401] == upgrade.closed
        await WebSocketBridge(Rsgi(proto="ws"), upgrade).send({"type": "websocket.close", "code": 1008})
        assert [401, 403] == upgrade.closed

    asyncio.run(story())


class App(RsgiFace):
    """An application that writes down its life."""

    def __init__(self, failure: str = "") -> None:
        self._failure = failure
        self.life: list[str] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.life.append(scope["type"])
        if scope["type"] != "lifespan":
            await send({"type": "websocket.close"})
            return
        self.life.append((await receive())["type"])
        if self._failure == "raised":
            raise ValueError(self._failure)
        await send({"type": f"lifespan.startup.{'failed' if self._failure else 'complete'}", "message": self._failure})
        if not self._failure:
            self.life.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})


def test_a_life_from_start_to_end() -> None:
    app, protocol = App(), Upgrade(Transport())
    loop = asyncio.new_event_loop()
    app.__rsgi_init__(loop)
    loop.run_until_complete(app.__rsgi__(Rsgi(), protocol))
    app.__rsgi_del__(loop)
    loop.close()
    assert ["lifespan", "lifespan.startup", "websocket", "lifespan.shutdown"] == app.life
    assert [403] == protocol.closed


class Edge:
    """Decides what a test says; serves with one word."""

    def __init__(self, *decision: Any) -> None:
        self._decision = decision

    def decide(self, rsgi: Any) -> tuple[Any, ...]:
        return self._decision

    async def serve(self, scope: Scope, receive: Any, send: Any, admitted: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": True})
        admitted.served = True


def parts(edge: Edge, decided: dict[Any, Any] | None = None) -> SimpleNamespace:
    """What the face needs, with what the server's thread has decided."""
    return SimpleNamespace(edge=edge, server_thread=SimpleNamespace(decided={} if decided is None else decided))


class Admitted:
    """What was admitted."""

    length = 0
    served = False


def test_a_refusal_is_one_call() -> None:
    app, protocol = App(), Protocol()
    app.parts = parts(Edge(401, [("a", "b")], b"no"))
    asyncio.run(app.__rsgi__(Rsgi(proto="http"), protocol))
    assert [(401, [("a", "b")], b"no")] == protocol.calls


def test_what_is_admitted_is_served() -> None:
    app, protocol, admitted = App(), Protocol(), Admitted()
    app.parts = parts(Edge(admitted, {"path": "/x"}))
    asyncio.run(app.__rsgi__(Rsgi(proto="http"), protocol))
    assert admitted.served
    assert [(200, []), (b"/x",)] == protocol.calls


def test_what_the_server_thread_has_decided_is_served() -> None:
    """A command that does not ride has no scope yet."""
    app, protocol, admitted, scope = App(), Protocol(), Admitted(), Rsgi(proto="http")
    decided = {scope: (admitted, None)}
    app.parts = parts(Edge(), decided)
    asyncio.run(app.__rsgi__(scope, protocol))
    assert ({}, True, 200) == (decided, admitted.served, protocol.calls[0][0])


def test_a_worker_that_cannot_start_ends() -> None:
    loop = asyncio.new_event_loop()
    with pytest.raises(SystemExit) as caught:
        App("no key").__rsgi_init__(loop)
    loop.close()
    assert 1 == caught.value.code


def test_an_application_that_raises_has_not_started() -> None:
    async def story() -> None:
        life = Lifespan(App("raised"))
        assert "raised" in (await life.startup() or "")
        await life.shutdown()

    asyncio.run(story())


def test_the_end_of_a_life_that_never_began() -> None:
    loop = asyncio.new_event_loop()
    App().__rsgi_del__(loop)
    loop.close()
