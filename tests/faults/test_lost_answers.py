"""A daemon that accepts a command and dies before its answer has left: the same key gives the one run there is.

Strategy: gateway and daemon are real processes with a proxy between them that can swallow what the daemon says. So the
moment is not a matter of luck: the command is committed, seen in the database, and the answer does not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.e2e.scripted_project import make_project
from tests.gateway_process import SECRET, bearer, running
from tests.service import flx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# An unknown outcome must be known by then.
PATIENCE_S = 30.0


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while not (value := condition()):  # noqa: ASYNC110 - another process's doing, which no event tells
            await asyncio.sleep(0.01)
        return value


class Daemon:
    """`flx daemon` over the scripted project."""

    def __init__(self, folder: Path, meltano: Path) -> None:
        self.project = make_project(folder / "project")
        with (self.project / "meltano.yml").open("a") as file:
            file.write("jobs: [{name: rows, tasks: [tap-scripted target-scripted]}]\n")
        self.socket = folder / "daemon.sock"
        self._environ = {**os.environ, "FLX_MELTANO": str(meltano), "FLX_JWT_SECRET_KEY": SECRET}
        self._environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._log = folder / "daemon.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = flx("daemon", "--project", str(self.project), "--socket", str(self.socket))
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, env=self._environ, stdout=log, stderr=log)
        await until(self.socket.exists)

    async def end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            await self._process.wait()
            self._process = None

    def executions(self) -> list[tuple[str, str]]:
        """Key and id of all that were accepted, as the database has them."""
        path = self.project / ".flx" / "flx.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return connection.execute("select idempotency_key, id from executions").fetchall()


class Proxy:
    """Stands before the daemon's socket; while `mute`, what the daemon says is lost."""

    def __init__(self, path: Path, daemon: Path) -> None:
        self.path = path
        self.mute = False
        self._daemon = daemon
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._accept, path=str(self.path))
        try:
            yield
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            said, answer = await asyncio.open_unix_connection(str(self._daemon))
            ways = [self._pass_on(reader, answer, is_answer=False), self._pass_on(said, writer, is_answer=True)]
            tasks = [asyncio.create_task(way) for way in ways]
            self._tasks.update(tasks)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)
            answer.close()
        writer.close()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not (is_answer and self.mute):
                    sink.write(data)
                    await sink.drain()


def test_the_same_key_gives_the_one_run_that_there_is(tmp_path: Path, meltano_env: Path) -> None:
    async def story() -> None:
        daemon = Daemon(tmp_path, meltano_env)
        proxy = Proxy(tmp_path / "proxy.sock", daemon.socket)
        await daemon.start()
        try:
            async with proxy.serve(), running(proxy.path, tmp_path / "gateway") as gateway:
                headers = {**bearer(), "Idempotency-Key": "once"}
                async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=60) as http:
                    await tell(daemon, proxy, http)
        finally:
            await daemon.end(signal.SIGTERM)

    asyncio.run(story())


async def tell(daemon: Daemon, proxy: Proxy, http: httpx.AsyncClient) -> None:
    proxy.mute = True
    asking = asyncio.create_task(http.post("/v1/pipelines/rows/run"))
    ((key, made),) = await until(daemon.executions)
    assert key == "once"
    assert not asking.done()
    await daemon.end(signal.SIGKILL)
    proxy.cut()
    proxy.mute = False
    await daemon.start()
    first = await asking
    # The gateway may have asked again by itself, or say that nobody knows.
    assert first.status_code in {202, 503, 504}, first.text
    async with asyncio.timeout(PATIENCE_S):
        while (again := await http.post("/v1/pipelines/rows/run")).status_code != 202:
            assert again.status_code in {503, 504}, again.text
            await asyncio.sleep(0.05)
    assert again.headers["location"] == f"/v1/executions/{made}"
    told = (await http.post("/v1/commands/pipeline.run", json={"id": "rows"})).json()
    assert (told["id"], told["meta"]["replayed"]) == (made, True)
    other = await http.post("/v1/commands/pipeline.run", json={"id": "rows", "refresh": "full"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reuse")
    over = await http.get(f"/v1/executions/{made}/wait", params={"timeout_ms": 30_000})
    assert over.json()["status"].startswith("succeeded"), over.text
    assert daemon.executions() == [("once", made)]
    rows = (daemon.project / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 2, "the run happened once"
