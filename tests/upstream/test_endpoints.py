"""Where the daemon is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.gateway_app import settings

from flx_api.errors import StartupError
from flx_api.upstream.endpoints import Endpoint, endpoint_of

if TYPE_CHECKING:
    from pathlib import Path


def test_the_supervisors_socket_is_taken_unless_a_daemon_is_elsewhere(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("shared\n", encoding="ascii")
    assert endpoint_of(settings(), "/run/d.sock") == Endpoint(path="/run/d.sock")
    there = endpoint_of(settings(grpc_daemon_host="d", grpc_token_file=str(token)), "/run/d.sock")
    assert there == Endpoint(host="d", port=50051, token="shared")
    assert there.metadata == {"x-flx-gateway-token": "shared"}
    assert Endpoint(path="x").metadata == {}


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(StartupError, match="FLX_GRPC_DAEMON_HOST"):
        endpoint_of(settings(), None)
    for name in ("none", "empty"):
        with pytest.raises(StartupError, match="FLX_GRPC_TOKEN_FILE"):
            endpoint_of(settings(grpc_token_file=str(tmp_path / name)), "/run/d.sock")
