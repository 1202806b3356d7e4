"""Where the daemon is."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
from tests.certificates import Authority, tls
from tests.gateway_app import settings

from flx_api.errors import StartupError
from flx_api.upstream.endpoints import Endpoint, endpoints_of

if TYPE_CHECKING:
    from pathlib import Path


def test_the_supervisors_socket_is_taken_unless_a_daemon_is_elsewhere(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("shared\n", encoding="ascii")
    assert endpoints_of(settings(), "/run/d.sock") == (Endpoint(path="/run/d.sock"),)
    elsewhere = settings(grpc_daemon_host="localhost, [::1]:7", grpc_token_file=str(token))
    there = endpoints_of(elsewhere, "/run/d.sock")
    assert there == (
        Endpoint(host="localhost", port=50051, token="shared"),
        Endpoint(host="::1", port=7, token="shared"),
    )
    assert there[0].metadata == {"x-flx-gateway-token": "shared"}
    assert Endpoint(path="x").metadata == {}


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(StartupError, match="FLX_GRPC_DAEMON_HOST"):
        endpoints_of(settings(), None)
    for name in ("none", "empty"):
        with pytest.raises(StartupError, match="FLX_GRPC_TOKEN_FILE"):
            endpoints_of(settings(grpc_token_file=str(tmp_path / name)), "/run/d.sock")


def test_a_certificate_that_is_renewed_is_read_with_the_next_connection(tmp_path: Path) -> None:
    """And what cannot be read then changes nothing."""
    authority = Authority(tmp_path)
    given = {name: value == "true" or value for name, value in tls(authority.file, None).items()}
    (there,) = endpoints_of(settings(grpc_daemon_host="localhost", **given), None)
    first, second = there.tls(), there.tls()
    assert first is not second
    authority.file.write_text("no certificate")
    assert second is there.tls()
    with pytest.raises(StartupError, match="FLX_GRPC_CA_FILE"):
        endpoints_of(settings(grpc_daemon_host="localhost", **given), None)


def test_a_server_that_speaks_no_http2_is_no_daemon(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("127.0.0.1"))

    async def story() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        trusting = ssl.create_default_context(cafile=str(authority.file))
        channel = Endpoint(port=port, tls=lambda: trusting).open()
        with pytest.raises(ConnectionAbortedError):
            await channel.__connect__()
        channel.close()
        server.close()

    asyncio.run(story())


def test_each_address_of_a_name_counts_once() -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["10.0.0.1", "10.0.0.2", "10.0.0.1"]

    async def story() -> None:
        assert ["10.0.0.1", "10.0.0.2"] == await Endpoint(host="daemon", resolve=resolve).addresses()
        # What is an address already is not asked for.
        assert ["::1"] == await Endpoint(host="::1", resolve=resolve).addresses()
        assert ["/d.sock"] == await Endpoint(path="/d.sock", resolve=resolve).addresses()
        assert "127.0.0.1" in await Endpoint(host="localhost").addresses()

    asyncio.run(story())
