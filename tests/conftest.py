"""What many tests need: Meltano's environment, a private copy of the demo project, a real service.

`make test` prepares the two shared folders (`.venv-meltano` and `.demo`, see the Makefile); without them the tests that
need Meltano are skipped with the command that makes them, except where CI is set: there they fail.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from tests.service import PLUGIN_KINDS, ROOT, Service, copy_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.postgres_server import PostgresServer


# No test is timed: on a busy machine the usual bound of 200 ms for an example would say so of sound code.
settings.register_profile("flx", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flx")

# Where the prepared folders are; not settings of the service under test.
_OURS = {"FLX_MELTANO", "FLX_TEST_PLUGINS"}


def _missing(what: str) -> None:
    message = f"{what} is missing: run `make test`, which prepares it"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings in the developer's own environment must not reach a test."""
    for name in [name for name in os.environ if name.startswith("FLX_") and name not in _OURS]:
        monkeypatch.delenv(name)
    # Who wants the native listener says so: the default port is one, and tests are many.
    monkeypatch.setenv("FLX_REALTIME_PORT", "off")


@pytest.fixture(scope="session")
def meltano_env() -> Path:
    """An environment that holds Meltano."""
    folder = Path(os.environ.get("FLX_MELTANO") or ROOT / ".venv-meltano")
    if not (folder / "bin" / "meltano").exists():
        _missing("Meltano's environment")
    return folder


@pytest.fixture(scope="session")
def prepared_plugins() -> Path:
    """A copy of the demo project whose plugins are installed. Read only: tests link to its environments."""
    folder = Path(os.environ.get("FLX_TEST_PLUGINS") or ROOT / ".demo")
    if not all((folder / ".meltano" / kind).is_dir() for kind in PLUGIN_KINDS):
        _missing("the demo project with its plugins")
    return folder


@pytest.fixture
def nyc_project(tmp_path: Path, prepared_plugins: Path) -> Path:
    """A private copy of the demo project, plugins ready."""
    return copy_project(tmp_path / "nyc", plugins=prepared_plugins)


@pytest.fixture
def start_service(nyc_project: Path, meltano_env: Path) -> Iterator[Callable[..., Service]]:
    """Start a service on the test's own project: `start_service(environ={...}, args=(...))`. Ended with the test."""
    started: list[Service] = []

    def start(environ: dict[str, str] | None = None, args: tuple[str, ...] = ()) -> Service:
        service = Service(nyc_project, environ={"FLX_MELTANO": str(meltano_env), **(environ or {})}, args=args)
        started.append(service)
        return service.start()

    yield start
    try:
        for service in started:
            service.stop()
    finally:
        for service in started:
            service.kill_all()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, prepared_plugins: Path, meltano_env: Path) -> Iterator[Service]:
    """A service for all tests of a module, on a project copy of their own."""
    project = copy_project(tmp_path_factory.mktemp("service") / "nyc", plugins=prepared_plugins)
    running = Service(project, environ={"FLX_MELTANO": str(meltano_env)})
    try:
        yield running.start()
        running.stop()
    finally:
        running.kill_all()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL; a test takes a database of its own from it."""
    from tests import postgres_server

    with postgres_server.running() as server:
        yield server
