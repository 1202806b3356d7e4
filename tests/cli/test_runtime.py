"""What must exist before the first process starts."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flx_api.cli import runtime
from flx_api.config import Settings
from flx_api.errors import StartupError
from flx_api.models.rate_limit import RateLimit
from flx_api.routes.application import native_routes
from flx_api.routes.table import templates

if TYPE_CHECKING:
    from collections.abc import Iterator


def _settings(folder: Path, **more: object) -> Settings:
    return Settings(project=str(folder), **more)  # type: ignore[arg-type]


def _mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_data_folder_and_key_are_private_and_stay(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    folder = runtime.prepare_data_folder(settings)
    key = settings.secret_key_file.read_bytes()
    runtime.prepare_data_folder(settings)
    assert (0o700, 0o600, 32) == (_mode(folder), _mode(settings.secret_key_file), len(key))
    assert key == settings.secret_key_file.read_bytes()
    assert ["secret.key"] == [entry.name for entry in folder.iterdir()]


def test_no_key_is_made_when_one_is_given(tmp_path: Path) -> None:
    settings = _settings(tmp_path, jwt_secret_key="x" * 32)
    runtime.prepare_data_folder(settings)
    assert not settings.secret_key_file.exists()


def test_a_short_key_file_is_refused(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    settings.data_path.mkdir()
    settings.secret_key_file.write_bytes(b"short")
    with pytest.raises(StartupError, match=r"^FLX_JWT_SECRET_KEY: .* shorter than 32 bytes"):
        runtime.prepare_data_folder(settings)


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".flx").write_text("")
    with pytest.raises(StartupError, match=r"^FLX_DATA_DIR: "):
        runtime.prepare_data_folder(_settings(tmp_path))


def test_a_folder_without_meltano_yml_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^FLX_PROJECT: .* no meltano\.yml$"):
        runtime.check_project(_settings(tmp_path))


def test_policies_are_held_against_the_names_that_the_gateway_knows(tmp_path: Path) -> None:
    known = native_routes(_settings(tmp_path))
    assert {route.template for route in known.classes} == templates()
    for glob in (*templates(), "/v1/pipelines*"):
        runtime.check_limits(_settings(tmp_path, rate_limits=(RateLimit("few", "ip", 5, "1s", routes=(glob,)),)))
    with pytest.raises(StartupError, match=r"^FLX_RATE_LIMITS: \[0\]\.costs: no command fits"):
        runtime.check_limits(_settings(tmp_path, rate_limits=(RateLimit("few", "ip", 5, "1s", costs={"no.*": 2}),)))


def test_port_0_takes_a_free_one_and_a_taken_one_is_named(tmp_path: Path) -> None:
    first = runtime.listen(_settings(tmp_path, api_port=0))
    port = first.getsockname()[1]
    assert (f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}") == runtime.urls_of(_settings(tmp_path), first)
    with pytest.raises(StartupError, match=rf"^FLX_API_PORT: {port} is in use"):
        runtime.listen(_settings(tmp_path, api_port=port))
    first.close()
    runtime.listen(_settings(tmp_path, api_port=port)).close()


def test_the_native_port_is_held_for_whoever_listens_there(tmp_path: Path) -> None:
    assert runtime.reserve_realtime(_settings(tmp_path, realtime_port=None)) is None
    held = runtime.reserve_realtime(_settings(tmp_path, realtime_port=0))
    assert held is not None
    address = held.getsockname()
    with held:
        # Workers come and go there; another service does not get it while one listens.
        for _ in range(2):
            in_use = rf"^FLX_REALTIME_PORT: {address[1]} is in use; .* or off$"
            with socket.create_server(address), pytest.raises(StartupError, match=in_use):
                runtime.reserve_realtime(_settings(tmp_path, realtime_port=address[1]))


def test_a_host_of_another_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^FLX_API_HOST: "):
        runtime.listen(_settings(tmp_path, api_host="192.0.2.1", api_port=0))


def test_urls_of_any_address_are_loopback(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        url, _ = runtime.urls_of(_settings(tmp_path), listener)
    assert url.startswith("http://127.0.0.1:")


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder whose path is short enough for a socket, wherever the tests' own folders lie."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_runtime_dir_is_private_and_named_by_the_data_folder(tmp_path: Path, base: Path) -> None:
    one = runtime.make_runtime_dir(_settings(tmp_path / "a"), {"XDG_RUNTIME_DIR": str(base)})
    two = runtime.make_runtime_dir(_settings(tmp_path / "b"), {"XDG_RUNTIME_DIR": str(base)})
    assert one != two
    assert 0o700 == _mode(one)
    runtime.remove_runtime_dir(one)
    assert not one.exists()


def test_a_place_too_deep_for_a_socket_is_passed_over(tmp_path: Path) -> None:
    """The path of a socket is limited by the kernel: the next place is taken, /tmp in the end."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    for environ in ({"XDG_RUNTIME_DIR": str(deep)}, {"XDG_RUNTIME_DIR": str(deep), "TMPDIR": str(deep)}):
        folder = runtime.make_runtime_dir(_settings(tmp_path), environ)
        assert Path("/tmp") == folder.parent
        runtime.remove_runtime_dir(folder)


def test_a_symlink_as_runtime_dir_is_refused(tmp_path: Path, base: Path) -> None:
    settings = _settings(tmp_path)
    made = runtime.make_runtime_dir(settings, {"TMPDIR": str(base)})
    made.rmdir()
    made.symlink_to(tmp_path)
    with pytest.raises(StartupError, match="belongs to someone else"):
        runtime.make_runtime_dir(settings, {"TMPDIR": str(base)})


def test_addresses_of_a_dead_service_are_none(tmp_path: Path) -> None:
    """Even if its number is that of a living process, as the first one of a container is: our own."""
    settings = _settings(tmp_path)
    runtime.prepare_data_folder(settings)
    endpoints = runtime.Endpoints("http://x", "ws://x", "/s", os.getpid(), str(settings.data_path), str(tmp_path))
    runtime.write_endpoints(settings, endpoints)
    assert 0o600 == _mode(runtime.endpoints_file(settings))
    assert runtime.running_service(settings) is None
    with runtime.hold(settings):
        assert endpoints == runtime.running_service(settings)
        with pytest.raises(StartupError, match="FLX_DATA_DIR: another service uses"), runtime.hold(settings):
            pass
        assert endpoints == runtime.running_service(settings)
    assert runtime.running_service(settings) is None
    runtime.remove_endpoints(settings)
    assert not runtime.endpoints_file(settings).exists()
