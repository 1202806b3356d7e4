"""Where the daemon listens: grpclib's server on a Unix socket or on TCP, with TLS, and a way to part from its clients.

Strategy: `Listener` is grpclib's server. It remembers its connections, so that a daemon that stops can say so on each
(GOAWAY): gateways then send new commands elsewhere and end their streams as soon as the replies are in.

Rules:
- A handshake has `_HANDSHAKE_S`; a client that is silent is asked for a sign of life, and cut off when there is none.
- Certificates are looked at again every `RENEW_EVERY_S`. Files that cannot be used are said, and change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import structlog
from grpclib.config import Configuration
from grpclib.server import Server

from flx_api.errors import StartupError
from flx_api.proto import http2, tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection
    from pathlib import Path

    from grpclib.protocol import H2Protocol

    from flx_api.config import Settings

RENEW_EVERY_S: Final = 30.0
_HANDSHAKE_S: Final = 10.0
_BACKLOG: Final = 1024
_KEEPALIVE: Final = Configuration(
    _keepalive_time=20.0,
    _keepalive_timeout=10.0,
    _keepalive_permit_without_calls=True,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=10.0,
)


class Address:
    """Where the daemon listens: a Unix socket, or host and port."""

    def __init__(self, *, socket_path: Path | None = None, host: str | None = None, port: int = 0) -> None:
        self.socket_path = socket_path
        self.host = host
        self.port = port


class Listener(Server):
    """The gRPC server.

    Args:
        services: what it serves.
        address: where.
        settings: for TLS, which TCP may have.
    """

    def __init__(self, services: Collection[Any], address: Address, settings: Settings) -> None:
        super().__init__(services, config=_KEEPALIVE)
        self._address = address
        self._settings = settings
        self._protocols: WeakSet[H2Protocol] = WeakSet()
        self._renewing: asyncio.Task[None] | None = None

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    async def listen(self) -> str:
        """Accept connections from now on; where, in words.

        Raises:
            StartupError: that is not possible.
        """
        path = self._address.socket_path
        try:
            if path is None:
                return await self._listen_on_tcp()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The lock is ours: a socket that is there belongs to a daemon that is no more.
            path.unlink(missing_ok=True)
            await self.start(path=str(path))
            path.chmod(0o600)
        except OSError as error:
            name = "the daemon" if path is not None else "FLX_GRPC_LISTEN: the daemon"
            msg = f"{name} cannot listen: {os.strerror(error.errno or 0)}"
            raise StartupError(msg) from error
        return str(path)

    async def _listen_on_tcp(self) -> str:
        context = tls.of_daemon(self._settings)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self._protocol_factory,
            self._address.host,
            self._address.port,
            backlog=_BACKLOG,
            ssl=context,
            ssl_handshake_timeout=None if context is None else _HANDSHAKE_S,
        )
        # What grpclib's own start does; it has no place for the time of a handshake.
        self._server = server
        self._server_closed_fut = loop.create_future()
        if context is not None:
            self._renewing = asyncio.create_task(self._renew(context), name="certificates")
        host, port = server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _renew(self, context: ssl.SSLContext) -> None:
        """Take certificates that have changed; connections that are open keep theirs."""
        files = (self._settings.grpc_cert_file or "", self._settings.grpc_key_file or "")
        known = _ages(files)
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            if known == (known := _ages(files)):
                continue
            log = structlog.stdlib.get_logger("flx.daemon")
            try:
                # First one that nobody uses: a pair that does not fit would leave the other one without a key.
                tls.of_daemon(self._settings)
                context.load_cert_chain(*files, password="")
            except (StartupError, OSError) as error:
                log.error("the new certificate cannot be used, the old one stays", reason=str(error))  # noqa: TRY400 - one line says it
            else:
                log.info("certificate renewed")

    def part(self) -> None:
        """Accept no more connections, and tell those there are to send no new commands."""
        if self._server is not None:
            self._server.close()
        for protocol in list(self._protocols):
            # One that was accepted but not made yet has no connection.
            connection = getattr(protocol, "connection", None)
            if connection is None or connection.is_closing():
                continue
            wire = connection._connection  # noqa: SLF001 - grpclib knows no farewell
            if isinstance(wire, http2.Connection):
                wire.part()
                connection.flush()

    async def stop(self) -> None:
        """End whatever is still open."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        self.close()
        await self.wait_closed()
        if self._address.socket_path is not None:
            self._address.socket_path.unlink(missing_ok=True)


def _ages(files: tuple[str, ...]) -> list[float]:
    ages = []
    for file in files:
        with contextlib.suppress(OSError):
            ages.append(os.stat(file).st_mtime)  # noqa: PTH116 - a Path for each look would say no more
    return ages
