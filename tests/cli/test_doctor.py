"""The doctor names what is broken and how to mend it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
import trustme
from tests.redis_server import RedisServer, running

from flx_api.cli import doctor, runtime
from flx_api.config import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


@pytest.mark.parametrize(
    "text", ["- a\n", "plugins: [a]\n", "plugins: {loaders: {a: b}}\n", "plugins: {loaders: [a, {pip_url: b}]}\n"]
)
def test_a_file_that_is_laid_out_otherwise_is_broken(tmp_path: Path, text: str) -> None:
    found = [finding for finding in doctor.project(_project(tmp_path, text)) if finding.state != "good"]
    assert [("broken", True)] == [(finding.state, finding.what.startswith("meltano.yml")) for finding in found]


def test_where_the_daemon_is_elsewhere_no_project_is_missed(tmp_path: Path) -> None:
    assert [] == list(doctor.project(Settings(project=str(tmp_path), grpc_daemon_host="localhost")))


def test_what_does_not_end_is_broken(tmp_path: Path) -> None:
    def check(_: Settings) -> Iterator[doctor.Finding]:
        yield doctor.Finding("good", "one")
        raise subprocess.TimeoutExpired(["python", "-c"], 20)

    assert ["one", "python does not end within 20 s"] == [it.what for it in doctor._run(check, _project(tmp_path))]


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
        realtime = Settings(project=str(tmp_path), api_port=0, realtime_port=listener.getsockname()[1])
        (_, taken) = doctor._run(doctor.service, realtime)
    assert ("broken", True) == (taken.state, taken.what.startswith("FLX_REALTIME_PORT"))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path) as server:
        yield server


def _redis(url: str) -> tuple[str, str]:
    (finding,) = doctor.redis(Settings(redis_url=url))
    return finding.state, finding.what


def test_a_redis_is_asked_with_all_that_the_setting_says(redis: RedisServer) -> None:
    assert ("good", "FLX_REDIS_URL: Redis answers") == _redis(redis.url)
    assert ("good", "FLX_REDIS_URL: Redis answers") == _redis(f"{redis.url}?db=15")
    assert ("broken", "FLX_REDIS_URL: Redis refuses what the address says (ResponseError)") == _redis(
        f"{redis.url}?db=99"
    )
    redis.ask(b"CONFIG", b"SET", b"requirepass", b"open sesame")
    refused = ("broken", "FLX_REDIS_URL: Redis refuses the user or the password")
    for url, expected in [
        (f"unix://:open%20sesame@{redis.socket}?db=1", ("good", "FLX_REDIS_URL: Redis answers")),
        (f"unix://:closed@{redis.socket}", refused),
        (f"{redis.url}?password=open%20sesame", ("good", "FLX_REDIS_URL: Redis answers")),
        (f"unix://nobody:open%20sesame@{redis.socket}", refused),
        (redis.url, refused),
    ]:
        assert expected == _redis(url)


def test_a_redis_behind_tls_is_asked_over_tls(redis: RedisServer, tmp_path: Path) -> None:
    authority, port = trustme.CA(), 0
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with _Tls(("127.0.0.1", 0), str(redis.socket), context) as front:
        port = front.server_address[1]
        threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True).start()
        trusting = f"rediss://127.0.0.1:{port}/2?ssl_ca_certs={tmp_path / 'ca.pem'}"
        answers = [_redis(url) for url in (trusting, f"rediss://127.0.0.1:{port}/2", f"redis://127.0.0.1:{port}/2")]
        front.shutdown()
    lost = ("broken", "FLX_REDIS_URL: Redis does not answer (ConnectionError)")
    assert [("good", "FLX_REDIS_URL: Redis answers"), lost, lost] == answers


class _Tls(socketserver.ThreadingTCPServer):
    """TLS in front of a Unix socket."""

    daemon_threads = True

    def __init__(self, place: tuple[str, int], behind: str, context: ssl.SSLContext) -> None:
        super().__init__(place, _Pass)
        self.behind = behind
        self.context = context


class _Pass(socketserver.BaseRequestHandler):
    """Passes one command and its answer at a time, which is how the doctor asks."""

    server: _Tls

    def handle(self) -> None:
        with (
            contextlib.suppress(OSError),
            self.server.context.wrap_socket(self.request, server_side=True) as front,
            socket.socket(socket.AF_UNIX) as back,
        ):
            back.connect(self.server.behind)
            while asked := front.recv(1 << 16):
                back.sendall(asked)
                front.sendall(back.recv(1 << 16))


def test_a_redis_that_is_not_there_is_broken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    lost = ("broken", "FLX_REDIS_URL: Redis does not answer (ConnectionError)")
    assert lost == _redis(f"redis://:secret@127.0.0.1:{port}/0")
    assert lost == _redis(f"unix://{tmp_path}/nothing")


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
