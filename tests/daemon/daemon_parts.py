"""The parts of a daemon for tests: a real journal, a small project on disk, and a stand-in for executions."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import argon2
import msgspec
from sqlalchemy import insert

from flx_api.config import Settings
from flx_api.daemon.dispatch import Dispatcher
from flx_api.daemon.handlers import HANDLERS, Services
from flx_api.daemon.journal import Journal
from flx_api.daemon.journal.tables import executions
from flx_api.daemon.project import ProjectCache
from flx_api.daemon.revocations import Revocations
from flx_api.daemon.tokens import TokenIssuer
from flx_api.daemon.trust import Gateway
from flx_api.daemon.users import Users
from flx_api.errors import NotFound
from flx_api.events.ephemeral_log import EphemeralLog
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from flx_api.daemon.executions import Executions, LogFile
    from flx_api.daemon.handlers import Handler
    from flx_api.daemon.journal import Tx

KEY = b"k" * 32
ADMIN = Principal(subject="ann", tenant="default", roles=["admin"])

PROJECT = """
version: 1
project_id: test
default_environment: dev
environments: [{name: dev}, {name: prod}]
plugins:
  extractors: [{name: tap-a, namespace: tap_a, pip_url: tap-a, executable: tap-a}]
  loaders: [{name: target-b, namespace: target_b, pip_url: target-b, executable: target-b}]
  utilities: [{name: tool, namespace: tool, pip_url: tool, executable: tool, commands: {build: build}}]
jobs: [{name: load, tasks: [tap-a target-b]}]
schedules:
- {name: nightly, interval: '@daily', job: load}
- {name: weekly, interval: '@weekly', job: load}
"""


class Clock:
    """Microseconds that only a test moves."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


class FakeExecutions:
    """Logs and nothing else: runs are the subject of other tests."""

    def __init__(self) -> None:
        self.logs: dict[str, LogFile] = {}
        self.queued: list[str] = []
        # Logs of attempts that are written down, but that memory has not followed yet.
        self.behind: dict[str, LogFile] = {}

    def counts(self) -> tuple[int, int]:
        return 1, 2

    def active_logs(self) -> Iterable[str]:
        return tuple(key for key, log in self.logs.items() if not log.complete)

    def waiting(self) -> dict[str, int]:
        return dict.fromkeys(self.queued, 0)

    def renew_log(self, execution_id: str) -> None:
        if execution_id in self.behind:
            self.logs[execution_id] = self.behind.pop(execution_id)

    def log(self, execution_id: str) -> LogFile:
        try:
            return self.logs[execution_id]
        except KeyError:
            raise NotFound from None

    def get(self, execution_id: str, tenant: str) -> None:
        if self.log(execution_id).tenant != tenant:
            raise NotFound


class Parts:
    """A daemon without its server."""

    def __init__(self, folder: Path, journal: Journal, clock: Clock) -> None:
        self.folder = folder
        self.journal = journal
        self.clock = clock
        self.fake = FakeExecutions()
        # As small as argon2 allows: these tests are about everything around the hash.
        self.hasher = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        self.users = Users(journal, clock, self.hasher)
        self.services = Services(
            journal=journal,
            projects=ProjectCache(folder, {}),
            executions=cast("Executions", self.fake),
            settings=Settings(project=str(folder), max_runs=3),
            tokens=TokenIssuer(KEY, "flx", "flx-api", clock),
            users=self.users,
            revocations=Revocations(journal, clock),
            ephemeral=EphemeralLog("ephemeral", clock),
            clock=clock,
            started_us=clock.now_us - 5_000_000,
        )

    def dispatcher(self, more: Mapping[str, Handler] | None = None) -> Dispatcher:
        return Dispatcher(self.services, {**HANDLERS, **(more or {})})

    async def run(self, command: str, args: Any = None, **frame: Any) -> ReplyFrame:
        """One command as a trusted gateway would send it."""
        raw = args if isinstance(args, bytes) else msgspec.json.encode(args if args is not None else {})
        sent = CommandFrame(seq=7, command=command, args=raw, **{"principal": ADMIN, **frame})
        return await self.dispatcher().carry_out(sent, Gateway())

    async def result(self, command: str, args: Any = None, **frame: Any) -> Any:
        """The result of a command that must succeed."""
        reply = await self.run(command, args, **frame)
        assert (reply.code, reply.seq) == ("", 7), reply
        return msgspec.json.decode(reply.result)

    async def problem(self, command: str, args: Any = None, **frame: Any) -> Any:
        """The problem of a command that must fail."""
        reply = await self.run(command, args, **frame)
        found = msgspec.json.decode(reply.problem)
        assert reply.code == found["code"]
        return found

    async def add_execution(
        self, key: str, pipeline: str, status: str, queued_us: int, tenant: str = "default"
    ) -> None:
        row: dict[str, object] = {
            "id": key,
            "tenant": tenant,
            "project_id": "test",
            "pipeline": pipeline,
            "status": status,
        }
        row |= {"trigger": "api", "triggered_by": "ann", "refresh": "incremental", "tasks": b"[]", "state_ids": b"[]"}

        def change(tx: Tx) -> None:
            tx.connection.execute(insert(executions), {**row, "warnings": b"[]", "queued_us": queued_us})

        await self.journal.write(change)


@asynccontextmanager
async def parts(folder: Path, project: str = PROJECT, clock: Clock | None = None) -> AsyncIterator[Parts]:
    """A daemon's parts over a project and a database in a folder."""
    (folder / "meltano.yml").write_text(project, encoding="utf-8")
    clock = clock or Clock()
    journal = await Journal.open(f"sqlite:///{folder / 'flx.db'}", "test", clock)
    made = Parts(folder, journal, clock)
    try:
        yield made
    finally:
        made.users.close()
        await journal.close()


async def turn(times: int = 10) -> None:
    """Let everything that can run now run."""
    for _ in range(times):
        await asyncio.sleep(0)


@contextlib.contextmanager
def growing_log(path: Path, log: LogFile) -> Any:
    """A function that appends lines to a log as a run would."""
    with path.open("ab", buffering=0) as file:

        def write(*lines: bytes) -> None:
            file.write(b"".join(line + b"\n" for line in lines))
            log.advance()

        yield write
