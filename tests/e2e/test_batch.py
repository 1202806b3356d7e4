"""Batches through the whole service: real gateway, real daemon, a real run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from tests.service import Service

pytestmark = pytest.mark.e2e


def post(service: Service, *operations: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    answer = service.http.post("/v1/batch", json={"operations": operations, **more})
    assert 200 == answer.status_code, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    assert list(range(len(operations))) == [result["index"] for result in found]
    return found


def test_operations_are_carried_out_each_once(service: Service) -> None:
    made = {"name": "made", "tasks": [["tap-nyc", "target-jsonl"]]}
    make = {"command": "pipeline.create", "args": made, "idempotency_key": "m1"}
    other = {**make, "args": {**made, "name": "other"}}
    wrong = {"command": "pipeline.get", "args": {"name": 7}}
    first, again, reused, invalid, unknown, page = post(
        service, make, make, other, wrong, {"command": "pipeline.lst"}, {"command": "pipeline.list"}, mode="ordered"
    )
    assert ("ok", "ok") == (first["status"], again["status"]), (first, again)
    assert (False, True) == ("replayed" in first["meta"], again["meta"].get("replayed"))
    assert first["result"] == again["result"]
    assert (422, "idempotency_key_reuse") == (reused["error"]["status"], reused["error"]["code"])
    assert {"args.id", "args.name"} == {error["field"] for error in invalid["error"]["errors"]}
    assert "pipeline.list" in unknown["error"]["suggestions"]
    assert "made" in {item["name"] for item in page["result"]["items"]}


def test_a_thousand_reads_come_back_in_order(service: Service) -> None:
    found = post(service, *({"command": "system.echo", "args": {"n": number}} for number in range(1000)))
    assert list(range(1000)) == [result["result"]["n"] for result in found]


def test_runs_are_accepted_and_go_on(service: Service) -> None:
    run = {"command": "pipeline.run", "args": {"id": "nyc-to-jsonl"}, "idempotency_key": "r1"}
    body = {"operations": [run, {"command": "system.info"}]}
    answer = service.http.post("/v1/batch", json=body, headers={"accept": "application/x-ndjson"})
    *results, end = [msgspec.json.decode(line) for line in answer.content.splitlines()]
    assert {"operations": 2, "ok": 1, "accepted": 1, "error": 0, "not_attempted": 0} == end["totals"]
    (accepted,) = [result for result in results if result["status"] == "accepted"]
    assert accepted["id"] == accepted["result"]["id"]
    (again,) = post(service, run)
    assert (accepted["id"], True) == (again["id"], again["meta"]["replayed"])
    assert "succeeded" == service.wait(accepted["id"])["status"]
