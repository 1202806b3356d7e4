"""Bad input over real sockets: a typed error that names field and reason, and nothing lost or half-created by it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from tests.service import Service

pytestmark = pytest.mark.e2e


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, with what every one of them must have."""
    assert (status, "application/problem+json") == (answer.status_code, answer.headers["content-type"]), answer.text
    found: dict[str, Any] = answer.json()
    assert (status, code) == (found["status"], found["code"]), found
    assert found["request_id"] == answer.headers["x-request-id"]
    assert {"type", "title", "detail", "retryable"} <= set(found)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_created(service: Service) -> Any:
    """Pipelines and executions are the same before and after each test here."""
    before = (service.command("pipeline.list"), service.command("execution.list"))
    yield
    assert before == (service.command("pipeline.list"), service.command("execution.list"))


def test_unknown_command_names_the_nearest(service: Service) -> None:
    """404 with suggestions, on all three doors."""
    found = problem(service.http.post("/v1/execute", json={"command": "pipeline.lst"}), 404, "unknown_command")
    assert "pipeline.list" in found["suggestions"]
    problem(service.http.post("/v1/commands/pipeline.lst", json={}), 404, "unknown_command")
    problem(service.http.post("/pipeline.lst", json={}), 404, "unknown_command")


@pytest.mark.parametrize("body", [b"{]", b'{"command": "system.status"', b"{} x", b"", b"\xff", b'{"a": NaN}'])
def test_bad_json(service: Service, body: bytes) -> None:
    """400 invalid_json."""
    headers = {"Content-Type": "application/json"}
    problem(service.http.post("/v1/execute", content=body, headers=headers), 400, "invalid_json")


def test_too_deep_and_twice(service: Service) -> None:
    """Nesting beyond 64 and a name given twice are refused before anything is done."""
    headers = {"Content-Type": "application/json"}
    deep = b'{"command":"system.echo","args":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    problem(service.http.post("/v1/execute", content=deep, headers=headers), 400, "json_too_deep")
    twice = b'{"command":"pipeline.delete","args":{"id":"a","id":"b"}}'
    problem(service.http.post("/v1/execute", content=twice, headers=headers), 400, "invalid_json")


def test_wrong_types_name_every_field(service: Service) -> None:
    """422 with an entry for each field at fault."""
    args = {"name": "../x", "tasks": "all", "owner_id": 1, "tags": ["Ä"]}
    found = problem(service.http.post("/v1/commands/pipeline.create", json=args), 422, "validation_failed")
    fields = {error["field"] for error in found["errors"]}
    assert {"args.name", "args.tasks", "args.owner_id"} <= fields
    assert any(field.startswith("args.tags") for field in fields)
    assert "../x" not in str(found)


def test_no_token_and_a_bad_one(service: Service) -> None:
    """401 without a word on why; the challenge names an error only when a token was given."""
    import httpx

    with httpx.Client(base_url=service.url) as client:
        answer = client.post("/v1/execute", json={"command": "system.status"})
        problem(answer, 401, "missing_token")
        assert "error" not in answer.headers["www-authenticate"]
        bodies = set()
        for token in ("x.y.z", service.token(iss="flx/"), service.token(ttl_s=-1), service.token()[:-2] + "xx"):
            answer = client.get("/v1/pipelines", headers={"Authorization": f"Bearer {token}"})
            found = problem(answer, 401, "invalid_token")
            assert 'error="invalid_token"' in answer.headers["www-authenticate"]
            bodies.add((found["title"], found["detail"], found["code"]))
        assert 1 == len(bodies)


def test_a_viewer_may_not_run(service: Service) -> None:
    """403 names the permission that is missing."""
    headers = {"Authorization": f"Bearer {service.token('viewer')}"}
    answer = service.http.post("/v1/pipelines/nyc-to-jsonl/run", json={}, headers=headers)
    assert "pipeline.run" in problem(answer, 403, "forbidden")["detail"]


def test_unknown_things(service: Service) -> None:
    """404 for what is not there, 405 with Allow for a wrong method."""
    problem(service.http.post("/v1/pipelines/no-such/run", json={}), 404, "not_found")
    problem(service.http.get("/v1/pipelines/no-such"), 404, "not_found")
    problem(service.http.get("/v1/executions/no-such"), 404, "not_found")
    problem(service.http.get("/no/such/path"), 404, "not_found")
    answer = service.http.put("/v1/execute", json={})
    problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


def test_what_the_project_owns_is_not_edited(service: Service) -> None:
    """Jobs of meltano.yml are read only: 409 managed_by_project; a taken name is 409 already_exists."""
    problem(service.http.delete("/v1/pipelines/nyc-to-jsonl"), 409, "managed_by_project")
    body = {"name": "nyc-to-jsonl", "tasks": [["tap-nyc", "target-jsonl"]]}
    problem(service.http.post("/v1/pipelines", json=body), 409, "already_exists")


def test_unknown_blocks_are_refused(service: Service) -> None:
    """A pipeline over plugins that the project does not have is 422 with the place of the fault."""
    body = {"name": "ghost", "tasks": [["tap-nyc", "target-ghost"]]}
    found = problem(service.http.post("/v1/pipelines", json=body), 422, "validation_failed")
    assert any(error["field"].startswith("args.tasks") for error in found["errors"])


def test_media_type_encoding_and_size(service: Service) -> None:
    """415 for anything but plain JSON, 413 past the limit, by length and by chunks."""
    post = service.http.post
    problem(post("/v1/execute", content=b"{}", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    problem(post("/v1/execute", content=b"\x1f\x8b", headers=headers), 415, "unsupported_encoding")
    big = b'{"command":"system.echo","args":{"a":"' + b"x" * 1_100_000 + b'"}}'
    headers = {"Content-Type": "application/json"}
    problem(post("/v1/execute", content=big, headers=headers), 413, "payload_too_large")
    chunks = (big[i : i + 65536] for i in range(0, len(big), 65536))
    problem(post("/v1/execute", content=chunks, headers=headers), 413, "payload_too_large")


def test_too_many_requests(start_service: Callable[..., Service]) -> None:
    """429 with Retry-After, RateLimit headers and the policy's name; after that time it goes on."""
    policies = '[{"name":"tiny","by":"subject","limit":5,"window":"2s"}]'
    limited = start_service({"FLX_RATE_LIMITS": policies})
    # As somebody else: the first look at the project takes a part of the window.
    limited.http.get("/v1/pipelines", headers={"Authorization": f"Bearer {limited.token('viewer', sub='first')}"})
    answers = [limited.http.get("/v1/pipelines") for _ in range(6)]
    assert [200] * 5 == [a.status_code for a in answers[:5]]
    assert "tiny" in problem(answers[5], 429, "rate_limited")["detail"]
    assert answers[5].headers["ratelimit-policy"].startswith('"tiny";q=5;w=2')
    assert answers[5].headers["ratelimit"].startswith('"tiny";r=0')
    wait = int(answers[5].headers["retry-after"])
    assert 1 <= wait <= 3
    deadline = time.monotonic() + wait + 1
    while limited.http.get("/v1/pipelines").status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.1)
