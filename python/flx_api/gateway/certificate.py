"""The certificate of the native listeners, as they take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flx_api._core import check_certificate
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from flx_api.config import Settings


def certificate(settings: Settings) -> tuple[bytes, bytes] | None:
    """Chain and key in PEM; None: without TLS.

    Raises:
        StartupError: a file cannot be read, or used.
    """
    if not (settings.enable_ssl and settings.ssl_cert_file and settings.ssl_key_file):
        return None
    try:
        found = Path(settings.ssl_cert_file).read_bytes(), Path(settings.ssl_key_file).read_bytes()
        check_certificate(*found)
    except OSError as error:
        detail = f"FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: cannot be read: {error.strerror}"
        raise StartupError(detail) from None
    except ValueError as error:
        detail = f"FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: {error}"
        raise StartupError(detail) from None
    return found
