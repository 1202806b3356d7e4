"""One command under way: how often it may be sent, and what room it takes."""

from __future__ import annotations

import pytest

from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame
from flx_api.upstream.pending import SORTS, Kind, is_wait, sends_of
from flx_api.upstream.waits import Place


@pytest.mark.parametrize(
    ("command", "key", "sends"),
    [
        ("pipeline.run", "", 1),
        ("pipeline.run", "k", 3),
        ("execution.cancel", "", 3),
        ("event.publish", "", 1),
        ("no.such", "k", 1),
    ],
)
def test_what_may_be_sent_again(command: str, key: str, sends: int) -> None:
    """A command with its key, and one that is harmless by nature; a read, once."""
    assert sends == sends_of(CommandFrame(command=command, idempotency_key=key), read=False)
    assert 2 == sends_of(CommandFrame(command=command, idempotency_key=key), read=True)


def test_what_waits_by_nature_takes_no_room() -> None:
    assert [True, True, False] == [
        is_wait(CommandFrame(command="execution.wait")),
        is_wait(CommandFrame(command="pipeline.run", wait_ms=5)),
        is_wait(CommandFrame(command="pipeline.run")),
    ]
    kinds: list[Kind | None] = [None, Place(("", "anna")), "call", "grouped"]
    assert [None, None, "ordinary", "grouped"] == [SORTS.get(kind) for kind in kinds]
