"""Power is lost at any moment: what the journal acknowledged is there afterwards, whole and in its order.

Each round opens the journal in a process of its own, on a disk that dies at a random write or fsync (`disk.py`), and
then judges what is left by what the process had been told.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING

import pytest
from tests.faults.disk import Disk

from flx_api.daemon.journal import Journal
from flx_api.daemon.journal.tables import idempotency

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = 25
WORKERS = 16

CHILD = """
import asyncio, itertools, sys
from sqlalchemy import event, insert
from flx_api.daemon.journal import Journal, Place, Prepared, pace, sqlite, turns
from flx_api.daemon.journal.tables import idempotency
from flx_api.errors import Unavailable
from flx_api.models.event import PipelineEvent

path, first, workers, synchronous, payload = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4], int(sys.argv[5])
where = sys.argv[6]
if synchronous != "as shipped":
    shipped = sqlite.engine_of
    def relaxed(url, **options):
        engine = shipped(url, **options)
        event.listen(engine, "connect", lambda driver, _: driver.execute(f"PRAGMA synchronous={synchronous}"))
        return engine
    sqlite.engine_of = relaxed

if where == "moving":
    pace._FEWEST = pace._WORTH = pace._AGAIN = 50
    pace._PAUSE_S = turns._CALM_S = 0

def tell(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

async def main():
    journal = await Journal.open(f"sqlite:///{path}", "project", itertools.count(1_000_000).__next__)
    tell("opened", journal.epoch)
    numbers = itertools.count(first)
    loop, rest_until = asyncio.get_running_loop(), [0]
    async def worker():
        for number in numbers:
            def command(tx):
                row = {"tenant": "t", "subject": "s", "key": str(number), "project_id": "project", "command": "c"}
                row |= {"body_hash": "", "result": b"x" * payload, "created_us": tx.now_us}
                if where != "thread":
                    tx.add(idempotency, row)
                else:
                    tx.connection.execute(insert(idempotency), row)
                return tx.emit(f"t{number % 7}", PipelineEvent("created", str(number), "me"), tenant="t")
            if where != "thread":
                command = Prepared(command, [Place(idempotency, ("t", "s", str(number)))])
            try:
                seq = await journal.write(command)
            except Unavailable as error:
                tell("refused", number, error.code)
            else:
                tell("stored", number, seq)
            if where == "moving":
                if number % 40 == 0:
                    rest_until[0] = loop.time() + 0.004
                await asyncio.sleep(max(0, rest_until[0] - loop.time()))
    await asyncio.gather(*(worker() for _ in range(workers)))

asyncio.run(main())
"""


class Story:
    """What the processes of all rounds were told."""

    def __init__(self, disk: Disk, synchronous: str = "as shipped", payload: int = 300, where: str = "thread") -> None:
        self.disk = disk
        self.epoch: str | None = None
        self.stored: dict[str, int] = {}
        self.refused: set[str] = set()
        self._next = 0
        self._words = [synchronous, str(payload), where]

    def start(self, workers: int = WORKERS) -> subprocess.Popen[bytes]:
        words = [str(self.disk.database), str(self._next), str(workers), *self._words]
        self._next += 1_000_000
        environ = os.environ | {"PYTHONPATH": "python"} | self.disk.environ
        return subprocess.Popen([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, env=environ)

    def hear(self, line: bytes) -> None:
        what, *words = line.decode().split()
        if what == "opened":
            assert self.epoch in {None, words[0]}, "nothing that was told is lost, so this is the same history"
            self.epoch = words[0]
        elif what == "stored":
            self.stored[words[0]] = int(words[1])
        else:
            assert words[1] == "storage_unavailable"
            self.refused.add(words[0])

    def round(self, steps: int) -> None:
        """A process until it dies at its nth step."""
        self.disk.die_after(steps)
        with self.start() as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.endswith(b"\n"):
                    self.hear(line)
        assert child.returncode == -signal.SIGKILL

    def lost(self) -> set[str]:
        """What was acknowledged and is not there; fails the test when what is there is not whole."""
        if not self.disk.database.exists():
            return set(self.stored)
        # A copy: who opens a database changes its files, and the disk must not miss it.
        copy = self.disk.database.parent.with_name("judged")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.disk.database.parent, copy)
        with closing(sqlite3.connect(copy / self.disk.database.name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'events'").fetchone():
                return set(self.stored)
            keys = {key for (key,) in connection.execute("SELECT key FROM idempotency")}
            rows = connection.execute("SELECT seq, prev, topic, data FROM events ORDER BY seq").fetchall()
            heads = dict(connection.execute("SELECT topic, seq FROM topic_heads").fetchall())
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        chain: dict[str, int] = {}
        told: dict[str, int] = {}
        for seq, prev, topic, data in rows:
            assert prev == chain.get(topic, 0)
            chain[topic] = seq
            told[data.split(b'"pipeline":"')[1].split(b'"')[0].decode()] = seq
        assert heads == chain
        assert told.keys() == keys, "a key, its effect and its event are there all or none"
        kept = {number: told[number] for number in self.stored.keys() & told.keys()}
        assert kept.items() <= self.stored.items(), "a number that was told is that of the same event for ever"
        return self.stored.keys() - keys


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A disk for one database."""
    (tmp_path / "data").mkdir()
    return Disk(tmp_path / "data" / "flx.db", tmp_path / "disk")


made = pytest.mark.parametrize("where", ["thread", "loop", "moving"])
"""Whether changes are made by the journal's thread or on the loop (`daemon/journal/turns.py`); `moving`: there, and the
log is moved into the file at every opportunity (`daemon/journal/pace.py`)."""


@made
def test_what_was_acknowledged_before_a_loss_of_power_is_there_afterwards(disk: Disk, where: str) -> None:
    dice = Random(20261129)
    story = Story(disk, where=where)
    for number in range(ROUNDS):
        # The first ones die while the database is made; later ones also in a checkpoint (every thousand pages).
        story.round(dice.randrange(1, 60 if number < 8 else 4000))
        disk.cut_power(dice)
        assert story.lost() == set(), f"round {number}"
    assert len(story.stored) > 1000
    assert story.refused == set()


@made
def test_fsyncs_that_fail_lose_nothing_either(disk: Disk, where: str) -> None:
    """What could not be stored is told; what a failed fsync left half-way never comes between what could."""
    dice = Random(11)
    story = Story(disk, where=where)
    story.round(dice.randrange(500, 1500))
    for number in range(8):
        before = len(story.refused)
        disk.fail_fsync(errno.EIO, 0)
        with story.start() as child:
            assert child.stdout is not None
            for count, line in enumerate(child.stdout):
                if line.endswith(b"\n"):
                    story.hear(line)
                if count % 200 == 100:
                    disk.fail_fsync(errno.EIO, dice.randrange(1, 4))
                if count == 1500:
                    disk.die_after(dice.randrange(1, 200))
        disk.cut_power(dice)
        assert len(story.refused) > before
        assert story.lost() == set(), f"round {number}"


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
def test_a_database_that_does_not_wait_for_the_disk_is_found_out(disk: Disk, synchronous: str) -> None:
    """The judge judged: with less than FULL the same story loses what it acknowledged, or the database itself."""
    dice = Random(3)
    story = Story(disk, synchronous)
    for _ in range(ROUNDS):
        story.round(dice.randrange(300, 2000))
        disk.cut_power(dice)
        try:
            if story.lost():
                return
        except (sqlite3.DatabaseError, AssertionError):
            return
    pytest.fail("nothing was lost")


def test_64_clients_share_their_fsyncs(disk: Disk) -> None:
    """A commit takes whatever waits: at 5 ms for each fsync there is at most one for ten commands."""
    disk.slow(5_000)
    story = Story(disk)
    with story.start(workers=64) as child:
        assert child.stdout is not None
        opened = child.stdout.readline()
        story.hear(opened)
        before = disk.fsyncs
        for line in child.stdout:
            story.hear(line)
            if len(story.stored) == 3000:
                break
        spent = disk.fsyncs - before
        child.kill()
        child.communicate()
    assert spent <= 300, f"{spent} fsyncs for 3000 commands"


def test_a_journal_opens_after_the_power_came_back(disk: Disk) -> None:
    """And goes on counting where it was."""
    story = Story(disk)
    story.round(800)
    disk.cut_power(Random(1))

    async def reopen() -> None:
        journal = await Journal.open(f"sqlite:///{disk.database}", "project", lambda: 1)
        try:
            assert journal.epoch == story.epoch
            assert journal.seq >= max(story.stored.values())
            with journal.read() as connection:
                assert connection.execute(idempotency.select()).first() is not None
        finally:
            await journal.close()

    asyncio.run(reopen())
