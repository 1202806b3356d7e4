"""What the journal does about a server: one daemon, lost lines, crashes, silence, conflicts, another history."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text, update
from tests.contracts.journal_homes import EVENT, Home, add_execution, add_user, emit, names, opened, shape_of

from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.journal.database import alembic_config, bring_to_head
from flx_api.daemon.journal.postgresql import Postgresql
from flx_api.daemon.journal.tables import executions
from flx_api.errors import FlxError, InvalidRequest, StartupError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.postgres_server import PostgresServer

    from flx_api.daemon.journal import Journal, Tx

HEALED_S = 5


@pytest.fixture
def home(postgres: PostgresServer) -> Home:
    """A database of its own."""
    return Home(postgres.database)


def raises(sqlstate: str) -> Callable[[Tx], None]:
    """A change in which the server raises an error of this kind."""
    block = f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{sqlstate}'; END $$"
    return lambda tx: tx.connection.execute(text(block)).close()


async def healed(journal: Journal, name: str) -> None:
    """Return when reads and writes work again, which they must soon."""
    async with asyncio.timeout(HEALED_S):
        while True:
            try:
                await journal.write(lambda tx: add_user(tx, name))
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        while True:
            try:
                assert name in names(journal)
                break
            except Unavailable:
                await asyncio.sleep(0.05)


def ails(journal: Journal) -> bool:
    return journal.fault is not None


def end_sessions(postgres: PostgresServer, home: Home) -> None:
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database()",
        home.url,
    )


def test_of_two_daemons_one_waits_and_makes_nothing_twice(home: Home) -> None:
    """The tables are made once; who waits goes on when the other one ends."""

    async def story() -> None:
        first = asyncio.create_task(_open_and_close(home))
        second = asyncio.create_task(_open_and_close(home))
        epochs = {await first, await second}
        assert len(epochs) == 1

    asyncio.run(story())


async def _open_and_close(home: Home) -> str:
    async with opened(home) as journal:
        await journal.write(emit())
        return journal.epoch


def test_what_is_no_url_is_said() -> None:
    with pytest.raises(StartupError, match="FLX_DATABASE_URL: is no URL") as told:
        Postgresql("postgresql://user:secret@host:port/x", busy_timeout_ms=1)
    assert "secret" not in str(told.value)


def test_a_second_daemon_is_refused(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            with pytest.raises(StartupError, match="FLX_DATABASE_URL: another daemon"):
                await _open_and_close(home)
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_two_schemas_are_two_databases(home: Home, postgres: PostgresServer) -> None:
    homes = []
    for schema in ("one", "two"):
        postgres.execute(f"CREATE SCHEMA {schema}", home.url)
        url = f"{home.url}&options=-csearch_path%3D{schema}"
        homes.append(Home(partial(str, url)))

    async def story() -> None:
        async with opened(homes[0]) as one, opened(homes[1]) as two:
            assert [await one.write(emit()), await two.write(emit()), await one.write(emit())] == [1, 1, 2]

    asyncio.run(story())


def test_a_lost_line_is_503_and_heals(home: Home, postgres: PostgresServer) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            end_sessions(postgres, home)
            with pytest.raises(Unavailable) as refused:
                await journal.write(emit())
            assert refused.value.code == "storage_unavailable"
            with pytest.raises(Unavailable):
                names(journal)
            assert ails(journal)
            await healed(journal, "b")
            assert not ails(journal)
            assert names(journal) == ["a", "b"]
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_a_server_that_crashes_keeps_what_was_acknowledged(home: Home, postgres: PostgresServer) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            acknowledged: list[int] = []
            enough = asyncio.Event()

            async def client() -> None:
                with contextlib.suppress(Unavailable):
                    while True:
                        acknowledged.append(await journal.write(emit()))
                        if len(acknowledged) > 50:
                            enough.set()

            clients = [asyncio.create_task(client()) for _ in range(8)]
            await enough.wait()
            await asyncio.to_thread(postgres.crash)
            await asyncio.gather(*clients)
            with pytest.raises(Unavailable):
                await journal.write(emit())
            await asyncio.to_thread(postgres.start)
            await healed(journal, "b")
            rows = journal.events_after(0, 100_000)
            assert set(acknowledged) <= {row.seq for row in rows}
            assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
            assert await journal.write(emit()) == len(rows) + 1

    asyncio.run(story())


def test_a_transaction_that_the_server_has_forgotten_was_not_committed(home: Home) -> None:
    """After a crash, numbers that were given last are unknown again; and so is what they stood for."""
    database = Postgresql(home.url, busy_timeout_ms=2000)
    connection = database.connect_writer()
    try:
        found = []
        for end in (connection.commit, connection.rollback):
            transaction = database.transaction(connection)
            assert transaction is not None
            end()
            found.append(database.has_committed(connection, transaction))
        assert [True, False, False] == [*found, database.has_committed(connection, "999999999999")]
        assert 1 == connection.execute(text("SELECT 1")).scalar()
    finally:
        connection.close()


def test_what_must_be_read_is_read_when_the_server_is_back(home: Home, postgres: PostgresServer) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            end_sessions(postgres, home)
            assert await journal.read_back(lambda connection: connection.execute(text("SELECT 7")).scalar()) == 7

    asyncio.run(story())


def test_a_silent_server_holds_nobody_up_for_long(home: Home, postgres: PostgresServer) -> None:
    """The loop waits about a second once; then reads are refused at once."""

    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            with postgres.frozen():
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    names(journal)
                assert time.monotonic() - began < 2
                for _ in range(100):
                    with pytest.raises(Unavailable):
                        names(journal)
                assert time.monotonic() - began < 3
            await healed(journal, "b")

    asyncio.run(story())


def test_a_read_that_lasts_too_long_is_given_up(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            with pytest.raises(Unavailable), journal.read() as connection:
                connection.execute(text("SELECT pg_sleep(60)"))
            assert names(journal) == []

    asyncio.run(story())


def test_a_lock_of_somebody_else_is_503_and_its_end_heals_it(home: Home, postgres: PostgresServer) -> None:
    async def story() -> None:
        async with opened(home, busy_timeout_ms=50) as journal:
            with contextlib.closing(postgres.connect(home.url)) as other:
                other.execute("BEGIN")
                other.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(Unavailable) as refused:
                    await journal.write(emit())
                assert refused.value.code == "storage_unavailable"
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_conflicts_are_repeated_three_times(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            for failing, expected in ((3, 4), (9, 4)):
                runs = 0

                def change(tx: Tx, failing: int = failing) -> int:
                    nonlocal runs
                    runs += 1
                    if runs <= failing:
                        raises("40001")(tx)
                    return tx.emit("t", EVENT, tenant=DEFAULT_TENANT)

                if failing == 3:
                    assert await journal.write(change) == 1
                else:
                    with pytest.raises(Unavailable):
                        await journal.write(change)
                assert runs == expected
            assert await journal.write(emit()) == 2

    asyncio.run(story())


def test_a_deadlock_is_repeated(home: Home, postgres: PostgresServer) -> None:
    touch = "UPDATE users SET disabled = NOT disabled WHERE username = '{}'"

    async def story() -> None:
        async with opened(home, busy_timeout_ms=10_000) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            await journal.write(lambda tx: add_user(tx, "b"))
            runs = 0
            waits, over = threading.Event(), threading.Event()

            def change(tx: Tx) -> None:
                nonlocal runs
                runs += 1
                if runs > 1:
                    # Else it might be before the other one again.
                    over.wait()
                tx.connection.execute(text(touch.format("b")))
                waits.set()
                tx.connection.execute(text(touch.format("a")))

            with contextlib.closing(postgres.connect(home.url)) as other:
                # The server finds a deadlock for who has waited this long: us first.
                other.execute("SET deadlock_timeout = '60s'")
                other.execute("BEGIN")
                other.execute(touch.format("a").encode())
                writing = asyncio.ensure_future(journal.write(change))
                await asyncio.to_thread(waits.wait)
                await asyncio.to_thread(other.execute, touch.format("b").encode())
                other.execute("COMMIT")
                over.set()
                await writing
            assert runs == 2

    asyncio.run(story())


@pytest.mark.parametrize(
    ("sqlstate", "code"), [("53100", "insufficient_storage"), ("25006", "storage_unavailable"), ("57P03", None)]
)
def test_faults_of_the_server_are_told(home: Home, sqlstate: str, code: str | None) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            with pytest.raises(FlxError) as refused:
                await journal.write(raises(sqlstate))
            assert refused.value.code == (code or "storage_unavailable")
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_a_text_that_it_cannot_keep_is_the_callers_fault(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            with pytest.raises(InvalidRequest):
                await journal.write(lambda tx: add_user(tx, "a\0b"))
            with pytest.raises(InvalidRequest):
                await journal.write(lambda tx: add_user(tx, secrets.token_hex(8192)))
            await journal.write(lambda tx: add_user(tx, "x" * 1000))
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_words_of_a_run_are_kept_whatever_they_hold(home: Home) -> None:
    def change(tx: Tx) -> None:
        add_execution(tx, "e", finished_us=None)
        tx.connection.execute(update(executions).values(error="a\0b"))

    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(change)
            with journal.read() as connection:
                assert connection.execute(select(executions.c.error)).scalar() == "a\ufffdb"

    asyncio.run(story())


def test_a_commit_is_on_the_disk_whatever_the_database_is_set_to(home: Home, postgres: PostgresServer) -> None:
    postgres.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$",
        home.url,
    )

    async def story() -> None:
        async with opened(home) as journal:
            assert (
                await journal.write(lambda tx: tx.connection.execute(text("SHOW synchronous_commit")).scalar()) == "on"
            )

    asyncio.run(story())


def test_a_copy_is_another_history(home: Home, postgres: PostgresServer) -> None:
    """As is what comes out of a backup, or a server that took over from another."""

    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(emit())
            epoch = journal.epoch
        async with opened(home) as journal:
            assert journal.epoch == epoch
        name = home.url.partition("?")[0].rpartition("/")[2]
        postgres.execute(f"CREATE DATABASE copy_of_{name} TEMPLATE {name}")
        copy = Home(lambda: home.url.replace(f"/{name}?", f"/copy_of_{name}?"))
        async with opened(copy) as journal:
            assert journal.epoch != epoch
            assert journal.seq == 1

    asyncio.run(story())


def test_migrations_and_metadata_make_the_same_shape(home: Home) -> None:
    from alembic import command

    def shape(database: Postgresql) -> dict[str, object]:
        with contextlib.closing(database.connect_reader()) as connection:
            return shape_of(connection)

    new, old = (Postgresql(one.url, busy_timeout_ms=2000) for one in (home, home.another()))
    with contextlib.closing(new.connect_writer()) as connection:
        bring_to_head(connection)
    with contextlib.closing(old.connect_writer()) as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        with connection.begin():
            command.upgrade(config, "0001")
    assert shape(old) != shape(new)
    with contextlib.closing(old.connect_writer()) as connection:
        bring_to_head(connection)
    assert shape(old) == shape(new)


class Line:
    """A line to the server that can break around a commit: before it arrives, or before it is answered."""

    def __init__(self, server: Path, folder: Path) -> None:
        self._breaks: str | None = None
        self._is_down = False
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / server.name))
        self._listener.listen()
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def break_at_commit(self, how: str) -> None:
        self._breaks = how

    def stay_down(self) -> None:
        """Once broken."""
        self._is_down = True

    def mend(self) -> None:
        self._is_down = False

    def has_broken(self) -> bool:
        return self._breaks is None

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _begin(self, target: Callable[..., None], *words: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=words))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                self._sockets += [near, far]
                if self._is_down and self._breaks is None:
                    near.shutdown(socket.SHUT_RDWR)
                    continue
                far.connect(str(self._server))
                self._begin(self._carry, near, far, True)
                self._begin(self._carry, far, near, False)

    def _carry(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and b"COMMIT" in data and self._breaks is not None:
                    how, self._breaks = self._breaks, None
                    if how == "before it is answered":
                        # The other direction finds nobody to tell.
                        source.shutdown(socket.SHUT_RDWR)
                        target.sendall(data)
                    break
                target.sendall(data)
        # What is on its way to the server arrives; nothing comes back.
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(home: Home) -> Iterator[Line]:
    """A line to the database of `home`."""
    server = Path(home.url.partition("host=")[2])
    folder = Path(tempfile.mkdtemp(prefix="flxln"))
    made = Line(server / ".s.PGSQL.5432", folder)
    home.url = home.url.replace(str(server), str(folder))
    yield made
    made.close()
    shutil.rmtree(folder)


def test_a_commit_whose_answer_was_lost_is_asked_for(home: Home, line: Line) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            assert await journal.write(emit()) == 1
            line.break_at_commit("before it is answered")
            assert await journal.write(emit()) == 2
            assert line.has_broken()
            assert await journal.write(emit()) == 3
            assert [row.seq for row in journal.events_after(0, 9)] == [1, 2, 3]

    asyncio.run(story())


def test_a_commit_that_nobody_could_ask_for_is_found_later(home: Home, line: Line) -> None:
    """Refused as far as anybody knew; what follows comes after it, and who follows events hears of both."""

    async def story() -> None:
        async with opened(home) as journal:
            assert await journal.write(emit()) == 1
            line.break_at_commit("before it is answered")
            line.stay_down()
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await journal.write(emit())
            line.mend()
            assert await journal.write(emit()) == 3
            assert [row.prev for row in journal.events_after(0, 9)] == [0, 1, 2]
            assert await journal.changed(1) == 3

    asyncio.run(story())


def test_what_became_of_a_commit_is_asked_for_although_nobody_writes(home: Home, line: Line) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            assert await journal.write(emit()) == 1
            told = asyncio.Event()
            journal.on_found(told.set)
            line.break_at_commit("before it is answered")
            line.stay_down()
            with pytest.raises(Unavailable):
                await journal.write(emit())
            assert not told.is_set()
            line.mend()
            async with asyncio.timeout(20):
                await told.wait()
            assert journal.seq == 2
            told.clear()
            assert await journal.write(emit()) == 3
            assert journal.fault is None
            assert not told.is_set()

    asyncio.run(story())


def test_a_commit_that_never_arrived_is_refused(home: Home, line: Line) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            assert await journal.write(emit()) == 1
            line.break_at_commit("before it arrives")
            with pytest.raises(Unavailable):
                await journal.write(emit("other"))
            assert line.has_broken()
            assert await journal.write(emit()) == 2
            assert [row.topic for row in journal.events_after(0, 9)] == ["t", "t"]

    asyncio.run(story())


def test_who_lost_the_database_to_another_daemon_writes_no_more(home: Home, postgres: PostgresServer) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(emit())
            end_sessions(postgres, home)
            async with opened(home) as other:
                assert await other.write(emit("other")) == 2
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await journal.write(emit())

    asyncio.run(story())
