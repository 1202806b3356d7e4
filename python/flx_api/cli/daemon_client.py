"""Speak to the daemon over its socket, as the person who owns it.

The socket's permissions are the proof: who may open it may name the principal. Used for what must work before anyone
has a token, such as the first user.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from flx_api.errors import ErrorBody, FlxError, Unavailable

_TIMEOUT_S = 30
_AWAY = "The daemon does not answer; it may be starting again."


def execute(socket_path: str, command: str, args: msgspec.Struct) -> Any:  # noqa: ANN401 - the command's own result
    """Run one command as an administrator and return its result.

    Raises:
        FlxError: the daemon refused, failed or cannot be reached.
    """
    from grpclib.exceptions import GRPCError, StreamTerminatedError  # noqa: PLC0415 - as below

    try:
        return asyncio.run(_execute(socket_path, command, args))
    except (OSError, GRPCError, StreamTerminatedError) as error:
        raise Unavailable(_AWAY) from error


async def _execute(socket_path: str, command: str, args: msgspec.Struct) -> Any:  # noqa: ANN401
    from grpclib.client import Channel  # noqa: PLC0415 - only these commands pay for gRPC

    from flx_api.proto.flx.v1.daemon_grpc import DaemonStub  # noqa: PLC0415
    from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal  # noqa: PLC0415

    async with Channel(path=socket_path) as channel:
        frame = CommandFrame(
            command=command,
            args=msgspec.json.encode(args),
            principal=Principal(subject="cli", tenant="default", roles=["admin"]),
        )
        reply = await DaemonStub(channel).Execute(frame, timeout=_TIMEOUT_S)
    if reply.code:
        raise FlxError.from_body(msgspec.json.decode(reply.problem, type=ErrorBody))
    return msgspec.json.decode(reply.result)
