"""Where the daemon is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
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
