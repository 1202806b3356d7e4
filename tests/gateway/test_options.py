"""Options and arguments from query parameters and headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.gateway_app import Wire, exchange, scope

from flx_api.errors import InvalidRequest, ValidationFailed
from flx_api.gateway.options import options_of, query
from flx_api.models.envelope import CommandOptions

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Exchange


def asked(text: str = "", **headers: str) -> Exchange:
    return exchange(Wire(), scope(query=text, headers=headers))


def read(text: str, **headers: str) -> CommandOptions:
    made = asked(text, **headers)
    return options_of(made, query(made))


def test_options_are_read() -> None:
    assert read("") == CommandOptions()
    assert read("dry_run=true&wait_ms=5") == CommandOptions(dry_run=True, wait_ms=5)
    assert read("idempotency_key=a", **{"idempotency-key": "a"}).idempotency_key == "a"


@pytest.mark.parametrize(
    "text", ["x=1", "wait_ms=a", "wait_ms=-1", "dry_run=maybe", "wait_ms=1&wait_ms=1", "environment=%ff"]
)
def test_what_is_not_an_option_is_refused(text: str) -> None:
    with pytest.raises(ValidationFailed):
        read(text)


@pytest.mark.parametrize("key", ["", "a b", "k" * 256])
def test_a_key_is_printable_and_bounded(key: str) -> None:
    with pytest.raises(InvalidRequest):
        read("", **{"idempotency-key": key})


def test_two_keys_are_none() -> None:
    with pytest.raises(InvalidRequest):
        read("idempotency_key=a", **{"idempotency-key": "b"})


def test_input_is_not_repeated() -> None:
    with pytest.raises(ValidationFailed) as caught:
        read("evil=1")
    assert "evil" not in str(caught.value)
