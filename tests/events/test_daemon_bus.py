"""What gateways tell one another by the daemon."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from tests.small_daemon import SmallDaemon, serving

from flx_api.errors import Unavailable
from flx_api.events.daemon_bus import DaemonBus
from flx_api.observability.metrics import Metrics
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint


def test_the_daemon_has_it_or_it_is_refused() -> None:
    async def story(socket: Path) -> None:
        daemon = SmallDaemon()
        upstream = Upstream(Endpoint(path=str(socket)), Metrics(), jitter=lambda: 0.0)
        bus = DaemonBus(upstream)
        upstream.start()
        try:
            async with serving(daemon, socket):
                await upstream.connected.wait()
                await bus.publish("", "presence_events", b"1")
                told = daemon.ephemeral.after(0, 9, 999)
                assert [("", "presence_events", b"1")] == [(event.tenant, event.topic, event.data) for event in told]
        finally:
            await upstream.close()
        with pytest.raises(Unavailable):
            await DaemonBus(Upstream(Endpoint(path="/nowhere"), Metrics())).publish("", "presence_events", b"2")

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(story(Path(folder) / "d.sock"))
