"""What the journal does when its file is put back, or cannot be written."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.contracts.journal_homes import Home, add_user, emit, names, opened

from flx_api.errors import FlxError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from flx_api.daemon.journal import Tx


def at(folder: Path) -> Home:
    return Home(lambda: f"sqlite:///{folder}/flx.db")


def test_a_database_that_was_put_back_is_another_history(tmp_path: Path) -> None:
    """Its numbers are given again, for other events: nobody may take them for what was there before."""

    async def story() -> None:
        async with opened(at(tmp_path)) as journal:
            epoch = journal.epoch
            await journal.write(emit())
            with (
                closing(sqlite3.connect(tmp_path / "flx.db")) as here,
                closing(sqlite3.connect(tmp_path / "b")) as there,
            ):
                here.backup(there)
            await journal.write(emit())
        (tmp_path / "b").replace(tmp_path / "flx.db")
        async with opened(at(tmp_path)) as journal:
            assert journal.seq == 1
            assert journal.epoch != epoch
            epoch = journal.epoch
            assert await journal.write(emit()) == 2
        async with opened(at(tmp_path)) as journal:
            assert (journal.epoch, journal.seq) == (epoch, 2)
        (tmp_path / "flx.db-mark").unlink()
        async with opened(at(tmp_path)) as journal:
            assert journal.epoch != epoch, "one that comes without its mark may have been anywhere"

    asyncio.run(story())


def test_a_full_disk_is_507_reads_go_on_and_space_heals_it(tmp_path: Path) -> None:
    def limit_pages(tx: Tx, pages: int) -> None:
        tx.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def big(tx: Tx) -> None:
        tx.connection.exec_driver_sql(
            "INSERT INTO users VALUES ('project', 'big', 't', ?, x'5b5d', 0, 0)", ("x" * 1_000_000,)
        )

    async def story() -> None:
        async with opened(at(tmp_path)) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            await journal.write(lambda tx: limit_pages(tx, 1))  # SQLite raises it to the present size
            with pytest.raises(FlxError) as refused:
                await journal.write(big)
            assert refused.value.code == "insufficient_storage"
            assert names(journal) == ["a"]
            # The limit was the connection's; a fault of the whole group gave it a new one.
            await journal.write(lambda tx: limit_pages(tx, 1_000_000))
            await journal.write(big)
            assert names(journal) == ["a", "big"]
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_a_read_only_database_is_503_until_it_can_be_written_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(at(tmp_path)) as journal:
            await journal.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA query_only=ON"))
            with pytest.raises(Unavailable) as refused:
                await journal.write(emit())
            assert refused.value.code == "storage_unavailable"
            assert journal.fault is not None
            assert await journal.write(emit()) == 1
            assert journal.fault is None

    asyncio.run(story())


def test_a_lock_of_another_process_is_503_and_its_end_heals_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(at(tmp_path), busy_timeout_ms=10) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            with closing(sqlite3.connect(tmp_path / "flx.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(Unavailable) as refused:
                    await journal.write(emit())
                assert refused.value.code == "storage_unavailable"
                assert names(journal) == ["a"]
            assert await journal.write(emit()) == 1

    asyncio.run(story())
