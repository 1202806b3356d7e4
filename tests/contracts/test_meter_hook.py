"""What the row ledger expects of Meltano: every plugin of a run is started through the one place that we hook.

A Meltano that starts plugins another way fails here, and its users' runs say `unverified: not metered`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.e2e.ledger_runs import Runs, follow_counts, shorten

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def test_every_plugin_passes_the_meter_and_leaves_a_whole_record(nyc_project: Path, meltano_env: Path) -> None:
    """Discovery, extractor, loader and dbt, in start order; each record complete; counts followed while it ran."""
    shorten(nyc_project, "weather", 500)
    rows = {"airlines": 16, "airports": 1458, "planes": 3322, "weather": 500}

    def follow(folder: Path) -> None:
        follow_counts(folder, lambda event: {name: seen.records for name, seen in event.streams.items()} == rows)

    outcome = Runs(nyc_project, meltano_env).run("tap-nyc", "target-duckdb", "dbt-duckdb:build", during=follow)
    assert outcome.exit is not None
    assert outcome.exit.code == 0, outcome.log
    assert [(one.role, one.plugin, one.purpose) for one in outcome.invocations] == [
        ("extractor", "tap-nyc", "discover"),
        ("extractor", "tap-nyc", "sync"),
        ("loader", "target-duckdb", "sync"),
        ("utility", "dbt-duckdb", "other"),
    ]
    for one in outcome.invocations:
        assert one.exit_code == 0
        assert one.cpu_s
        assert one.max_rss_kib
        assert one.ended_us is not None
        assert one.ended_us > one.started_us
    assert [one.snapshot is not None for one in outcome.invocations] == [False, True, True, False]
    assert {name: stream.piped for name, stream in outcome.streams.items()} == rows
    assert outcome.ledger.verdict == "verified"
