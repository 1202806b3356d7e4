"""What table counts mean, and the counting scripts' protocol, without a database."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flx_api.daemon.destinations import databases
from flx_api.daemon.destinations.naming import NotCountable

if TYPE_CHECKING:
    from collections.abc import Callable

FAR = float("inf")
DUCKDB = {"path": "w.duckdb", "default_target_schema": "raw"}


def seen(records: int, *, keys: tuple[str, ...] = (), distinct: int | None = None, versions: int = 0) -> dict[str, Any]:
    """What the producer piped of a stream."""
    return {"records": records, "key_properties": list(keys), "distinct_keys": distinct, "activate_versions": versions}


class Script:
    """Stands in for the counting script: one answer per call, jobs kept."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.jobs = list(answers), []  # type: tuple[list[dict[str, Any]], list[dict[str, Any]]]

    def __call__(
        self, _python: str, _script: str, job: dict[str, Any], _deadline: float, _setup: Callable[[], None] | None
    ) -> dict[str, Any]:
        self.jobs.append(job)
        return self.answers.pop(0)


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A loader's executable beside an interpreter; the test's folder is the project."""
    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "w.duckdb").touch()
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "target")


@pytest.mark.parametrize(
    ("piped", "before", "after", "present", "expected"),
    [
        (seen(5), {"raw.s": 2}, {"raw.s": 7}, None, ("rows", 5, 5, None)),
        (seen(5), {}, {"raw.s": 4}, None, ("rows", 4, 5, None)),
        (seen(5, keys=("Id",), distinct=4), {"raw.s": 9}, {"raw.s": 9}, 4, ("keys", 4, 4, None)),
        (seen(5, keys=("Id",), distinct=4), {"raw.s": 9}, {"raw.s": 9}, 3, ("keys", 3, 4, None)),
        # Too many keys to keep: a row per record proves it, anything else proves nothing.
        (seen(5, keys=("Id",)), {"raw.s": 0}, {"raw.s": 5}, None, ("rows", 5, 5, None)),
        (
            seen(5, keys=("Id",)),
            {"raw.s": 3},
            {"raw.s": 5},
            None,
            ("keys", None, None, "the keys are too many, or could not be looked up"),
        ),
        (
            seen(5),
            {"raw.s": None},
            {"raw.s": 5},
            None,
            ("rows", None, None, "the table was not counted before the run"),
        ),
        (
            seen(5),
            {},
            {},
            None,
            (None, None, None, "the destination has no table for the stream, or it could not be counted"),
        ),
        (seen(0), {}, {}, None, ("rows", 0, 0, None)),
        (seen(0), {"raw.s": 5}, {"raw.s": 6}, None, ("rows", 0, 0, None)),
    ],
)
def test_comparisons(
    venv: str, monkeypatch: pytest.MonkeyPatch, piped: Any, before: Any, after: Any, present: Any, expected: Any
) -> None:
    """Rows for appends, keys for upserts, a reason for what cannot be said."""
    script = Script(
        {"tables": before, "found": {}}, {"tables": after, "found": {} if present is None else {"s": present}}
    )
    monkeypatch.setattr(databases, "run_script", script)
    counter = databases.DuckdbCounter(DUCKDB, "c.json", venv, None)
    assert before == counter.before(FAR)
    found = counter.after({"s": piped}, "k.keys", FAR)["s"]
    assert expected == (found["mode"], found["found"], found["expected"], found["reason"])
    assert script.jobs[0]["schemas"] == ["raw"]
    assert script.jobs[1]["tables"] == [("raw", "s")]
    wanted = [{"stream": "s", "table": ("raw", "s"), "columns": ["id"]}]
    assert script.jobs[1]["lookups"] == (wanted if piped["distinct_keys"] is not None else [])


def test_a_database_that_does_not_exist_has_no_rows(venv: str) -> None:
    """No script is started for it."""
    counter = databases.DuckdbCounter({**DUCKDB, "path": "new.duckdb"}, "c.json", venv, None)
    assert counter.before(FAR) == {}


def test_a_stream_without_a_table_is_its_own_trouble(venv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are counted all the same."""
    config = {"path": "w.duckdb", "schema_mapping": {"p": {"target_schema": "x"}}}
    monkeypatch.setattr(databases, "run_script", Script({"tables": {"x.s": 1}, "found": {}}))
    found = databases.DuckdbCounter(config, "c.json", venv, None).after({"p-s": seen(1), "q": seen(1)}, None, FAR)
    assert found["p-s"]["found"] == 1
    assert found["q"]["reason"] == "the loader has no target schema for the stream"


@pytest.mark.parametrize("keys", [(), ("id",)])
def test_streams_that_share_a_table_prove_nothing(
    venv: str, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...]
) -> None:
    """Each finds all of its keys where one has written over the other's rows; one without rows is in nobody's way."""
    both = {"p-users": seen(10, keys=keys, distinct=10), "q-Users": seen(10, keys=keys, distinct=10)}
    piped = {**both, "r-users": seen(0), "other": seen(1)}
    answer = {"tables": {"raw.users": 10, "raw.other": 1}, "found": {"p-users": 10, "q-Users": 10}}
    monkeypatch.setattr(databases, "run_script", Script(answer))
    found = databases.DuckdbCounter(DUCKDB, "c.json", venv, None).after(piped, "k.keys", FAR)
    assert [found[stream]["found"] for stream in piped] == [None, None, 0, 1]
    assert {found[stream]["reason"] for stream in both} == {"several streams go to the stream's table"}


@pytest.mark.parametrize(
    ("config", "piped", "mode"),
    [
        ({}, seen(1), "rows"),
        ({}, seen(1, keys=("id",)), "keys"),
        ({"hard_delete": True}, seen(1, versions=2), "replaced"),
        ({"hard_delete": True}, seen(1), "rows"),
        ({"hard_delete": True, "activate_version": False}, seen(1, versions=2), "rows"),
        ({}, seen(1, versions=2), "rows"),
    ],
)
def test_postgres_modes(venv: str, config: Any, piped: Any, mode: str) -> None:
    """Versions with hard_delete leave only the new rows."""
    assert databases.PostgresCounter(config, "c.json", venv, None).mode_of(piped) == mode


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (databases.DuckdbCounter, {**DUCKDB, "hard_delete": True}),
        (databases.DuckdbCounter, {**DUCKDB, "stream_maps": {"s": None}}),
        (databases.PostgresCounter, {"ssh_tunnel": {"enable": True}}),
        (databases.PostgresCounter, {"load_method": "overwrite"}),
    ],
)
def test_settings_that_are_not_understood(venv: str, kind: Any, config: Any) -> None:
    """Better no count than a wrong one."""
    with pytest.raises(NotCountable):
        kind(config, "c.json", venv, None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import time; time.sleep(60)", "counting took too long"),
        ("raise SystemExit(1)", "the counting script gave no answer"),
        ("print('[]')", "the answer is not understood"),
        ("""print('{"error": "the database could not be counted (X)"}')""", "the database could not be counted (X)"),
    ],
)
def test_a_script_that_fails_is_a_reason(tmp_path: Path, body: str, reason: str) -> None:
    """Slow, dead, talking nonsense or reporting: the run goes on."""
    path = tmp_path / "count.py"
    path.write_text(body)
    with pytest.raises(NotCountable) as raised:
        databases.run_script(sys.executable, str(path), {}, time.monotonic() + 0.5, None)
    assert str(raised.value) == reason


@pytest.mark.parametrize("script", ["count_duckdb.py", "count_postgres.py"])
def test_scripts_answer_by_class_name(tmp_path: Path, script: str) -> None:
    """Without a driver or with a broken config the answer names a class and repeats nothing."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"password": "secret", "host": "\x00"}))
    job: dict[str, object] = {"config_path": str(config), "path": str(tmp_path / "none.duckdb"), "schemas": ["x"]}
    with pytest.raises(NotCountable, match=r"^the database could not be counted \(\w+\)$"):
        databases.run_script(sys.executable, script, job, time.monotonic() + 30, None)
    assert Path(databases.__file__).with_name(script).exists()
