"""FLX_ENABLE_SSL: the same service over TLS, for HTTP and WebSocket alike."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest
import trustme
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.service import Service

pytestmark = pytest.mark.e2e


def test_everything_is_served_over_tls(start_service: Callable[..., Service], tmp_path: Path) -> None:
    """A command, its refusal without a token, HSTS, and a WebSocket, all with a certificate that is checked."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    service = start_service(
        {
            "FLX_ENABLE_SSL": "true",
            "FLX_SSL_CERT_FILE": str(certificate),
            "FLX_SSL_KEY_FILE": str(key),
        }
    )
    assert service.url.startswith("https://")
    assert service.ws_url.startswith("wss://")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    headers = {"Authorization": f"Bearer {service.token()}"}
    with httpx.Client(base_url=service.url, verify=trusting) as client:
        assert 401 == client.get("/v1/pipelines").status_code
        answer = client.get("/v1/pipelines", headers=headers)
        assert 200 == answer.status_code
        assert "max-age" in answer.headers["strict-transport-security"]
    with connect(f"{service.ws_url}/ws/tls", additional_headers=headers, ssl=trusting) as socket:
        assert "connected" == json.loads(socket.recv(timeout=10))["type"]
    with pytest.raises(httpx.ConnectError), httpx.Client(base_url=service.url) as distrusting:
        distrusting.get("/health")
