"""What several contracts are held on."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from tests.contracts.journal_homes import Home
from tests.redis_server import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres_server import PostgresServer


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A client of a real Redis."""
    with running(tmp_path_factory.mktemp("redis")) as server, Redis(unix_socket_path=str(server.socket)) as client:
        yield client


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A database of each kind."""
    if request.param == "sqlite":
        numbers = itertools.count()
        return Home(lambda: f"sqlite:///{tmp_path}/flx{next(numbers)}.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return Home(server.database)
