"""What an end means, from records as real runs leave them."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.executions.outcome import BlockFailure, LogFacts, judge, read_facts, redacted
from flx_api.daemon.executors import ExitRecord
from flx_api.models.ledger import Ledger, PluginCost, Warning_

WELL = LogFacts(completed=True)
BADLY = LogFacts(completed=False)


def record(code: int, ended_us: int = 200) -> ExitRecord:
    return ExitRecord(code=code, started_us=100, ended_us=ended_us)


def plugin(role: str, name: str, code: int | None, ended_us: int) -> PluginCost:
    return PluginCost(role=role, plugin=name, purpose="sync", exit_code=code, started_us=1, ended_us=ended_us)  # type: ignore[arg-type]


def ledger(*plugins: PluginCost, warnings: tuple[Warning_, ...] = ()) -> Ledger:
    return Ledger(verdict="unverified", records=0, blocks=(), warnings=warnings, plugins=plugins)


def test_exit_0_is_a_success_unless_the_ledger_has_something_to_say() -> None:
    assert judge(record(0), WELL, ledger()).event == "success"
    noted = judge(record(0), WELL, ledger(warnings=(Warning_("no_rows", "tap sent no row", "s"),)))
    assert noted.event == "success_with_warnings"
    assert noted.warnings == ("no_rows: s: tap sent no row",)
    assert noted.error is None


def test_without_an_exit_record_it_crashed() -> None:
    found = judge(None, LogFacts(), None)
    assert (found.event, found.exit_code) == ("vanished", None)
    assert found.error
    assert judge(None, WELL, None).event == "vanished"


@pytest.mark.parametrize("code", [143, -15, -9, 137])
def test_stopped_by_the_cancellation(code: int) -> None:
    assert judge(record(code), BADLY, None, cancelling=True).event == "stopped"
    failed = judge(record(code), BADLY, None)
    assert failed.event == "failure"
    assert failed.error is not None
    assert "SIG" in failed.error


def test_killed_after_the_grace_is_cancelled_too() -> None:
    assert judge(None, LogFacts(), None, cancelling=True).event == "stopped"


def test_what_ended_before_the_signal_keeps_its_end() -> None:
    assert judge(record(0, ended_us=200), WELL, None, cancelling=True, stopped_us=150).event == "success"
    assert judge(record(1, ended_us=200), BADLY, None, cancelling=True, stopped_us=250).event == "failure"
    # Plugins died of the signal first, and Meltano called that their failure.
    assert judge(record(1, ended_us=300), BADLY, None, cancelling=True, stopped_us=250).event == "stopped"


def test_timeouts_are_meltanos_or_ours() -> None:
    by_meltano = judge(record(1), LogFacts(completed=False, timed_out=True), None, timeout_s=5)
    assert (by_meltano.event, by_meltano.error) == ("timeout", "The run took longer than 5 s.")
    assert judge(record(143), BADLY, None, timed_out=True, timeout_s=5).event == "timeout"
    assert judge(None, BADLY, None, timed_out=True, timeout_s=5).event == "timeout"
    assert judge(record(0), WELL, None, timed_out=True).event == "success"
    # Plugins died of our signal first; and one that failed before it.
    assert judge(record(1, ended_us=300), BADLY, None, timed_out=True, stopped_us=250).event == "timeout"
    assert judge(record(1, ended_us=200), BADLY, None, timed_out=True, stopped_us=250).event == "failure"


def test_the_side_that_failed_first_is_named_with_its_last_words() -> None:
    facts = LogFacts(
        completed=False,
        failures=(BlockFailure("Extractor and loader failed", {"extractors": 1, "loaders": 1}),),
        errors=(("target-x", "ValueError: disk on fire"), ("tap-x", "BrokenPipeError: [Errno 32] Broken pipe")),
    )
    books = ledger(plugin("extractor", "tap-x", 1, 60), plugin("loader", "target-x", 1, 50))
    assert judge(record(1), facts, books).error == "Loader target-x ended with exit code 1: ValueError: disk on fire"
    consequence = ledger(plugin("extractor", "tap-x", -15, 40), plugin("loader", "target-x", 2, 50))
    assert str(judge(record(1), facts, consequence).error).startswith("Loader target-x ended with exit code 2")


def test_without_meter_records_meltanos_own_word_is_taken() -> None:
    facts = LogFacts(completed=False, failures=(BlockFailure("Extractor failed", {"extractors": 3}),))
    assert judge(record(1), facts, None).error == "Extractor ended with exit code 3"
    command = LogFacts(failures=(BlockFailure("`dbt-duckdb build` failed with exit code: 1", {}),))
    assert judge(record(1), command, None).error == "`dbt-duckdb build` failed with exit code: 1"
    said = LogFacts(errors=((None, "Error: something in meltano.yml"),))
    assert judge(record(1), said, None).error == "Meltano ended with exit code 1: Error: something in meltano.yml"


def test_facts_are_read_from_the_end_of_a_log() -> None:
    lines = [
        b"Traceback (most recent call last):",
        b"RuntimeError: plain text on stderr",
        json.dumps({"event": "ValueError: boom", "level": "info", "string_id": "tap-x"}).encode(),
        json.dumps({"event": "all is well", "level": "info", "string_id": "tap-x"}).encode(),
        json.dumps(
            {
                "event": "Block run completed",
                "success": False,
                "err": "Extractor failed",
                "exit_codes": {"extractors": 1},
                "level": "error",
            }
        ).encode(),
        json.dumps({"event": "Run timed out", "level": "error"}).encode(),
        json.dumps({"event": "Run completed", "status": "failure", "level": "info"}).encode(),
        json.dumps({"event": {"no": "text"}}).encode(),
        b"\xff\xfe",
    ]
    assert read_facts(lines) == LogFacts(
        completed=False,
        timed_out=True,
        failures=(BlockFailure("Extractor failed", {"extractors": 1}),),
        errors=((None, "RuntimeError: plain text on stderr"), ("tap-x", "ValueError: boom")),
    )


_EVENTS = ("Run completed", "Run timed out", "Block run completed", "ValueError: x", "an error: x", "all is well")
_LINES = st.one_of(
    st.builds(
        lambda fields: json.dumps(fields).encode(),
        st.fixed_dictionaries(
            {"event": st.sampled_from(_EVENTS)},
            optional={
                "level": st.sampled_from(["info", "error", "critical"]),
                "string_id": st.sampled_from(["tap-x", None]),
                "status": st.sampled_from(["success", "failure"]),
                "success": st.booleans(),
                "err": st.just("a block failed"),
            },
        ),
    ),
    st.sampled_from([b"RuntimeError: y", b"A FATAL end", b"CRITICAL", b"MyException", b"AFault", b"ERROR", b"words"]),
)


@given(lines=st.lists(_LINES, max_size=30), many=st.integers(0, 60))
def test_the_facts_are_those_of_all_lines_in_their_order(lines: list[bytes], many: int) -> None:
    """Although most lines are not decoded: beside a reader that decodes each."""
    lines = [*lines, *(b"Error: %d" % number for number in range(many)), *lines[::2]]
    completed, timed_out, failures, errors = None, False, [], []
    looks_like_error = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Fault)\b|\b(?:ERROR|CRITICAL|FATAL|[Ee]rror:)")
    for raw in lines:
        line = json.loads(raw) if raw.startswith(b"{") else {"event": raw.decode(), "string_id": "?"}
        event, name = line["event"], line.get("string_id")
        if event == "Run completed":
            completed = line.get("status") == "success"
        elif event == "Run timed out":
            timed_out = True
        elif event == "Block run completed":
            failures += [BlockFailure(line.get("err", ""), {})] if line.get("success") is False else []
        elif line.get("level") in {"error", "critical"} or (name and looks_like_error.search(event)):
            errors.append((None if name == "?" else name, event))
    assert read_facts(lines) == LogFacts(completed, timed_out, tuple(failures), tuple(errors[-50:]))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("cannot reach postgresql://bob:hunter2@db/x", "hunter2"),
        ("login failed: password=hunter2, user=bob", "hunter2"),
        ("login failed: {'password': 'hunter2 x'}", "hunter2"),
        ('{"api_key": "abcdef"}', "abcdef"),
        ("TAP_X_CLIENT_SECRET: hunter2", "hunter2"),
        ("sent Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("token 0123456789abcdef0123456789abcdef0123 refused", "0123456789abcdef0123456789abcdef0123"),
        ("no such file: /srv/data/project/input.csv", "/srv/data"),
    ],
)
def test_sentences_hold_no_secret_and_no_folder(text: str, hidden: str) -> None:
    assert hidden not in redacted(text)


def test_sentences_are_short_and_of_one_line() -> None:
    assert len(redacted("x y\n" * 5000)) <= 400
    assert redacted("Error:\n  what   now") == "Error: what now"
    assert redacted("select 30,911 of 336,776 rows in 1.5 s") == "select 30,911 of 336,776 rows in 1.5 s"


def test_a_line_that_is_nested_too_deeply_is_text() -> None:
    deep = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert read_facts([deep, b'{"event":"Run completed","status":"success"}']).completed is True
