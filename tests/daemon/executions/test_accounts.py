"""What is remembered of a run for the next one, and what Meltano knew before."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from flx_api.daemon.executions.accounts import Accounts, States
from flx_api.daemon.executions.meltano_state import read_states
from flx_api.daemon.executions.store import Plan
from flx_api.daemon.project.blocks import CommandBlock, SingerBlock

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import RowMapping

STATE_ID = "dev:tap-to-target"
NO_STATES: States = {}
PLAN = Plan(
    (("tap", "target"), ("tool:work",)), (SingerBlock("tap", (), "target", STATE_ID), CommandBlock("tool", "work"))
)


def meter(folder: Path, **streams: int) -> Path:
    folder.mkdir(exist_ok=True)
    seen = {name: {"records": records, "schema": True} for name, records in streams.items()}
    lines: list[dict[str, Any]] = [
        {"kind": "start", "role": "extractor", "plugin": "tap", "ts_us": 1, "pid": 1},
        {"kind": "end", "ts_us": 9, "exit_code": 0, "cpu_s": 1, "max_rss_kib": 1, "snapshot": {"streams": seen}},
    ]
    (folder / "000-extractor-tap.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows_of(*rows: dict[str, Any]) -> list[RowMapping]:
    return [cast("RowMapping", row) for row in rows]


def close(folder: Path, rows: list[RowMapping], *, full: bool, states: States | None = NO_STATES) -> Any:
    accounts = Accounts.of(PLAN, full_refresh=full, rows=rows, states=states)
    return accounts.close(folder, 0, "e", 5)


def test_a_first_run_is_remembered_with_its_streams_and_the_state_id_itself(tmp_path: Path) -> None:
    account = close(meter(tmp_path / "m", a=3, b=0), [], full=False)
    assert {(row["stream"], row["records"]) for row in account.remember} == {("", 0), ("a", 3), ("b", 0)}
    assert {row["state_id"] for row in account.remember} == {STATE_ID}
    assert [warning.code for warning in account.ledger.warnings] == ["no_rows"]


def test_an_incremental_run_changes_no_count_and_an_empty_one_is_in_order(tmp_path: Path) -> None:
    first = close(meter(tmp_path / "m", a=3), [], full=False)
    second = close(meter(tmp_path / "m", a=0), rows_of(*first.remember), full=False)
    assert [row["stream"] for row in second.remember] == [""]
    assert second.ledger.warnings == ()


def test_a_state_that_meltano_has_makes_it_no_first_run(tmp_path: Path) -> None:
    account = close(meter(tmp_path / "m", a=0), [], full=False, states={STATE_ID: {"bookmarks": {}}})
    assert account.ledger.warnings == ()


def test_with_states_unknown_no_run_is_a_first_one(tmp_path: Path) -> None:
    account = close(meter(tmp_path / "m", a=0), [], full=False, states=None)
    assert account.ledger.warnings == ()
    assert [stream.state_moved for stream in account.ledger.blocks[0].streams] == [None]
    known = close(meter(tmp_path / "m", a=0), [], full=False)
    assert [stream.state_moved for stream in known.ledger.blocks[0].streams] == [False]


def test_states_are_read_from_meltanos_own_table(tmp_path: Path) -> None:
    # A name that means something in a URI.
    path = str(tmp_path / "100%23#?.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE state (state_id TEXT, partial_state TEXT, completed_state TEXT)")
        rows = [
            ("one", "{}", '{"singer_state": {"bookmarks": {"a": 1}}}'),
            ("two", "{}", None),
            ("other", "{}", '{"singer_state": {}}'),
        ]
        connection.executemany("INSERT INTO state VALUES (?, ?, ?)", rows)
    assert read_states(path, ("one", "two", "four")) == {"one": {"bookmarks": {"a": 1}}}
    assert read_states(path, ()) == {}


def test_what_cannot_be_read_is_unknown_and_what_does_not_exist_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "meltano.db"
    assert read_states(str(path), ("one",)) == {}
    path.touch()
    assert read_states(str(path), ("one",)) == {}  # no table
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE state (state_id TEXT, completed_state TEXT)")
        connection.execute("INSERT INTO state VALUES ('one', 'no json'), ('two', '[]')")
    assert read_states(str(path), ("three",)) == {}
    assert read_states(str(path), ("one",)) is None
    assert read_states(str(path), ("two",)) is None
    path.write_bytes(b"no database" * 100)
    assert read_states(str(path), ("one",)) is None
    assert read_states(str(path / "below"), ("one",)) == {}
    assert read_states(None, ("one",)) is None
