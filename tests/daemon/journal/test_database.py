"""The shape of the database: made at once, or step by step by migrations; both are the same."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.contracts.journal_homes import shape_of

from flx_api.daemon.journal.database import HEAD, alembic_config, bring_to_head
from flx_api.daemon.journal.sqlite import engine_of
from flx_api.daemon.journal.tables import metadata
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path


def shape(path: Path) -> dict[str, object]:
    with engine_of(f"sqlite:///{path}", read_only=True).connect() as connection:
        return shape_of(connection)


def open_at_head(path: Path) -> None:
    with engine_of(f"sqlite:///{path}", read_only=False).connect() as connection:
        bring_to_head(connection)


def test_head_is_the_newest_migration() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD


def test_migrations_and_metadata_make_the_same_shape(tmp_path: Path) -> None:
    from alembic import command

    open_at_head(tmp_path / "new.db")
    with engine_of(f"sqlite:///{tmp_path / 'old.db'}", read_only=False).connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        with connection.begin():
            command.upgrade(config, "head")
    assert shape(tmp_path / "old.db") == shape(tmp_path / "new.db")
    assert set(metadata.tables) <= set(shape(tmp_path / "new.db"))
    open_at_head(tmp_path / "old.db")


def test_a_database_of_an_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    from alembic import command

    open_at_head(tmp_path / "new.db")
    with engine_of(f"sqlite:///{tmp_path / 'old.db'}", read_only=False).connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        with connection.begin():
            command.upgrade(config, "0001")
    assert shape(tmp_path / "old.db") != shape(tmp_path / "new.db")
    open_at_head(tmp_path / "old.db")
    assert shape(tmp_path / "old.db") == shape(tmp_path / "new.db")


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with engine_of(f"sqlite:///{tmp_path / 'x.db'}", read_only=False).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE other (id INTEGER)")
        connection.commit()
    with pytest.raises(StartupError, match="FLX_DATABASE_URL"):
        open_at_head(tmp_path / "x.db")


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    open_at_head(path)
    with engine_of(f"sqlite:///{path}", read_only=False).connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num='9999'")
        connection.commit()
    before = shape(path)
    with pytest.raises(StartupError, match="newer"):
        open_at_head(path)
    assert shape(path) == before


def test_the_usual_start_does_not_import_alembic(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from flx_api.daemon.journal import Journal\n"
        "async def main():\n"
        "    for _ in range(2):\n"
        f"        await (await Journal.open('sqlite:///{tmp_path}/x.db', 'p', lambda: 1)).close()\n"
        "asyncio.run(main())\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_driver_that_is_not_there_is_named_when_it_is_needed() -> None:
    code = (
        "import sys\n"
        "sys.modules['psycopg'] = None\n"
        "from flx_api.daemon.journal.database import database_of\n"
        "from flx_api.errors import StartupError\n"
        "database_of('sqlite:///x.db', busy_timeout_ms=1)\n"
        "try:\n"
        "    database_of('postgresql://secret@host/x', busy_timeout_ms=1)\n"
        "except StartupError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told == "FLX_DATABASE_URL: PostgreSQL needs its driver: pip install 'flx-api[postgresql]'\n"
