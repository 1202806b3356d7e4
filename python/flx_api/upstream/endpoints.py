"""Where the daemon is: a Unix socket on this machine, or an address elsewhere with a shared token.

A Unix socket is trusted by its permissions. Over TCP the gateway proves itself with the token of
`FLX_GRPC_TOKEN_FILE`, sent as `x-flx-gateway-token` with every call; only then does the daemon believe the principal
that a frame names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from grpclib.client import Channel

from flx_api.errors import StartupError

if TYPE_CHECKING:
    from flx_api.config import Settings

TOKEN_METADATA: Final = "x-flx-gateway-token"  # noqa: S105 - the name of a header, not a secret


class Endpoint(msgspec.Struct, frozen=True):
    """One daemon. `path` is a Unix socket; without it `host` and `port` are used."""

    path: str | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    token: str | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What every call carries."""
        return {TOKEN_METADATA: self.token} if self.token else {}

    def open(self) -> Channel:
        """A new gRPC connection; it connects with the first call."""
        if self.path is not None:
            return Channel(path=self.path)
        return Channel(self.host, self.port)


def endpoint_of(settings: Settings, daemon_socket: str | None) -> Endpoint:
    """The daemon of these settings; `daemon_socket` is what the supervisor of this process says.

    Raises:
        StartupError: neither a socket nor a host is known, or the token file cannot be read.
    """
    if settings.grpc_daemon_host is not None:
        return Endpoint(
            host=settings.grpc_daemon_host, port=settings.grpc_daemon_port, token=_token(settings.grpc_token_file)
        )
    if daemon_socket:
        return Endpoint(path=daemon_socket, token=_token(settings.grpc_token_file))
    msg = "FLX_GRPC_DAEMON_HOST: not set, and no daemon was started beside this gateway (use `flx serve`)"
    raise StartupError(msg)


def _token(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        token = Path(file).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        msg = "FLX_GRPC_TOKEN_FILE: cannot be read"
        raise StartupError(msg) from None
    if not token:
        msg = "FLX_GRPC_TOKEN_FILE: is empty"
        raise StartupError(msg)
    return token
