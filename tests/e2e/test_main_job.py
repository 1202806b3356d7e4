"""The main job on the real parts: Granian, the daemon, Meltano, its plugins, real data, counted at the destination."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.e2e.ledger_runs import shorten
from tests.gated_tap import RECORDS, GatedTap
from websockets.sync.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STREAMS = {"airlines": 16, "airports": 1458, "planes": 3322, "weather": 26115}
TOTAL = 30_911


def follow(socket: ClientConnection, execution: str, timeout_s: float = 120) -> Iterator[dict[str, Any]]:
    """The events of an execution until it is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        event = json.loads(socket.recv(timeout=deadline - time.monotonic()))
        if event.get("type") != "event" or execution not in json.dumps(event):
            continue
        yield event
        if event["event"] == f"execution.{execution}.status" and event["data"]["status"] in {
            "succeeded",
            "succeeded_with_warnings",
            "failed",
            "cancelled",
            "crashed",
            "timed_out",
        }:
            return


@contextmanager
def listen(service: Service, *topics: str) -> Iterator[ClientConnection]:
    """A WebSocket client that is subscribed."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    with connect(f"{service.ws_url}/ws/e2e", additional_headers=headers) as socket:
        assert "connected" == json.loads(socket.recv(timeout=10))["type"]
        for topic in topics:
            socket.send(json.dumps({"type": "subscribe", "event": topic}))
            answer = json.loads(socket.recv(timeout=10))
            assert ("subscribed", topic) == (answer["type"], answer["event"])
        yield socket


def run(service: Service, pipeline: str, **body: Any) -> str:
    """Start a pipeline and return the execution's id."""
    answer = service.http.post(f"/v1/pipelines/{pipeline}/run", json=body)
    assert 202 == answer.status_code, answer.text
    accepted = answer.json()
    execution = str(accepted["result"]["id"] if "result" in accepted else accepted["id"])
    assert f"/v1/executions/{execution}" == answer.headers["location"]
    return execution


def ledger_of(service: Service, execution: str) -> dict[str, Any]:
    found: dict[str, Any] = service.http.get(f"/v1/executions/{execution}/streams").json()["ledger"]
    return found


@pytest.mark.parametrize("pipeline", ["nyc-to-jsonl", "nyc-warehouse"])
def test_every_row_is_counted_on_both_sides(service: Service, pipeline: str) -> None:
    """30,911 records pass the pipe and are found at the destination; every line of the log and counts arrive live."""
    with listen(service, "*") as socket:
        execution = run(service, pipeline, refresh="full")
        events = list(follow(socket, execution))
    over = service.wait(execution)
    assert ("succeeded", "verified", TOTAL) == (over["status"], over["verdict"], over["records"]), over
    ledger = ledger_of(service, execution)
    streams = {s["stream"]: s for block in ledger["blocks"] for s in block["streams"]}
    assert STREAMS == {name: s["extracted"] for name, s in streams.items()}
    assert STREAMS == {name: s["loaded_found"] for name, s in streams.items()}
    assert {"verified"} == {s["verdict"] for s in streams.values()}

    lines = service.http.get(
        f"/v1/executions/{execution}/logs", headers={"Accept": "application/x-ndjson"}
    ).text.splitlines()
    live = [e for e in events if e["event"] == f"execution.{execution}.log"]
    assert list(range(1, len(live) + 1)) == [e["seq"] for e in live]
    assert len(lines) >= len(live) > 10
    counts: dict[str, int] = {}
    for event in events:
        if event["event"] == f"execution.{execution}.metric" and event["data"]["role"] == "extractor":
            counts |= {name: s["records"] for name, s in event["data"]["streams"].items()}
    assert STREAMS == counts
    statuses = [e["data"]["status"] for e in events if e["event"] == f"execution.{execution}.status"]
    assert ["starting", "running", "succeeded"] == [s for s in statuses if s != "queued"]


def test_a_healthy_second_run_raises_nothing(service: Service) -> None:
    """With nothing new an incremental run moves no row and is simply a success."""
    service.wait(run(service, "nyc-to-jsonl"))
    over = service.wait(run(service, "nyc-to-jsonl"))
    assert ("succeeded", [], 0) == (over["status"], over["warnings"], over["records"]), over


def test_run_of_a_running_pipeline_is_refused_and_cancel_leaves_nothing(
    start_service: Callable[..., Service], nyc_project: Any
) -> None:
    """A second start is 409 and makes no execution; cancelling ends the group; the next run starts at once."""
    tap = GatedTap(nyc_project)
    service = start_service()
    execution = run(service, tap.job)
    _until_records(service, execution)
    again = service.http.post(f"/v1/pipelines/{tap.job}/run", json={})
    assert (409, "already_running") == (again.status_code, again.json()["code"])
    assert 1 == len(service.http.get("/v1/executions").json()["items"])
    assert service.http.delete(f"/v1/executions/{execution}").is_success
    over = service.wait(execution)
    assert "cancelled" == over["status"]
    assert not (service.data_dir / "runs" / execution / "sys").exists()
    tap.open()
    over = service.wait(run(service, tap.job))
    assert ("succeeded", RECORDS) == (over["status"], over["records"]), over


def test_wait_and_timeout(start_service: Callable[..., Service], nyc_project: Any) -> None:
    """`wait` answers 202 with the present state while it runs; a run past its time is `timed_out`."""
    tap = GatedTap(nyc_project)
    service = start_service()
    execution = run(service, tap.job, timeout_s=3)
    answer = service.http.get(f"/v1/executions/{execution}/wait", params={"timeout_ms": 50})
    assert 202 == answer.status_code
    assert answer.json()["status"] in {"queued", "starting", "running"}
    assert "timed_out" == service.wait(execution)["status"]


def test_four_parallel_runs_of_one_tap(start_service: Callable[..., Service], nyc_project: Any) -> None:
    """Where plain Meltano fails 4 of 4, four loaders fed by one tap at the same time all end verified.

    With fewer rows than the whole: it is about runs that begin together, and the whole is counted above.
    """
    from ruamel.yaml import YAML

    shorten(nyc_project, "weather", 1_000)
    total = TOTAL - STREAMS["weather"] + 1_000
    yaml, file = YAML(), nyc_project / "meltano.yml"
    document = yaml.load(file)
    for number in range(4):
        document["plugins"]["loaders"].append(
            {
                "name": f"target-jsonl-{number}",
                "inherit_from": "target-jsonl",
                "config": {"destination_path": f"output/{number}"},
            }
        )
    yaml.dump(document, file)
    service = start_service({"FLX_MAX_RUNS": "4"})
    executions = []
    for number in range(4):
        body = {"name": f"parallel-{number}", "extractor": "tap-nyc", "loader": f"target-jsonl-{number}"}
        assert 201 == service.http.post("/v1/pipelines", json=body).status_code
        executions.append(run(service, f"parallel-{number}", refresh="full"))
    ends = [service.wait(execution) for execution in executions]
    assert [("succeeded", "verified", total)] * 4 == [(e["status"], e["verdict"], e["records"]) for e in ends], ends


def _until_records(service: Service, execution: str, at_least: int = RECORDS // 2, timeout_s: float = 30) -> None:
    """Return when the run is in its middle: half of the records were counted in the pipe."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            counts = service.http.get(f"/v1/executions/{execution}/streams").json().get("counts", {})
        except httpx.HTTPError:
            counts = {}
        if sum(counts.values()) >= at_least:
            return
        assert time.monotonic() < deadline, service.http.get(f"/v1/executions/{execution}").text
        time.sleep(0.05)
