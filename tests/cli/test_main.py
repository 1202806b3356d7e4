"""The command line from outside: one line and an exit code when something is wrong, never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.service import flx

from flx_api.cli.children import DAEMON_SOCKET
from flx_api.cli.runtime import prepare_data_folder
from flx_api.config import Settings

if TYPE_CHECKING:
    from pathlib import Path


def _flx(*args: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        flx(*args), input=stdin, env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "meltano.yml").write_text("plugins: {}\n")
    return tmp_path


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert 2 == done.returncode
    assert "" == done.stdout
    assert 1 == done.stderr.count("\n")
    return done.stderr.strip()


def test_version_is_the_packages() -> None:
    done = _flx("version")
    assert (0, True) == (done.returncode, done.stdout[0].isdigit())


def test_serve_names_the_project(tmp_path: Path) -> None:
    line = _one_line(_flx("serve", "--project", str(tmp_path), "--port", "0"))
    assert line.startswith("FLX_PROJECT: ")
    assert [] == list(tmp_path.iterdir()), "nothing was made"


def test_serve_names_a_taken_port(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = _one_line(_flx("serve", "--project", str(project), "--port", str(port)))
    assert line.startswith(f"FLX_API_PORT: {port} is in use")


def test_serve_names_a_setting_that_is_wrong(project: Path) -> None:
    assert _one_line(_flx("serve", "--project", str(project), FLX_WORKERS="many")).startswith("FLX_WORKERS: ")


def test_production_without_a_key_does_not_start(project: Path) -> None:
    line = _one_line(_flx("serve", "--project", str(project), FLX_ENVIRONMENT="production"))
    assert line.startswith("FLX_JWT_SECRET_KEY: ")


def test_a_token_is_alone_on_stdout(project: Path) -> None:
    prepare_data_folder(Settings(project=str(project)))
    done = _flx("token", "mint", "--sub", "me", "--role", "viewer", "--project", str(project))
    assert (0, "", 3) == (done.returncode, done.stderr, len(done.stdout.strip().split(".")))


def test_a_token_for_a_role_that_is_none(project: Path) -> None:
    assert _one_line(_flx("token", "mint", "--sub", "me", "--role", "boss", "--project", str(project))).startswith(
        "--role"
    )


def test_config_show_hides_secrets(project: Path) -> None:
    secret = "s3cret" * 8
    done = _flx("config", "show", "--project", str(project), FLX_JWT_SECRET_KEY=secret)
    assert secret not in done.stdout
    assert "FLX_JWT_SECRET_KEY=(set)" in done.stdout


def test_config_check_names_variables_without_effect(project: Path) -> None:
    done = _flx("config", "check", "--project", str(project), FLX_API_PROT="1")
    assert (0, True) == (done.returncode, "FLX_API_PROT: is no setting" in done.stderr)


def test_config_check_misses_no_project_where_the_daemon_is_elsewhere(tmp_path: Path) -> None:
    assert 0 == _flx("config", "check", "--project", str(tmp_path), FLX_GRPC_DAEMON_HOST="localhost").returncode
    assert "holds no meltano.yml" in _one_line(_flx("config", "check", "--project", str(tmp_path)))


def test_commands_without_a_service_say_so(project: Path) -> None:
    assert "no service runs on" in _one_line(_flx("run", "p", "--project", str(project)))


def test_the_documents_need_no_service() -> None:
    assert "paths" in json.loads(_flx("openapi").stdout)
    assert "channels" in json.loads(_flx("asyncapi").stdout)


def test_the_gateway_and_the_supervisor_name_the_socket_alike() -> None:
    from flx_api.main import DAEMON_SOCKET as GATEWAYS

    assert GATEWAYS == DAEMON_SOCKET


def test_the_command_line_starts_light() -> None:
    """`flx serve` and `flx version` must not pay for the framework, the database or the server."""
    script = "import sys, flx_api.cli.main, flx_api.cli.supervisor; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"blacksheep", "granian", "sqlalchemy", "grpclib", "httpx", "alembic", "structlog"}
    assert set() == heavy & set(done.stdout.split())
