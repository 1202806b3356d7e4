"""What a real service says over its WebSocket is what its own AsyncAPI document says that it says.

Strategy: one connection that hears everything there is, from the beginning of the journal, while a run, a failed one, a
change of a pipeline and a switched schedule happen. Each frame must be one message of the document that the service
serves, and no message of the document may be left that nothing here has seen, but for those that take too long.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from tests.asyncapi_frames import judge
from tests.e2e.scripted_project import MELTANO_YML, make_project
from tests.positions import encode
from tests.service import Service, flx
from websockets.typing import Subprotocol

from flx_api.events.position import Position

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

MORE = """
jobs:
- {name: load, tasks: [tap-scripted target-scripted]}
schedules:
- {name: yearly, interval: '@yearly', job: load}
"""
# 25 seconds of silence; and the end of a stream of events, which is seen where that is tried.
TOO_SLOW = {"heartbeat", "expiring", "refreshed", "reconnect", "closed"}
FLX_V1 = Subprotocol("flx.v1")
TOPICS = '[{"topics": "app.room.*", "presence": true}]'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, meltano_env: Path) -> Iterator[Service]:
    """A service on a project of small scripts."""
    project = make_project(tmp_path_factory.mktemp("asyncapi") / "scripted")
    (project / "meltano.yml").write_text(MELTANO_YML + MORE)
    made = Service(project, environ={"FLX_MELTANO": str(meltano_env), "FLX_TOPICS": TOPICS})
    try:
        yield made.start()
        made.stop()
    finally:
        made.kill_all()


def test_real_frames_are_what_the_document_says(service: Service) -> None:
    document = service.http.get("/asyncapi.json").json()
    seen: dict[str, dict[str, Any]] = {}

    async def story() -> None:
        headers = {"Authorization": f"Bearer {service.token()}"}
        async with websockets.connect(f"{service.ws_url}/ws/everything", additional_headers=headers) as socket:

            async def hear(*names: str) -> None:
                """Judge frames until these messages have been heard."""
                async with asyncio.timeout(60):
                    while not set(names) <= seen.keys():
                        frame = json.loads(await socket.recv())
                        seen[judge(document, frame)] = frame

            async def say(**message: Any) -> None:
                await socket.send(json.dumps(message))

            await say(type="subscribe", event="*")
            await hear("connected", "subscribed")
            epoch = json.loads(_decoded(seen["subscribed"]["pos"]))[0]
            await say(type="subscribe", event="*", **{"from": encode(Position(epoch, 0))})
            await hear("systemEvents")
            await say(type="ping")
            await say(type="what is this")
            await say(type="subscribe", event="nothing")
            await hear("pong", "echo", "error")
            await say(type="subscribe", event="system_events", **{"from": encode(Position("another", 5))})
            await hear("gap")
            await say(type="subscribe", event="presence.app.room.one")
            await say(type="subscribe", event="app.room.one")
            await hear("presence")
            await asyncio.to_thread(_act, service)
            await hear("pipelineEvents", "executionEvents", "executionStatus", "executionMetric", "executionLog")
            await hear("scheduleEvents", "applicationEvents", "userEvents")
            await say(type="unsubscribe", event="*")
            await hear("unsubscribed")

    async def batched() -> None:
        headers = {"Authorization": f"Bearer {service.token()}"}
        url = f"{service.ws_url}/ws/batched"
        async with websockets.connect(url, additional_headers=headers, subprotocols=[FLX_V1]) as socket:
            epoch = json.loads(_decoded(seen["systemEvents"]["pos"]))[0]
            for pos in (Position("another", 5), Position(epoch, 0)):
                await socket.send(json.dumps({"type": "subscribe", "event": "system_events", "from": encode(pos)}))
            async with asyncio.timeout(60):
                while not {"batch", "batchedGap"} <= seen.keys():
                    frame = json.loads(await socket.recv())
                    seen[judge(document, frame)] = frame

    asyncio.run(story())
    asyncio.run(batched())
    sent = [operation for operation in document["operations"].values() if operation["action"] == "send"]
    replies = [operation["reply"] for operation in document["operations"].values() if "reply" in operation]
    told = {reference["$ref"].rsplit("/", 1)[1] for part in [*sent, *replies] for reference in part["messages"]}
    assert told - TOO_SLOW == set(seen)


def test_watch_finds_the_service_and_goes_on_from_a_position(service: Service) -> None:
    """Without an address or a token: it is the same machine."""
    begin = service.command("event.publish", {"topic": "app.w", "data": 1})["seq"]
    epoch = service.http.get("/v1/system/info").json()["epoch"]
    command = flx("watch", "app.*", "--project", str(service.project), "--from", encode(Position(epoch, begin - 1)))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        service.command("event.publish", {"topic": "app.w", "data": 2})
        second = json.loads(watch.stdout.readline())
        watch.send_signal(signal.SIGINT)
        assert 130 == watch.wait(10)
    assert [("app.w", 1), ("app.w", 2)] == [(event["event"], event["data"]) for event in (first, second)]
    assert first["seq"] == second["prev"]


def _act(service: Service) -> None:
    """Make what there are topics about happen."""

    def outcome(pipeline: str) -> str:
        started = service.http.post(f"/v1/pipelines/{pipeline}/run", json={})
        return str(service.wait(started.headers["location"].rsplit("/", 1)[1])["status"])

    service.command("pipeline.create", {"name": "mine", "extractor": "tap-scripted", "loader": "target-scripted"})
    service.command("schedule.disable", {"name": "yearly"})
    for topic in ("app.orders.new", "user.tester"):
        service.command("event.publish", {"topic": topic, "data": {"n": 1}})
    assert outcome("load").startswith("succeeded")
    (service.project / "target.py").write_text("#!/usr/bin/env python3\nraise SystemExit(1)\n")
    assert "failed" == outcome("mine")


def _decoded(position: str) -> bytes:
    return base64.urlsafe_b64decode(position + "=" * (-len(position) % 4))
