"""What the gRPC library does not limit or name: message size, and faults of a message's encoding.

Strategy: `Guarded` wraps a service's handlers where grpclib asks for them (`__mapping__`), so that it holds for every
service and needs no change in any. grpclib reads a message as a five byte head and then as many bytes as the head says;
the guard looks at that number before the bytes are waited for.

Rules:
- A message beyond the limit is RESOURCE_EXHAUSTED before more than one flow control window of it was taken in.
- Bytes that are not the message they should be are INVALID_ARGUMENT; a compressed message is UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError

from flx_api.proto.buffer import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

_Function = Callable[[Any], Awaitable[None]]


class Servable(Protocol):
    """A gRPC service as grpclib knows it."""

    def __mapping__(self) -> Mapping[str, Handler]:
        """Its methods by path."""
        ...


class Guarded:
    """A service behind the guard."""

    def __init__(self, service: Servable, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._service = service
        self._max_bytes = max_bytes

    def __mapping__(self) -> dict[str, Handler]:
        """The service's methods, each behind the guard."""
        return {
            path: handler._replace(func=_guard(handler.func, self._max_bytes))
            for path, handler in self._service.__mapping__().items()
        }


def _guard(function: _Function, max_bytes: int) -> _Function:
    async def guarded(stream: Any) -> None:  # noqa: ANN401 - grpclib.server.Stream
        wire = stream._stream  # noqa: SLF001 - grpclib has no public place for this (0.4.9); a test holds that it works
        read = wire.recv_data

        async def recv_data(size: int) -> bytes:
            if size > max_bytes:
                raise GRPCError(Status.RESOURCE_EXHAUSTED, f"A message may have at most {max_bytes} bytes")
            data: bytes = await read(size)
            return data

        wire.recv_data = recv_data
        try:
            await function(stream)
        except DecodeError:
            raise GRPCError(Status.INVALID_ARGUMENT, "The message cannot be decoded") from None
        except NotImplementedError:
            raise GRPCError(Status.UNIMPLEMENTED, "Compressed messages are not accepted") from None

    return guarded
