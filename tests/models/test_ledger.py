"""The row ledger as it crosses the border."""

from __future__ import annotations

import msgspec

from flx_api.models.ledger import Ledger, Warning_


def test_warnings_are_plain_json() -> None:
    """Field names are part of the resource `/v1/executions/{id}/streams`."""
    ledger = Ledger("mismatch", 3, (), (Warning_("mismatch", "3 rows piped, 2 found at the destination", "s"),))
    assert msgspec.json.decode(msgspec.json.encode(ledger)) == {
        "verdict": "mismatch",
        "records": 3,
        "blocks": [],
        "warnings": [{"code": "mismatch", "detail": "3 rows piped, 2 found at the destination", "stream": "s"}],
        "plugins": [],
    }
