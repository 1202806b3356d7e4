"""What an answer in place of a connection says."""

from __future__ import annotations

import pytest

from flx_api.client.connection import Denied, read
from flx_api.models.message import Pong


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        (b'{"code":"forbidden","detail":"No."}', "forbidden", "No."),
        (b"{}", "", ""),
        (b"<html>", "", ""),
        (b"", "", ""),
        (b"\xff", "", ""),
        (b'{"code":1}', "", ""),
    ],
)
def test_a_problem_of_the_service_has_a_code_and_nothing_else_has(body: bytes, code: str, detail: str) -> None:
    denied = Denied(403, body, "3")
    assert (403, code, detail, "3") == (denied.status, denied.code, denied.detail, denied.retry_after)
    assert "the service answered 403" == str(denied)


def test_messages_are_read() -> None:
    assert Pong(7) == read('{"type":"pong","timestamp":7,"more":1}')
