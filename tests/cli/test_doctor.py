"""The doctor names what is broken and how to mend it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.redis_server import RedisServer

from flx_api.cli import doctor, runtime
from flx_api.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def _project(folder: Path, text: str = "plugins: {}\n") -> Settings:
    (folder / "meltano.yml").write_text(text)
    return Settings(project=str(folder), api_port=0)


def test_nothing_is_broken_in_a_sound_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _project(tmp_path)
    runtime.prepare_data_folder(settings)
    assert 0 == doctor.examine(settings)
    out = capsys.readouterr().out
    assert "native module (release)" in out
    assert out.endswith("nothing is broken\n")


def test_a_missing_project_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == doctor.examine(Settings(project=str(tmp_path), api_port=0))
    assert "broken  FLX_PROJECT" in capsys.readouterr().out


def test_plugins_that_are_not_installed_are_named(tmp_path: Path) -> None:
    settings = _project(
        tmp_path, "plugins:\n  loaders:\n  - {name: target-x, pip_url: x}\n  - {name: y, inherit_from: x}\n"
    )
    (broken,) = [finding for finding in doctor.project(settings) if finding.state == "broken"]
    assert "plugin loaders/target-x is not installed" == broken.what
    assert "meltano install" in broken.remedy


def test_a_file_that_is_not_yaml_is_broken(tmp_path: Path) -> None:
    settings = _project(tmp_path, "plugins: [\n")
    assert ["broken"] == [finding.state for finding in doctor.project(settings) if finding.state != "good"]


def test_an_open_data_folder_is_broken(tmp_path: Path) -> None:
    settings = _project(tmp_path)
    settings.data_path.mkdir(mode=0o755)
    (first, *_) = doctor.folders(settings)
    assert ("broken", f"chmod 700 {settings.data_path}") == (first.state, first.remedy)


def test_a_taken_port_is_broken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(project=str(tmp_path), api_port=listener.getsockname()[1])
        (finding,) = doctor._run(doctor.service, settings)
    assert ("broken", True) == (finding.state, finding.what.startswith("FLX_API_PORT"))


def test_a_redis_that_is_not_there_is_broken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = Settings(project=str(tmp_path), redis_url=f"redis://:w0rd@127.0.0.1:{port}/0")
    (finding,) = doctor._run(doctor.redis, settings)
    assert ("broken", "FLX_REDIS_URL: no Redis there (ConnectionError)") == (finding.state, finding.what)


def test_a_redis_at_a_socket_is_found_and_its_password_tried(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        (finding,) = doctor._run(doctor.redis, Settings(redis_url=server.url))
        assert ("good", "FLX_REDIS_URL: Redis answers") == (finding.state, finding.what)
        server.ask(b"CONFIG", b"SET", b"requirepass", b"w0rd")
        for url, state in ((server.url, "broken"), (f"{server.url}?password=w0rd", "good")):
            (finding,) = doctor._run(doctor.redis, Settings(redis_url=url))
            assert (state, False) == (finding.state, "w0rd" in finding.what)
    finally:
        server.kill()


def test_another_meltano_is_remarked(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "lib/python3.11/site-packages/meltano-4.0.0.dist-info").mkdir(parents=True)
    (own / "bin").mkdir()
    (own / "bin" / "meltano").touch()
    (own / "bin" / "python").write_text("#!/bin/sh\nexit 0\n")
    (own / "bin" / "python").chmod(0o755)
    (finding,) = doctor.meltano_environment(Settings(meltano=str(own)))
    assert "note" == finding.state
    assert finding.what.startswith("Meltano 4.0.0")
