"""What is known about a request."""

from __future__ import annotations

import pytest
from tests.gateway_app import Wire, scope

from flx_api.gateway.exchange import Exchange, RequestIds


@pytest.mark.parametrize("given", [None, b"", b"a b", b"a\n", b"x" * 129, "ä".encode()])
def test_an_insane_request_id_is_replaced(given: bytes | None) -> None:
    ids = RequestIds()
    assert ids.of(given).encode() != given
    assert ids.of(given) != ids.of(given)


def test_a_sane_request_id_is_kept() -> None:
    assert RequestIds().of(b"Abc.1_2-3") == "Abc.1_2-3"


def test_phases_add_up() -> None:
    wire = Wire()
    exchange = Exchange(scope(headers={"origin": "o"}), wire.receive, wire.send, "r")
    exchange.passed("receive")
    exchange.passed("admit")
    assert [phase for phase, _ in exchange.phases] == ["receive", "admit"]
    assert sum(spent for _, spent in exchange.phases) <= exchange.duration_us * 1000 + 1000
    assert (exchange.host, exchange.origin, exchange.client) == (b"gateway", b"o", "127.0.0.1")
