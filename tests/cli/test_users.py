"""Users from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.service import copy_project

from flx_api.cli import users
from flx_api.cli.runtime import Endpoints, hold, prepare_data_folder, write_endpoints
from flx_api.config import Settings
from flx_api.errors import Conflict, StartupError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "correct horse battery"


@pytest.mark.parametrize(
    ("name", "role", "password", "option"),
    [
        ("me", "boss", PASSWORD, "--role"),
        ("me", "viewer", "short", "--password-stdin"),
        ("not a name", "viewer", PASSWORD, "NAME"),
    ],
)
def test_mistakes_are_named_by_option(tmp_path: Path, name: str, role: str, password: str, option: str) -> None:
    with pytest.raises(StartupError, match=f"^{option}: "):
        users.add(Settings(project=str(tmp_path)), name, [role], password)


def test_without_a_daemon_the_user_is_in_the_database(tmp_path: Path) -> None:
    settings = Settings(project=str(copy_project(tmp_path / "nyc", plugins=tmp_path)))
    users.add(settings, "me", ["viewer"], PASSWORD)
    assert (settings.data_path / "flx.db").exists()
    with pytest.raises(Conflict):
        users.add(settings, "me", ["viewer"], PASSWORD)


def test_beside_a_gateway_alone_no_user_is_made_where_nobody_looks(tmp_path: Path) -> None:
    settings = Settings(project=str(tmp_path), grpc_daemon_host="localhost")
    with pytest.raises(StartupError, match=r"^FLX_GRPC_DAEMON_HOST: the daemon is elsewhere"):
        users.add(settings, "me", ["viewer"], PASSWORD)
    assert not settings.data_path.exists()


def test_a_daemon_that_does_not_answer_is_told(tmp_path: Path) -> None:
    settings = Settings(project=str(tmp_path))
    prepare_data_folder(settings)
    write_endpoints(settings, Endpoints("http://x", "ws://x", str(tmp_path / "none.sock"), 1, "", ""))
    with hold(settings), pytest.raises(Unavailable, match="does not answer"):
        users.add(settings, "me", ["viewer"], PASSWORD)
