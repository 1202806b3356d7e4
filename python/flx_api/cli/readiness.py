"""Ask a gateway whether it is ready, without waiting for it.

Strategy: one `GET /ready` on a non-blocking socket. The listening socket is the supervisor's own, so the connection
stands before the gateway does, and the answer comes the moment there is someone to give it: no closed port is polled.
What is not ready says why, and the supervisor passes that on.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from flx_api.config import Settings

_OK = b" 200 "
_LONGEST_ANSWER = 65_536


class _Readiness(msgspec.Struct):
    reasons: tuple[str, ...] = ()


class Probe:
    """One question under way. Watch `socket` for reading and call `step`."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        name = settings.trusted_hosts[0] if settings.trusted_hosts else f"localhost:{port}"
        self._request = f"GET /ready HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
        self._answer = b""
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
            while len(self._answer) < _LONGEST_ANSWER and (part := self.socket.recv(_LONGEST_ANSWER)):
                self._answer += part
                if _OK in self._answer[:16]:
                    return True
        except self._wait:
            return None
        except OSError:
            return False
        return False

    @property
    def reason(self) -> str:
        """Why it is not ready, if that was said. Parts are asked in order: the first reason explains the others."""
        try:
            reasons = msgspec.json.decode(self._answer.partition(b"\r\n\r\n")[2], type=_Readiness).reasons
        except msgspec.DecodeError:
            return ""
        return reasons[0] if reasons else ""

    def close(self) -> None:
        """Drop the connection."""
        self.socket.close()
