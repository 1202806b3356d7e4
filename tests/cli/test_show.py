"""What commands print about executions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flx_api.cli import show
from flx_api.cli.client import Client


@pytest.mark.parametrize(
    ("data", "expected"),
    [({"line": "l"}, "l"), ({"message": "m"}, "m"), ({"other": 1}, '{"other": 1}'), ("plain", "plain")],
)
def test_a_log_event_is_a_line(data: Any, expected: str) -> None:
    assert expected == show.log_line(data)


def test_a_log_is_printed_page_by_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A page ends where it is large, and where an attempt does; there may be more behind it."""
    pages = {
        1: {"lines": ["a", "b"], "next_line": 3, "complete": False},
        3: {"lines": ["c"], "next_line": 4, "complete": True},
    }
    monkeypatch.setattr(Client, "log_page", lambda _self, _id, line, _limit: pages[line])
    show.print_log(Client("http://x", None), "x", from_line=1, follow=False)
    assert "a\nb\nc\n" == capsys.readouterr().out


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("succeeded_with_warnings", 0), ("failed", 1)])
def test_the_exit_code_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    end = {"status": status, "records": 1234, "verdict": "verified", "warnings": ["w"], "error": None}
    monkeypatch.setattr(Client, "wait", lambda *_: end)
    assert code == show.verdict(Client("http://x", None), "x")
    assert f"{status}, 1,234 records, verified\n  w\n" == capsys.readouterr().out


WORDS = "meltano run tap-a target-x dbt:run"
RUN = {"tasks": [["tap-a", "target-x"], ["dbt:run"]], "environment": "dev", "refresh": "full"}
LIMIT = {"policy": "few", "cost": 2, "limit": 9, "window_ms": 60_000}
SLOT = {"reason": "slot", "state_id": None, "execution": None}
STATE = {"reason": "state_id", "state_id": "s", "execution": "x1"}


@pytest.mark.parametrize(
    ("plan", "code", "lines"),
    [
        (
            {"run": {**RUN, "waits_for": []}, "limits": [LIMIT]},
            0,
            f"would run: {WORDS} (dev, full)\n  starts at once\n  costs 2 of 9 in 60 s (few)\n",
        ),
        (
            {"run": {**RUN, "environment": None, "waits_for": [SLOT, STATE, {**STATE, "execution": None}]}},
            0,
            f"""would run: {WORDS} (no environment, full)
  waits for a free slot
  waits for execution x1, which has the state id s
  waits for an execution of another tenant, which has the state id s
""",
        ),
        (
            {"errors": [{"code": "already_running", "detail": "It runs"}]},
            1,
            "would be refused: already_running: It runs\n",
        ),
    ],
)
def test_a_plan_is_told_in_words(
    capsys: pytest.CaptureFixture[str], plan: dict[str, Any], code: int, lines: str
) -> None:
    assert code == show.planned({"errors": [], "run": None, "limits": [], **plan})
    assert lines == capsys.readouterr().out


def test_the_openapi_document_is_json() -> None:
    assert json.loads(show.openapi_document())["openapi"].startswith("3.")
    assert json.loads(show.asyncapi_document())["asyncapi"].startswith("3.")
