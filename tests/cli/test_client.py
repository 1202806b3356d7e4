"""How commands find a service and tell its answers."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from flx_api._core import TokenVerifier
from flx_api.cli import client
from flx_api.cli.client import Client, CommandFailed, mint
from flx_api.cli.runtime import prepare_data_folder
from flx_api.config import Settings
from flx_api.daemon.tokens import key_set
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable
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


def test_the_execution_of_a_run_is_read_from_its_location() -> None:
    found = _client(lambda _: httpx.Response(202, headers={"Location": "/v1/executions/abc"}, json={}))
    assert "abc" == found.run("p")


def test_waiting_asks_again_until_it_is_over() -> None:
    answers = iter(["queued", "running", "succeeded"])
    found = _client(lambda _: httpx.Response(200, json={"status": next(answers)}))
    assert "succeeded" == found.wait("x")["status"]


def test_statuses_that_are_over_are_statuses() -> None:
    from typing import get_args

    from flx_api.models.execution import Status

    assert set(get_args(Status)) - client.OVER == {"queued", "starting", "running", "cancelling", "retrying"}
