"""What the row ledger expects of Meltano: every plugin of a run is started through the one place that we hook.

A Meltano that starts plugins another way fails here, and its users' runs say `unverified: not metered`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flx_api.daemon.meter_records import MeterFollower
from tests.e2e.ledger_runs import Runs, shorten

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_every_plugin_passes_the_meter_and_leaves_a_whole_record(nyc_project: Path, meltano_env: Path) -> None:
    """Discovery, extractor, loader and dbt, in start order; each record complete; counts followed while it ran."""
    shorten(nyc_project, "weather", 500)
    followed: dict[str, int] = {}

    def follow(folder: Path) -> None:
        follower = MeterFollower(folder)
        while sum(followed.values()) < 16 + 1458 + 3322 + 500:
            for event in follower.poll():
                followed.update({name: count.records for name, count in event.streams.items()})

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
    assert followed == {"airlines": 16, "airports": 1458, "planes": 3322, "weather": 500}
    assert outcome.ledger.verdict == "verified"
