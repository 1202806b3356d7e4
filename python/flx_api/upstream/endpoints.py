"""Where daemons are: a Unix socket on this machine, or names elsewhere; and how a connection to one is opened.

Strategy: an `Endpoint` is one entry of the configuration. Its name may stand for several addresses, and for others
later: `addresses` asks again each time, `open` goes to one of them under the endpoint's own name, which is what the
daemon's certificate is judged by.

Rules:
- A Unix socket is trusted by its permissions. Over TCP a gateway proves itself by its certificate, or with the token of
  `FLX_GRPC_TOKEN_FILE`, sent as `x-flx-gateway-token` with every call; only then does the daemon believe the principal
  that a frame names.
- Certificates are read anew for each connection, so that one that is renewed needs no restart. A file that cannot be
  used by then is said, and what was read last goes on.
- A connection that is silent is asked for a sign of life (HTTP/2 PING), and ended when there is none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from grpclib.client import Channel, Handler
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol

from flx_api.errors import StartupError
from flx_api.proto import tls

if TYPE_CHECKING:
    import ssl

    from flx_api.config import Settings

TOKEN_METADATA: Final = "x-flx-gateway-token"  # noqa: S105 - the name of a header, not a secret
_HANDSHAKE_S: Final = 5.0
_KEEPALIVE: Final = Configuration(
    _keepalive_time=10.0,
    _keepalive_timeout=5.0,
    _keepalive_permit_without_calls=True,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=5.0,
)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host; raises OSError."""


async def of_system(host: str, port: int) -> Sequence[str]:
    """What the system says about a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _no_tls() -> ssl.SSLContext | None:
    return None


class Endpoint(msgspec.Struct, frozen=True):
    """One daemon by its name. `path` is a Unix socket; without it `host` and `port` are used."""

    path: str | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    token: str | None = None
    tls: Callable[[], Any] = _no_tls
    """The TLS context of a new connection; None: without TLS."""
    resolve: Resolver = of_system

    @property
    def metadata(self) -> dict[str, str]:
        """What every call carries."""
        return {TOKEN_METADATA: self.token} if self.token else {}

    @property
    def is_fixed(self) -> bool:
        """Whether its address cannot change: a path, or an address already."""
        return self.path is not None or _is_address(self.host)

    async def addresses(self) -> list[str]:
        """Where it is now, each address once; a path stands for itself. Raises OSError when its name is not known."""
        if self.is_fixed:
            return [self.path or self.host]
        return list(dict.fromkeys(await self.resolve(self.host, self.port)))

    def open(self, address: str | None = None) -> Channel:
        """A new gRPC connection to one of its addresses; it connects with the first call."""
        if self.path is not None:
            return Channel(path=self.path, config=_KEEPALIVE)
        return _Addressed(self.host, self.port, address or self.host, self.tls())


Daemons = Endpoint | Sequence[Endpoint]
"""One daemon, or several of one service."""


class Hearing(H2Protocol):
    """grpclib's protocol, which knows whether the other side has said anything.

    With TLS 1.3 a daemon refuses our certificate only when the connection is made already. All that is seen of it is an
    end before the first word.
    """

    was_heard = False

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.was_heard = True
        super().data_received(data)


class _Addressed(Channel):
    """A channel under one name to one address."""

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port, ssl=context, config=_KEEPALIVE)
        self._address = address

    def _protocol_factory(self) -> H2Protocol:
        return Hearing(Handler(), self._config, self._h2_config)

    async def _create_connection(self) -> H2Protocol:
        loop = asyncio.get_running_loop()
        if self._ssl is None:
            _, protocol = await loop.create_connection(self._protocol_factory, self._address, self._port)
            return protocol
        transport, protocol = await loop.create_connection(
            self._protocol_factory,
            self._address,
            self._port,
            ssl=self._ssl,
            server_hostname=self._host,
            ssl_handshake_timeout=_HANDSHAKE_S,
        )
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            transport.abort()
            msg = "the other side does not speak HTTP/2"
            raise ConnectionAbortedError(msg)
        return protocol


class _Renewed:
    """The TLS context of these settings, from the files as they are now."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._last = tls.of_gateway(settings)

    def __call__(self) -> ssl.SSLContext | None:
        try:
            self._last = tls.of_gateway(self._settings)
        except StartupError as error:
            structlog.get_logger("flx.upstream").warning("upstream.certificates", reason=str(error))
        return self._last


def endpoints_of(settings: Settings, daemon_socket: str | None) -> tuple[Endpoint, ...]:
    """The daemons of these settings; `daemon_socket` is what the supervisor of this process says.

    Raises:
        StartupError: neither a socket nor a host is known, or a file of token or certificates cannot be used.
    """
    token = _token(settings.grpc_token_file)
    if settings.daemons:
        context = _Renewed(settings) if settings.grpc_tls else _no_tls
        return tuple(Endpoint(host=host, port=port, token=token, tls=context) for host, port in settings.daemons)
    if daemon_socket:
        return (Endpoint(path=daemon_socket, token=token),)
    msg = "FLX_GRPC_DAEMON_HOST: not set, and no daemon was started beside this gateway (use `flx serve`)"
    raise StartupError(msg)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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
