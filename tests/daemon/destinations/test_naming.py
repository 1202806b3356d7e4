"""Where each loader puts a stream, after its own rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flx_api.daemon.destinations import naming
from flx_api.daemon.destinations.naming import NotCountable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("config", "stream", "table"),
    [
        ({"default_target_schema": "raw"}, "Planes", ("raw", "planes")),
        ({"default_target_schema": " raw "}, "a.b", ("raw", "a_b")),
        ({"default_target_schema": "raw"}, "public-Users", ("raw", "users")),
        ({"default_target_schema": "raw"}, "db-public-my-users", ("raw", "my_users")),
        ({"schema_mapping": {"public": {"target_schema": "x"}}}, "public-users", ("x", "users")),
        ({"schema_mapping": {"p": {"target_schema": "x"}}, "default_target_schema": "raw"}, "users", ("raw", "users")),
    ],
)
def test_duckdb_tables(config: Any, stream: str, table: tuple[str, str]) -> None:
    """Lower case, dots and dashes out, mapped schemas."""
    assert table == naming.duckdb_table(config, stream)


def test_duckdb_schemas_and_path() -> None:
    """All schemas once; only a plain local file is counted."""
    config = {"default_target_schema": "raw", "schema_mapping": {"p": {"target_schema": "x"}}}
    assert naming.duckdb_schemas(config) == ["raw", "x"]
    assert naming.duckdb_path({"filepath": "out/w.duckdb", "database": "w"}) == "out/w.duckdb"
    for refused in (
        {"path": "md:x"},
        {"path": ":memory:"},
        {},
        {"path": "w.db", "token": "t"},
        {"path": "w.db", "dbname": "o"},
    ):
        with pytest.raises(NotCountable):
            naming.duckdb_path(refused)
    with pytest.raises(NotCountable):
        naming.duckdb_table({}, "users")


@pytest.mark.parametrize(
    ("config", "stream", "table"),
    [
        ({}, "Planes", ("melty", "Planes")),
        ({"default_target_schema": "Raw"}, "public-users", ("Raw", "users")),
        ({"default_target_schema": None}, "public-users", ("public", "users")),
        ({"default_target_schema": None}, "db-public-users", ("public", "users")),
        ({"default_target_schema": None}, "a-b-c-d", (None, "d")),
        ({"default_target_schema": ""}, "users", (None, "users")),
        ({}, "x" * 70, ("melty", "x" * 63)),
    ],
)
def test_postgres_tables(config: Any, stream: str, table: tuple[str | None, str]) -> None:
    """Case is kept, the last part is the table, long names are cut."""
    assert table == naming.postgres_table(config, stream)


@pytest.mark.parametrize(
    ("config", "folder", "name", "matches"),
    [
        ({"destination_path": "out", "do_timestamp_file": False}, "out", "s.jsonl", True),
        ({"destination_path": "out", "do_timestamp_file": False}, "out", "s-20260101T000000.jsonl", False),
        ({"destination_path": "out"}, "out", "s-20260101T000000.jsonl", True),
        ({"destination_path": "out"}, "out", "s.jsonl", False),
        ({"do_timestamp_file": False}, ".", "s.jsonl", True),
        ({"custom_name": "all", "do_timestamp_file": False}, ".", "all.jsonl", True),
        ({"custom_name": "sub/all", "do_timestamp_file": False}, "./sub", "all.jsonl", True),
    ],
)
def test_jsonl_files(config: Any, folder: str, name: str, matches: bool) -> None:
    """Folder and name, with and without the time of the run."""
    found, pattern = naming.jsonl_pattern(config, "s")
    assert (folder, matches) == (found, bool(pattern.match(name)))


@pytest.mark.parametrize(
    ("config", "folder", "name", "matches"),
    [
        ({"output_path": "out"}, "out", "s.csv", True),
        ({"destination_path": "out"}, "out", "s.csv", True),
        ({}, ".", "s.csv", True),
        ({"file_naming_scheme": "{stream_name}-{timestamp}.csv"}, ".", "s-2026-01-01.T000000.csv", True),
        ({"file_naming_scheme": "sub/{stream_name}.txt"}, "./sub", "s.txt", True),
        ({"output_path": "out"}, "out", "other.csv", False),
    ],
)
def test_csv_files(config: Any, folder: str, name: str, matches: bool) -> None:
    """Folder and name after the naming scheme."""
    found, pattern = naming.csv_pattern(config, "s")
    assert (folder, matches) == (found, bool(pattern.match(name)))


@pytest.mark.parametrize("scheme", ["all.csv", "{stream_name}/{datestamp}.csv"])
def test_csv_schemes_that_are_not_understood(scheme: str) -> None:
    """Better no count than a wrong one."""
    with pytest.raises(NotCountable):
        naming.csv_pattern({"file_naming_scheme": scheme}, "s")


def test_the_distribution_is_asked_not_the_name(tmp_path: Path) -> None:
    """What is installed in the executable's venv decides; another program of it is not the loader."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    (site / "meltanolabs_target_csv-0.5.0.dist-info").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    known = ("target-jsonl", "meltanolabs-target-csv")
    assert naming.distribution_of(str(tmp_path / "bin" / "target-csv"), known) == "meltanolabs-target-csv"
    assert naming.distribution_of(str(tmp_path / "bin" / "python"), known) is None
    assert naming.distribution_of("/absent/bin/target-csv", known) is None


def test_python_of(tmp_path: Path) -> None:
    """The loader's own interpreter, or a reason."""
    with pytest.raises(NotCountable):
        naming.python_of(str(tmp_path / "target"))
    (tmp_path / "python").symlink_to("/bin/true")
    assert naming.python_of(str(tmp_path / "target")) == str(tmp_path / "python")
