"""The certificate of the native listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme
from tests.gateway_app import settings

from flx_api.errors import StartupError
from flx_api.gateway.certificate import certificate

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_read_where_there_is_one(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    chain, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    files = {"ssl_cert_file": str(chain), "ssl_key_file": str(key)}
    assert certificate(settings()) is None
    assert certificate(settings(**files)) is None
    made = settings(enable_ssl=True, **files)
    assert (chain.read_bytes(), key.read_bytes()) == certificate(made)
    key.write_bytes(chain.read_bytes())
    with pytest.raises(StartupError, match=r"^FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: the key: "):
        certificate(made)
    key.unlink()
    with pytest.raises(StartupError, match=r"^FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: cannot be read: No such file"):
        certificate(made)
