"""The daemon as a process: it starts on a socket, answers, and ends when told to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from grpclib.client import Channel
from tests.daemon.daemon_parts import ADMIN, PROJECT

from flx_api.config import Settings
from flx_api.daemon.main import _states_reader
from flx_api.daemon.project import ProjectCache
from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CODE = """
import os, sys
from pathlib import Path
from flx_api.config import load
from flx_api.daemon.main import run_daemon
from flx_api.errors import StartupError
try:
    sys.exit(run_daemon(load(os.environ), socket_path=Path(sys.argv[1]), ready_fd=int(sys.argv[2]), environ=os.environ))
except StartupError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


class Daemon:
    """A daemon's process and the folder it works in."""

    def __init__(self, folder: Path) -> None:
        (folder / "meltano.yml").write_text(PROJECT, encoding="utf-8")
        (folder / "meltano").mkdir(exist_ok=True)
        self.socket = folder / "run" / "d.sock"
        environ = {key: value for key, value in os.environ.items() if not key.startswith("FLX_")}
        environ |= {
            "FLX_PROJECT": str(folder),
            "FLX_MELTANO": str(folder / "meltano"),
            "FLX_JWT_SECRET_KEY": "k" * 32,
            "FLX_FORK": "never",
        }
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(self.socket), str(writer)],
            env=environ,
            pass_fds=[writer],
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            self.is_ready = pipe.read() == b"ready\n"

    def run(self, command: str) -> ReplyFrame:
        async def once() -> ReplyFrame:
            async with Channel(path=str(self.socket)) as channel:
                return await DaemonStub(channel).Execute(CommandFrame(command=command, principal=ADMIN), timeout=10)

        return asyncio.run(once())

    def end(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@contextmanager
def daemon(folder: Path) -> Iterator[Daemon]:
    started = Daemon(folder)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def test_from_start_to_end_and_again(tmp_path: Path) -> None:
    with daemon(tmp_path) as first:
        assert first.is_ready
        assert first.socket.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / ".flx").stat().st_mode & 0o777 == 0o700
        assert first.run("system.status").code == ""
        info = first.run("system.info").result
        code, errors = first.end(signal.SIGTERM)
        assert code == 0
        assert "daemon stopping" in errors
        assert "Traceback" not in errors
        assert "k" * 32 not in errors
        assert not first.socket.exists()
    with daemon(tmp_path) as second:
        # The same epoch: it is the same journal.
        assert second.run("system.info").result.split(b'"epoch"')[1][:20] == info.split(b'"epoch"')[1][:20]
        assert second.end(signal.SIGINT)[0] == 0


def test_a_second_daemon_is_refused_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    with daemon(tmp_path) as first:
        with daemon(tmp_path) as second:
            assert not second.is_ready
            assert second.process.wait(timeout=20) == 2
            assert second.process.stderr is not None
            assert second.process.stderr.read().strip() == "FLX_DATA_DIR: another daemon uses this folder"
        assert first.run("system.status").code == ""
        first.end(signal.SIGKILL)
    with daemon(tmp_path) as third:
        assert third.is_ready
        assert third.run("system.status").code == ""


def test_states_that_are_kept_elsewhere_are_unknown(tmp_path: Path) -> None:
    def states(project: str, **environ: str) -> object:
        (tmp_path / "meltano.yml").write_text(project, encoding="utf-8")
        settings = Settings(project=str(tmp_path))
        return _states_reader(settings, ProjectCache(tmp_path, environ), environ)(("dev:a-to-b",))

    assert states(PROJECT) == {}
    assert states(PROJECT + "state_backend: {uri: systemdb}\n") == {}
    assert states(PROJECT + "state_backend: {uri: 's3://bucket'}\n") is None
    assert states(PROJECT, MELTANO_STATE_BACKEND_URI="s3://bucket") is None
    assert states(PROJECT + "database_uri: postgresql://db\n") is None
    assert states("jobs: 7\n") is None
    (tmp_path / ".env").write_text("MELTANO_STATE_BACKEND_URI=s3://bucket\n", encoding="utf-8")
    assert states(PROJECT) is None
