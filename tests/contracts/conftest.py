"""What several contracts are held on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis import Redis
from tests.redis_server import running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A client of a real Redis."""
    with running(tmp_path_factory.mktemp("redis")) as server, Redis(unix_socket_path=str(server.socket)) as client:
        yield client
