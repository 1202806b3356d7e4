"""TLS between gateway and daemon: the contexts of both ends, from the files of `FLX_GRPC_…_FILE`.

Rules:
- TLS 1.2 and newer, HTTP/2 by ALPN. A gateway checks the daemon's host name and chain; nothing turns that off.
- A daemon asks for a certificate when it knows who signs those of gateways. One that does not verify ends the
  handshake; without one a client may come with a token of its own.
- A file that cannot be used is a `StartupError` naming its setting; what is in it is never repeated.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from flx_api.errors import StartupError

if TYPE_CHECKING:
    from flx_api.config import Settings

_HTTP2: Final = ["h2"]


def of_gateway(settings: Settings) -> ssl.SSLContext | None:
    """How a gateway connects; None: without TLS.

    Raises:
        StartupError: a file cannot be used.
    """
    if not settings.grpc_tls:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=settings.grpc_ca_file)
    except (OSError, ValueError):
        raise StartupError(_NO_AUTHORITIES) from None
    return _finished(context, settings)


def of_daemon(settings: Settings) -> ssl.SSLContext | None:
    """How a daemon listens on TCP; None: without TLS.

    Raises:
        StartupError: a file cannot be used.
    """
    if not settings.grpc_tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if settings.grpc_ca_file is not None:
        try:
            context.load_verify_locations(settings.grpc_ca_file)
        except (OSError, ValueError):
            raise StartupError(_NO_AUTHORITIES) from None
        context.verify_mode = ssl.CERT_OPTIONAL
    return _finished(context, settings)


_NO_AUTHORITIES: Final = "FLX_GRPC_CA_FILE: cannot be read as certificates in PEM"


def _finished(context: ssl.SSLContext, settings: Settings) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_HTTP2)
    if settings.grpc_cert_file is not None and settings.grpc_key_file is not None:
        try:
            # Without a password of some kind, an encrypted key would ask for one at the terminal.
            context.load_cert_chain(settings.grpc_cert_file, settings.grpc_key_file, password="")
        except (OSError, ValueError):
            msg = "FLX_GRPC_CERT_FILE: is no certificate in PEM that goes with the key in FLX_GRPC_KEY_FILE"
            raise StartupError(msg) from None
    return context


def why_refused(error: ssl.SSLError) -> str:
    """What a failed handshake means, in words that name no place: everybody may read them."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERDICTS.get(error.verify_code, "its certificate is not acceptable")
    if "ALERT" in (error.reason or ""):
        return "it does not accept our certificate, or wants one"
    if error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
        return "it does not speak TLS"
    return "the TLS handshake failed"


# OpenSSL's numbers (X509_V_ERR_…).
_VERDICTS: Final = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself",
    19: "its certificate is signed by an authority that is not trusted here",
    20: "its certificate is signed by an authority that is not trusted here",
    21: "its certificate is signed by an authority that is not trusted here",
    62: "its certificate is for another host",
    64: "its certificate is for another address",
}
