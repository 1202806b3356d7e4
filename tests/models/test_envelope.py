"""The envelope around a command."""

from __future__ import annotations

import msgspec
import pytest

from flx_api.models.envelope import CommandOptions, ExecuteRequest, Problem


def test_arguments_are_not_decoded() -> None:
    request = msgspec.json.decode(b'{"command":"a.b","args":{ "x":1.0 }}', type=ExecuteRequest)
    assert bytes(request.args) == b'{ "x":1.0 }'
    assert bytes(msgspec.json.decode(b'{"command":"a.b"}', type=ExecuteRequest).args) == b"{}"


@pytest.mark.parametrize("body", [b"{}", b'{"command":""}', b'{"command":"a","id":1}', b'{"command":"a","wait_ms":-1}'])
def test_what_is_no_envelope_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=ExecuteRequest)


def test_retryable_is_always_told() -> None:
    problem = msgspec.json.encode(Problem("t", "t", 400, "c", "d", "r", retryable=False))
    assert b'"retryable":false' in problem
    assert b"errors" not in problem
    assert CommandOptions() == CommandOptions(dry_run=False)
