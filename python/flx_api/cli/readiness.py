"""Ask a gateway whether it is ready, without waiting for it.

Strategy: one `GET /ready` on a non-blocking socket. The listening socket is the supervisor's own, so the connection
stands before the gateway does, and the answer comes the moment there is someone to give it: no closed port is polled.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flx_api.config import Settings

_OK = b" 200 "


class Probe:
    """One question under way. Watch `socket` for reading and call `step`."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        name = settings.trusted_hosts[0] if settings.trusted_hosts else f"localhost:{port}"
        self._request = f"GET /ready HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
        self._wait: tuple[type[OSError], ...] = (BlockingIOError,)
        self._handshake = False
        self.socket = socket.socket(listener.family, socket.SOCK_STREAM)
        self.socket.settimeout(1)
        self.socket.connect((host, port))
        self.socket.settimeout(0)
        if settings.enable_ssl:
            self._use_tls()

    def _use_tls(self) -> None:
        import ssl  # noqa: PLC0415 - 20 ms that only TLS needs

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # We ask ourselves over loopback, under a name the certificate need not bear.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket, do_handshake_on_connect=False)
        self._wait, self._handshake = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError), True

    def step(self) -> bool | None:
        """Go on as far as possible: True ready, False not (close and ask again later), None not answered yet."""
        try:
            if self._handshake:
                self.socket.do_handshake()  # type: ignore[attr-defined]
                self._handshake = False
            if self._request:
                self._request = self._request[self.socket.send(self._request) :]
            return _OK in self.socket.recv(64)
        except self._wait:
            return None
        except OSError:
            return False

    def close(self) -> None:
        """Drop the connection."""
        self.socket.close()
