"""What commands print about executions: logs, the ledger, the verdict, and what a start would do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from flx_api.cli.follow import events, execution_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flx_api.cli.client import Client
    from flx_api.client import Gap, Transport

_PAGE = 1000


def print_log(client: Client, execution: str, *, from_line: int, follow: bool) -> None:
    """Print an execution's log from a line on; with `follow`, until it is over."""
    if follow:
        for line in client.follow(execution, from_line):
            print(line, flush=True)
        return
    while True:
        page = client.log_page(execution, from_line, _PAGE)
        for line in page["lines"]:
            print(line)
        from_line = page["next_line"]
        # A page ends where an attempt does, and where it is large.
        if page["complete"] or not page["lines"]:
            return


def follow_log(client: Client, execution: str) -> None:
    """Print an execution's log while it goes on, over the WebSocket."""
    for event in execution_events(client, execution):
        if event.event.endswith(".log"):
            print(log_line(event.data), flush=True)


def print_events(
    client: Client, topics: Sequence[str], *, start: str | None = None, transport: Transport = "auto"
) -> None:
    """Print events and gaps as lines of JSON, until interrupted."""
    for event in events(client, topics, start=start, on_gap=_print_gap, transport=transport):
        print(msgspec.json.encode(event).decode(), flush=True)


def _print_gap(gap: Gap) -> None:
    print(json.dumps({"type": "gap", **gap._asdict()}), flush=True)


def log_line(data: Any) -> str:  # noqa: ANN401 - a log event carries what the run wrote
    """One log event as a person reads it: the message of a JSON line, or the line as it is."""
    if isinstance(data, dict):
        text = data.get("line") or data.get("message") or data.get("event")
        return str(text) if text else json.dumps(data)
    return str(data)


def verdict(client: Client, execution: str) -> int:
    """Say how an execution ended; 0 when it succeeded."""
    found = client.wait(execution)
    records = "" if found["records"] is None else f", {found['records']:,} records"
    print(f"{found['status']}{records}, {found['verdict'] or 'not counted'}", flush=True)
    for warning in found.get("warnings", ()):
        print(f"  {warning}")
    if found.get("error"):
        print(f"  {found['error']}")
    return 0 if found["status"].startswith("succeeded") else 1


def planned(plan: dict[str, Any]) -> int:
    """Say what a start would do; 0 when it would be accepted."""
    for error in plan["errors"]:
        print(f"would be refused: {error['code']}: {error['detail']}")
    run = plan["run"]
    if run is not None:
        words = " ".join(word for task in run["tasks"] for word in task)
        print(f"would run: meltano run {words} ({run['environment'] or 'no environment'}, {run['refresh']})")
        if not run["waits_for"]:
            print("  starts at once")
        for wait in run["waits_for"]:
            print(f"  waits for {_awaited(wait)}")
    for limit in plan["limits"]:
        print(f"  costs {limit['cost']} of {limit['limit']} in {limit['window_ms'] / 1000:g} s ({limit['policy']})")
    return 1 if plan["errors"] else 0


def _awaited(wait: dict[str, Any]) -> str:
    if wait["reason"] == "slot":
        return "a free slot"
    holder = f"execution {wait['execution']}" if wait["execution"] else "an execution of another tenant"
    return f"{holder}, which has the state id {wait['state_id']}"


def openapi_document() -> str:
    """The OpenAPI document, as the service serves it."""
    from flx_api.routes.openapi import document  # noqa: PLC0415 - the routes are heavy

    return json.dumps(document(), indent=2)


def asyncapi_document() -> str:
    """The AsyncAPI document, as the service serves it."""
    from flx_api.routes.asyncapi import document  # noqa: PLC0415 - as above

    return json.dumps(document(), indent=2)
