"""How commands find a service and tell its answers."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from flx_api._core import TokenVerifier
from flx_api.cli import client
from flx_api.cli.client import Client, CommandFailed, mint
from flx_api.cli.runtime import Endpoints, hold, prepare_data_folder, write_endpoints
from flx_api.config import Settings
from flx_api.daemon.tokens import key_set
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings(project=str(tmp_path))
    prepare_data_folder(found)
    return found


def _client(handler: Callable[[httpx.Request], httpx.Response]) -> Client:
    found = Client("http://service", "token")
    found._http = httpx.Client(base_url=found.url, transport=httpx.MockTransport(handler), auth=found._sign)
    return found


def test_a_minted_token_is_what_the_gateway_accepts(settings: Settings) -> None:
    token = mint(settings, "me", ["operator"], tenant="t", ttl="15m")
    keys = key_set(settings.secret_key_file.read_bytes())
    claims = TokenVerifier(keys, issuer="flx", audience="flx-api").verify(token.encode(), time.time())
    assert ("me", ["operator"], "t", 900) == (
        claims["sub"],
        claims["roles"],
        claims["tenant"],
        claims["exp"] - claims["iat"],
    )


def test_a_lifetime_that_is_none_is_named(settings: Settings) -> None:
    with pytest.raises(StartupError, match=r"^--ttl: "):
        mint(settings, "me", [], tenant="t", ttl="soon")


def test_without_a_service_it_says_how_to_get_one(settings: Settings) -> None:
    with pytest.raises(StartupError, match=r"no service runs on .*; start one with `flx serve`"):
        Client.find(settings)


def test_a_problem_becomes_its_sentence() -> None:
    problem: dict[str, Any] = {"code": "already_running", "detail": "It is running", "errors": []}
    found = _client(lambda _: httpx.Response(409, json=problem))
    with pytest.raises(CommandFailed, match=r"^already_running: It is running$"):
        found.run("p")


def test_a_plan_is_asked_for_and_nothing_else() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"result": {"outcome": "accepted"}})

    assert {"outcome": "accepted"} == _client(answer).plan("p")
    body = {"command": "pipeline.run", "args": {"id": "p"}, "dry_run": True}
    assert [("/v1/execute", body)] == [(request.url.path, json.loads(request.content)) for request in asked]


def test_fields_at_fault_are_named() -> None:
    problem = {"code": "validation_failed", "detail": "No", "errors": [{"field": "args.id", "reason": "is missing"}]}
    found = _client(lambda _: httpx.Response(422, json=problem))
    with pytest.raises(CommandFailed, match=r"\(args\.id: is missing\)$"):
        found.execution("x")


def test_an_answer_of_something_else_is_told_by_its_status() -> None:
    found = _client(lambda _: httpx.Response(502, text="<html>"))
    with pytest.raises(CommandFailed, match=r"^the service answered 502$"):
        found.execution("x")


def test_a_service_that_is_gone_is_one_line() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        msg = "refused"
        raise httpx.ConnectError(msg, request=request)

    with pytest.raises(CommandFailed, match=r"^http://service cannot be reached: refused$"):
        _client(refuse).execution("x")


@pytest.mark.parametrize(
    ("url", "is_direct"), [("http://127.0.0.1:1", True), ("http://localhost:1", True), ("http://host.example", False)]
)
def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, url: str, is_direct: bool) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(url, None) as found:
        asked = found._http._transport_for_url(httpx.URL(url + "/x"))
        assert is_direct == (asked is found._http._transport)


def test_the_execution_of_a_run_is_read_from_its_location() -> None:
    found = _client(lambda _: httpx.Response(202, headers={"Location": "/v1/executions/abc"}, json={}))
    assert "abc" == found.run("p")


def test_waiting_asks_again_until_it_is_over() -> None:
    answers = iter(["queued", "running", "succeeded"])
    found = _client(lambda _: httpx.Response(200, json={"status": next(answers)}))
    assert "succeeded" == found.wait("x")["status"]


def test_waiting_outlasts_a_service_that_is_away_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_AGAIN_S", 0.0)
    away = httpx.Response(503, json={"code": "upstream_unavailable", "detail": "Away"})
    answers = iter([away, httpx.Response(200, json={"status": "running"}), away, *[away] * 3])

    def answer(request: httpx.Request) -> httpx.Response:
        found = next(answers, None)
        if found is None:
            raise httpx.ReadError("gone", request=request)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", iter(range(0, 100, 4)).__next__)
        with pytest.raises(CommandFailed, match="cannot be reached: gone"):
            _client(answer).wait("x")
    answers = iter([away, httpx.Response(200, json={"status": "failed"})])
    assert "failed" == _client(answer).wait("x")["status"]
    refused = httpx.Response(403, json={"code": "forbidden", "detail": "No"})
    with pytest.raises(CommandFailed, match=r"^forbidden: No$"):
        _client(lambda _: refused).wait("x")


class Cut(httpx.SyncByteStream):
    """An answer that ends without its end."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self.parts
        raise httpx.RemoteProtocolError("cut")


def test_a_log_is_followed_over_as_many_connections_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_AGAIN_S", 0.0)
    asked: list[str] = []
    whole = '{"line":2,"text":"two\u2028\u0085"}\n{"line":3,"text":"three"}\n'.encode()
    answers = iter(
        [
            httpx.Response(503, json={"code": "upstream_unavailable", "detail": "Away"}),
            httpx.Response(200, stream=Cut(b'{"line":1,"te', b'xt":"one"}\n{"line":2,')),
            httpx.Response(200, content=whole),
        ]
    )

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["from"])
        return next(answers)

    assert ["one", "two\u2028\u0085", "three"] == list(_client(answer).follow("x", 1))
    assert ["1", "1", "2"] == asked


@pytest.mark.parametrize("part", ["at once", "after a line"])
def test_a_log_that_cannot_be_followed_is_one_line(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(client, "_PATIENCE_S", -1.0)

    def answer(request: httpx.Request) -> httpx.Response:
        if part == "at once":
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, stream=Cut(b'{"line":1,"text":"one"}\n'))

    lines = _client(answer).follow("x", 1)
    seen = [] if part == "at once" else [next(lines)]
    with pytest.raises(CommandFailed, match=r"^http://service cannot be reached: "):
        next(lines)
    assert ([] if part == "at once" else ["one"]) == seen


def test_a_log_that_is_refused_is_not_asked_for_again() -> None:
    refused = httpx.Response(404, json={"code": "not_found", "detail": "There is none"})
    with pytest.raises(CommandFailed, match=r"^not_found: There is none$"):
        list(_client(lambda _: refused).follow("x", 1))


@pytest.mark.parametrize("url", ["localhost:8000", "http://[::1", "http://", "ftp://host", "nonsense"])
def test_an_address_that_is_none_is_named(settings: Settings, url: str) -> None:
    with pytest.raises(StartupError, match=r"^--url \(or FLX_URL\): is no address"):
        Client.find(settings, url)


def test_a_service_that_does_not_answer_to_where_it_is_asked_is_named(tmp_path: Path) -> None:
    settings = Settings(project=str(tmp_path), trusted_hosts=("api.example",))
    prepare_data_folder(settings)
    write_endpoints(settings, Endpoints("http://127.0.0.1:8000", "", "", 1, "", ""))
    with hold(settings):
        with pytest.raises(StartupError, match=r"^FLX_TRUSTED_HOSTS: does not name 127\.0\.0\.1"):
            Client.find(settings)
        assert "http://api.example" == Client.find(settings, "http://api.example").url
        also = msgspec.structs.replace(settings, trusted_hosts=("api.example", "127.0.0.1"))
        assert "http://127.0.0.1:8000" == Client.find(also).url


def test_statuses_that_are_over_are_statuses() -> None:
    from typing import get_args

    from flx_api.models.execution import Status

    assert set(get_args(Status)) - client.OVER == {"queued", "starting", "running", "cancelling", "retrying"}
