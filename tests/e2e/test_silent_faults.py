"""Faults that Meltano calls a success, made for real, and what the ledger says of each.

Real extractors and loaders where their behaviour is the point; scripted ones where the fault is.
"""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.e2e.ledger_runs import Runs, follow_counts, install, replace_loader, script, scripted_project, shorten

from flx_api.daemon.ledger import StreamHistory
from flx_api.daemon.meter_records import read_invocations

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.ledger_runs import Outcome

NYC = {"airlines": 16, "airports": 1458, "planes": 3322, "weather": 26115}
LENIENT = """
for line in sys.stdin:
    try:
        message = json.loads(line)
    except ValueError:
        continue
    if message["type"] == "STATE":
        print(json.dumps(message["value"]), flush=True)
"""
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def quiet(outcome: Outcome) -> None:
    """Assert that a healthy run raised nothing and every stream was verified."""
    assert outcome.exit is not None
    assert outcome.exit.code == 0, outcome.log
    assert outcome.ledger.warnings == ()
    assert {stream.verdict for stream in outcome.streams.values()} == {"verified"}
    assert outcome.ledger.verdict == "verified"


@pytest.mark.parametrize("loader", ["target-jsonl", "target-csv", "target-duckdb"])
def test_healthy_runs_raise_nothing(nyc_project: Path, meltano_env: Path, loader: str) -> None:
    """First run, incremental run with nothing new and a full refresh are verified and quiet."""
    rows = NYC
    if loader != "target-duckdb":  # the whole of it once is enough
        rows = NYC | {"weather": 1_000}
        shorten(nyc_project, "weather", 1_000)
    runs = Runs(nyc_project, meltano_env)
    first = runs.run("tap-nyc", loader, first_run=True)
    quiet(first)
    assert {name: stream.loaded_found for name, stream in first.streams.items()} == rows
    assert first.ledger.records == (30_911 if rows is NYC else 5_796)

    idle = runs.run("tap-nyc", loader)
    quiet(idle)
    assert idle.ledger.records == 0

    history = {name: StreamHistory(seen) for name, seen in rows.items()}
    again = runs.run("tap-nyc", loader, full_refresh=True, history=history)
    quiet(again)
    assert {name: stream.piped for name, stream in again.streams.items()} == rows


def test_duckdb_that_loses_a_row_per_batch(nyc_project: Path, meltano_env: Path, tmp_path: Path) -> None:
    """target-duckdb 0.8.0 with duckdb 1.4.4 exits 0 and drops the first row of every batch: exact counts say so."""
    venv = install(meltano_env, tmp_path / "duckdb-1.4.4", "target-duckdb==0.8.0", "duckdb==1.4.4")
    replace_loader(nyc_project, "target-duckdb", venv)
    outcome = Runs(nyc_project, meltano_env).run("tap-nyc", "target-duckdb", first_run=True)
    assert outcome.exit is not None
    assert outcome.exit.code == 0
    assert {stream.verdict for stream in outcome.streams.values()} == {"mismatch"}, outcome.ledger
    assert {name: stream.expected for name, stream in outcome.streams.items()} == NYC
    assert {name: rows - 1 for name, rows in NYC.items()} == {
        name: stream.loaded_found for name, stream in outcome.streams.items()
    }
    assert outcome.ledger.verdict == "mismatch"
    assert outcome.codes == {"mismatch"}
    assert len(outcome.ledger.warnings) == 4


def test_an_input_file_is_missing(nyc_project: Path, meltano_env: Path) -> None:
    """A file that the extractor's config names and that is not there is told, also on later runs."""
    (nyc_project / "data" / "planes.csv").unlink()
    shorten(nyc_project, "weather", 100)
    runs = Runs(nyc_project, meltano_env)
    first = runs.run("tap-nyc", "target-jsonl", first_run=True)
    assert first.exit is not None
    assert first.exit.code == 0
    assert [warning.detail for warning in first.ledger.warnings if warning.code == "input_missing"] == [
        "input of tap-nyc does not exist: planes.csv"
    ]
    assert [warning.stream for warning in first.ledger.warnings if warning.code == "no_rows"] == ["planes"]
    assert runs.run("tap-nyc", "target-jsonl").codes == {"input_missing"}


@pytest.mark.parametrize("selection", ["[]", "['airlnes.*']"])
def test_nothing_is_selected(nyc_project: Path, meltano_env: Path, selection: str) -> None:
    """An empty or misspelt selection makes Meltano succeed with nothing at all."""
    manifest = nyc_project / "meltano.yml"
    text = manifest.read_text()
    manifest.write_text(
        text.replace(
            "    inherit_from: tap-spreadsheets\n", f"    inherit_from: tap-spreadsheets\n    select: {selection}\n"
        )
    )
    assert manifest.read_text() != text
    outcome = Runs(nyc_project, meltano_env).run("tap-nyc", "target-jsonl")
    assert outcome.exit is not None
    assert outcome.exit.code == 0
    assert outcome.codes == {"nothing_selected"}
    assert outcome.ledger.verdict == "unverified"


def test_the_extractor_is_stopped_in_mid_run(nyc_project: Path, meltano_env: Path) -> None:
    """SIGTERM to the extractor: it exits 0, Meltano saves the state and calls it a success."""

    def stop_when_counting(folder: Path) -> None:
        event = follow_counts(folder, lambda event: "weather" in event.streams and event.streams["weather"].records > 0)
        os.kill(_pid_of(folder, event.number), signal.SIGTERM)

    outcome = Runs(nyc_project, meltano_env).run("tap-nyc", "target-jsonl", first_run=True, during=stop_when_counting)
    assert outcome.exit is not None
    assert outcome.exit.code == 0
    weather = outcome.streams["weather"]
    assert weather.extracted is not None
    assert 0 < weather.extracted < NYC["weather"]
    assert weather.verdict == "verified"  # every row it emitted is there; that they are too few the warning says
    assert ("cut_off", "weather") in {(warning.code, warning.stream) for warning in outcome.ledger.warnings}


def _pid_of(folder: Path, number: int) -> int:
    (path,) = folder.glob(f"{number:03d}-*.jsonl")
    return int(msgspec.json.decode(path.read_bytes().splitlines()[0])["pid"])


@pytest.mark.parametrize(("loader", "code"), [("target-scripted", 0), ("target-jsonl", 1)])
def test_the_extractor_ends_in_the_middle_of_a_line(
    nyc_project: Path, meltano_env: Path, loader: str, code: int
) -> None:
    """A lenient loader makes a success of it, a strict one fails; the torn line is told either way."""
    tap = """
    schema("s"); rows("s", 0, 100); state(s={"at": 100})
    sys.stdout.write('{"type": "RECORD", "stream": "s", "rec')
    """
    scripted_project(nyc_project, tap, LENIENT)
    outcome = Runs(nyc_project, meltano_env).run("tap-scripted", loader)
    assert outcome.exit is not None
    assert outcome.exit.code == code
    assert [warning.code for warning in outcome.ledger.warnings] == ["cut_off"]
    assert "has no end" in outcome.ledger.warnings[0].detail


def test_the_extractor_ends_early_after_a_whole_line(nyc_project: Path, meltano_env: Path) -> None:
    """Rows after the last state say that the extractor did not come to its end."""
    tap = """
    schema("s"); rows("s", 0, 10_000); state(s={"at": 10_000}); rows("s", 10_000, 39_998)
    """
    scripted_project(nyc_project, tap, LENIENT)
    outcome = Runs(nyc_project, meltano_env).run("tap-scripted", "target-scripted")
    assert outcome.exit is not None
    assert outcome.exit.code == 0
    assert [(w.code, w.stream, w.detail) for w in outcome.ledger.warnings] == [
        ("cut_off", "s", "tap-scripted sent 29998 rows and no state after them")
    ]


def test_the_loader_drops_rows(nyc_project: Path, meltano_env: Path, tmp_path: Path, prepared_plugins: Path) -> None:
    """A loader that loses one row in a hundred and exits 0: a copy of the real one, spoilt."""
    venv = tmp_path / "lossy"
    shutil.copytree(prepared_plugins / ".meltano" / "loaders" / "target-jsonl" / "venv", venv, symlinks=True)
    command = venv / "bin" / "target-jsonl"
    lines = command.read_text().splitlines(keepends=True)
    command.write_text(f"#!{venv}/bin/python\n" + "".join(lines[1:]))
    source = next(venv.glob("lib/python*/site-packages/target_jsonl.py"))
    spoilt = source.read_text().replace(
        "                json_file.write(",
        "                if hash(message) % 100:\n                  json_file.write(",
    )
    assert spoilt != source.read_text()
    source.unlink()  # a hard link into the installer's cache
    source.write_text(spoilt)
    replace_loader(nyc_project, "target-jsonl", venv)
    outcome = Runs(nyc_project, meltano_env).run("tap-nyc", "target-jsonl", first_run=True)
    assert outcome.exit is not None
    assert outcome.exit.code == 0
    weather = outcome.streams["weather"]
    assert weather.verdict == "mismatch"
    file = nyc_project / "output" / "weather.jsonl"
    assert weather.loaded_found == len(file.read_bytes().splitlines())
    assert weather.loaded_found < NYC["weather"]
    assert outcome.codes == {"mismatch"}


@pytest.mark.parametrize("status", [1, 0])
def test_the_loader_dies_early(nyc_project: Path, meltano_env: Path, status: int) -> None:
    """Which side left is known from the exits.

    Of a loader that leaves with 0 Meltano makes a success or a failure, depending on whether it meets the closed pipe
    before or after the exit; the ledger says in both cases that the extractor was cut off.
    """
    tap = """
    schema("s")
    for turn in range(100):
        rows("s", turn * 10_000, turn * 10_000 + 10_000)
        state(s={"at": turn})
    """
    target = f"""
    for _ in range(10):
        sys.stdin.readline()
    sys.exit({status})
    """
    scripted_project(nyc_project, tap, target)
    outcome = Runs(nyc_project, meltano_env).run("tap-scripted", "target-scripted")
    assert outcome.exit is not None
    assert outcome.exit.code in {status, 1}
    loader = next(plugin for plugin in outcome.ledger.plugins if plugin.role == "loader")
    assert loader.exit_code == status
    assert outcome.ledger.verdict == "unverified"
    assert "cut_off" in outcome.codes


def test_a_stream_shrinks(nyc_project: Path, meltano_env: Path) -> None:
    """A full refresh that brings a fraction of the last one is told, with both numbers."""
    shorten(nyc_project, "planes", 199)
    shorten(nyc_project, "weather", 26_000)
    history = {name: StreamHistory(rows) for name, rows in NYC.items()}
    outcome = Runs(nyc_project, meltano_env).run("tap-nyc", "target-jsonl", full_refresh=True, history=history)
    assert outcome.exit is not None
    assert outcome.exit.code == 0
    assert [(w.code, w.stream, w.detail) for w in outcome.ledger.warnings] == [
        ("stream_fell", "planes", "199 rows on a full refresh, 3322 last time")
    ]
    assert outcome.ledger.verdict == "verified"


def test_a_mapper_is_metered_apart(nyc_project: Path, meltano_env: Path) -> None:
    """What a mapper drops is not a loss of the loader: the ledger compares with what the mapper passed on."""
    tap = 'schema("s", ["id"]); rows("s", 0, 100); state(s={"at": 100})'
    scripted_project(nyc_project, tap, LENIENT)
    script(
        nyc_project / "map-scripted",
        """
        import json, sys
        for line in sys.stdin:
            message = json.loads(line)
            if message["type"] != "RECORD" or message["record"]["id"] % 2:
                sys.stdout.write(line)
        """,
    )
    manifest = nyc_project / "meltano.yml"
    manifest.write_text(
        manifest.read_text().replace(
            "  loaders:\n",
            "  mappers:\n  - name: map-scripted\n    namespace: map_scripted\n    executable: ./map-scripted\n"
            "    mappings: [{name: odd-only, config: {}}]\n  loaders:\n",
        )
    )
    outcome = Runs(nyc_project, meltano_env).run("tap-scripted", "odd-only", "target-jsonl")
    assert outcome.exit is not None
    assert outcome.exit.code == 0, outcome.log
    stream = outcome.streams["s"]
    assert (stream.extracted, stream.piped, stream.loaded_found) == (100, 50, 50)
    assert stream.verdict == "verified"
    assert stream.reason == "a mapper passed on 50 of 100 rows"
    assert outcome.ledger.warnings == ()


def test_a_signal_reaches_the_plugin_and_its_end_is_known(nyc_project: Path, meltano_env: Path) -> None:
    """An extractor that is killed outright fails the run, and the ledger names the signal."""
    scripted_project(nyc_project, 'schema("s"); rows("s", 0, 10); sys.stdout.flush(); os.kill(os.getpid(), 9)', LENIENT)
    outcome = Runs(nyc_project, meltano_env).run("tap-scripted", "target-scripted")
    assert outcome.exit is not None
    assert outcome.exit.code == 1
    assert "tap-scripted was killed by signal 9" in {warning.detail for warning in outcome.ledger.warnings}
    assert [one.exit_code for one in read_invocations(outcome.folder / "meter")] == [-9, 0]
