"""Which files a config asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flx_api.daemon.meter_inputs import missing_inputs, named_inputs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"files": [{"path": "data/a.csv", "format": "csv"}, {"path": "data/*.xlsx"}]}, ["data/a.csv", "data/*.xlsx"]),
        ({"path": "rows.jsonl"}, ["rows.jsonl"]),
        ({"csv_files_definition": "defs.json"}, ["defs.json"]),
        ({"files": ["a.csv", "b.parquet"]}, ["a.csv", "b.parquet"]),
        # An HTTP extractor's path is no file.
        ({"api_url": "https://host", "streams": [{"path": "/users.json"}]}, []),
        ({"path": "/v1/users"}, []),
        ({"path": "s3://bucket/a.csv"}, []),
        ({"files": [{"url": "https://host/a.csv", "path": "a.csv"}]}, []),
        # Other settings that look like files are none of ours.
        ({"password": "x.csv", "start_date": "2020-01-01", "log": "log.txt"}, []),
        ({}, []),
        ([], []),
    ],
)
def test_named_inputs(config: Any, names: list[str]) -> None:
    """Names under the usual keys that look like local data files."""
    assert names == named_inputs(config)


def test_missing_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are seen from the plugin's folder; a pattern that matches is present."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a1.csv").touch()
    config = {"files": [{"path": "a1.csv"}, {"path": "a*.csv"}, {"path": "b*.csv"}, {"path": "c.csv"}]}
    assert missing_inputs(config) == ["b*.csv", "c.csv"]
