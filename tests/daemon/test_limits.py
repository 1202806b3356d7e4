"""The guard by itself; `test_server` holds that grpclib's streams take it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from flx_api.daemon.limits import Guarded


class Wire:
    """What grpclib reads a message's bytes from."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def recv_data(self, size: int) -> bytes:
        self.asked.append(size)
        return b"x" * size


class Service:
    """One method that reads so many bytes, or fails."""

    def __init__(self, size: int, error: Exception | None = None) -> None:
        self.size = size
        self.error = error

    async def method(self, stream: Any) -> None:
        await stream._stream.recv_data(self.size)
        if self.error:
            raise self.error

    def __mapping__(self) -> dict[str, Handler]:
        return {"/a/b": Handler(self.method, Cardinality.UNARY_UNARY, object, object)}


def call(service: Service, wire: Wire) -> None:
    asyncio.run(Guarded(service, 10).__mapping__()["/a/b"].func(SimpleNamespace(_stream=wire)))


def test_up_to_the_limit_it_passes_and_beyond_it_is_not_even_waited_for() -> None:
    wire = Wire()
    call(Service(10), wire)
    with pytest.raises(GRPCError) as refused:
        call(Service(11), wire)
    assert refused.value.status is Status.RESOURCE_EXHAUSTED
    assert wire.asked == [10]


@pytest.mark.parametrize(
    ("error", "status"),
    [(DecodeError(), Status.INVALID_ARGUMENT), (NotImplementedError(), Status.UNIMPLEMENTED)],
)
def test_faults_of_a_message_have_names(error: Exception, status: Status) -> None:
    with pytest.raises(GRPCError) as refused:
        call(Service(1, error), Wire())
    assert refused.value.status is status
