"""What the end of a run means: from exit record, log and ledger to an event of the state machine and a sentence.

Strategy: the exit record is the truth about the process, Meltano's own last events say whether it was a timeout and
which block failed, the meter's end records say which plugin ended how. When two plugins failed, the one that ended
first did, and the other is its consequence (a broken pipe, Meltano's SIGTERM).

Rules:
- Pure. Nothing here looks at a file or a clock; `read_facts` takes lines.
- No exit record, no success: what cannot be known is `vanished`.
- A run that ended before the cancellation reached it keeps its own end.
- Sentences are for people: names of plugins, exit codes, the last error line; never a secret, a path, more than a few
  hundred characters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flx_api.daemon.executions.states import Event
    from flx_api.daemon.executors import ExitRecord
    from flx_api.models.ledger import Ledger, PluginCost

SIGKILL, SIGTERM = 9, 15
_SHELL_SIGNAL = 128
# Meltano says 143 when it could still speak; in the first moments and in utilities the signal itself ends it.
STOPPED_CODES = frozenset({_SHELL_SIGNAL + SIGTERM, -SIGTERM, _SHELL_SIGNAL + SIGKILL, -SIGKILL})
_SIGPIPE = 13
_CONSEQUENCES = STOPPED_CODES | {_SHELL_SIGNAL + _SIGPIPE, -_SIGPIPE}

_LONGEST = 400
_KEPT_ERRORS = 50
# Up to the last @ before the path: a password may hold one.
_CREDENTIALS_IN_URL = re.compile(r"(\b[\w+.-]+://)[^\s/]+@")
_NAMED_SECRET = re.compile(
    r"""(?ix) \b
    ([\w.-]*(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|dsn)[\w.-]*)
    (["']?\s*[=:]\s*) ("[^"]*"|'[^']*'|[^\s,;)}\]]+)"""
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_LONG_RUN = re.compile(r"\b(?=[\w+/-]*\d)(?=[\w+/-]*[A-Za-z])[\w+/-]{32,}={0,2}")
_PATH = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+([\w.@+-]+)")
_LOOKS_LIKE_ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Fault)\b|\b(?:ERROR|CRITICAL|FATAL|[Ee]rror:)")


class BlockFailure(NamedTuple):
    """A block that Meltano reports as failed; `codes` are exit codes by `extractors`, `loaders` or a mapper's name."""

    error: str
    codes: dict[str, int]


class LogFacts(NamedTuple):
    """What the end of Meltano's log says. `errors` are (plugin or None, text) of lines that look like errors."""

    completed: bool | None = None
    timed_out: bool = False
    failures: tuple[BlockFailure, ...] = ()
    errors: tuple[tuple[str | None, str], ...] = ()


class Outcome(NamedTuple):
    """How an attempt ended: an event for the table, the exit code, and the sentence for `error`, if it needs one."""

    event: Event
    exit_code: int | None
    error: str | None
    warnings: tuple[str, ...] = ()


class _LogLine(msgspec.Struct):
    """The fields of a line of Meltano's log that are looked at here."""

    event: str = ""
    level: str = ""
    string_id: str | None = None
    status: str | None = None
    success: bool | None = None
    err: str | None = None
    exit_codes: dict[str, int] | None = None


_LINE = msgspec.json.Decoder(_LogLine)


def read_facts(lines: Sequence[bytes]) -> LogFacts:
    """The facts in the last lines of a log; what is no JSON object (a traceback on stderr) is looked at as text.

    From the end on, since the last errors are those that count: when there are enough, no more are looked for.
    """
    completed: bool | None = None
    timed_out = False
    failures: list[BlockFailure] = []
    errors: list[tuple[str | None, str]] = []
    for raw in reversed(lines):
        line = _decoded(raw)
        if line is None:
            if len(errors) < _KEPT_ERRORS and _looks_like_error(text := raw.decode(errors="replace").strip()):
                errors.append((None, text))
        elif line.event == "Run completed":
            completed = line.status == "success" if completed is None else completed
        elif line.event == "Run timed out":
            timed_out = True
        elif line.event == "Block run completed":
            if line.success is False:
                failures.append(BlockFailure(line.err or "", line.exit_codes or {}))
        elif len(errors) < _KEPT_ERRORS and (
            line.level in {"error", "critical"} or (line.string_id and _looks_like_error(line.event))
        ):
            errors.append((line.string_id, line.event))
    return LogFacts(completed, timed_out, tuple(reversed(failures)), tuple(reversed(errors)))


def _decoded(raw: bytes) -> _LogLine | None:
    """A line that is a JSON object; that one is not costs much less to see here than by the decoder's error."""
    if not raw.lstrip().startswith(b"{"):
        return None
    try:
        return _LINE.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _looks_like_error(text: str) -> bool:
    """Whether the pattern finds an error: looked for only where one of the words is, for it takes ten times as long."""
    return (
        "rror" in text
        or "Exception" in text
        or "ERROR" in text
        or "Fault" in text
        or "FATAL" in text
        or "CRITICAL" in text
    ) and _LOOKS_LIKE_ERROR.search(text) is not None


def judge(
    record: ExitRecord | None,
    facts: LogFacts,
    ledger: Ledger | None,
    *,
    stopped_us: int | None = None,
    cancelling: bool = False,
    timed_out: bool = False,
    timeout_s: int | None = None,
) -> Outcome:
    """How a run ended.

    Args:
        record: what the run wrote about its end; None when it is gone without a word.
        facts: of its log.
        ledger: of its meter files.
        stopped_us: when it was told to stop, if that is known.
        cancelling: somebody asked for its end.
        timed_out: we ended it because it ran too long.
        timeout_s: how long it was allowed to run.
    """
    warnings = () if ledger is None else tuple(_warning(w.code, w.stream, w.detail) for w in ledger.warnings)
    if record is None:
        if cancelling or timed_out:  # it was killed after the grace
            return _ended_by_us(None, warnings, timeout_s, cancelling=cancelling)
        return Outcome("vanished", None, "The run's process is gone and left no exit record.", warnings)
    if record.code == 0 and facts.completed is not False:
        return Outcome("success_with_warnings" if warnings else "success", 0, None, warnings)
    stopped = (cancelling or timed_out) and _was_stopped(record, stopped_us, facts)
    if stopped or facts.timed_out:
        return _ended_by_us(record.code, warnings, timeout_s, cancelling=stopped and cancelling)
    return Outcome("failure", record.code, explain(record.code, facts, ledger), warnings)


def explain(code: int, facts: LogFacts, ledger: Ledger | None) -> str:
    """Which side failed, and its last words."""
    plugins = () if ledger is None else ledger.plugins
    culprit = _culprit(plugins)
    failure = facts.failures[-1] if facts.failures else None
    if culprit is not None:
        said = _last_words(facts.errors, culprit.plugin)
        return _sentence(f"{culprit.role} {culprit.plugin} {_ended(culprit.exit_code or 0)}", said)
    if failure is not None:
        sides = [f"{_side(name)} {_ended(value)}" for name, value in failure.codes.items() if value]
        said = _last_words(facts.errors, None) if failure.codes else None
        return _sentence("; ".join(sides) or failure.error or "a block failed", said)
    if code in STOPPED_CODES or code < 0:
        return _sentence(f"the run {_ended(code)}; nobody cancelled it here", None)
    return _sentence(f"Meltano {_ended(code)}", _last_words(facts.errors, None))


def redacted(text: str) -> str:
    """One line without credentials, without folders of this machine, not longer than a person reads."""
    text = " ".join(text.split())[: _LONGEST * 4]
    text = without_url_credentials(text)
    text = _BEARER.sub(r"\1 ***", text)
    text = _NAMED_SECRET.sub(r"\1\2***", text)
    text = _LONG_RUN.sub("***", text)
    text = _PATH.sub(r"\1", text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def without_url_credentials(text: str) -> str:
    """The text with the user and password of every URL in it replaced by stars."""
    return _CREDENTIALS_IN_URL.sub(r"\1***@", text)


def _ended_by_us(code: int | None, warnings: tuple[str, ...], timeout_s: int | None, *, cancelling: bool) -> Outcome:
    if cancelling:
        return Outcome("stopped", code, None, warnings)
    return Outcome("timeout", code, _too_long(timeout_s), warnings)


def _was_stopped(record: ExitRecord, stopped_us: int | None, facts: LogFacts) -> bool:
    if record.code in STOPPED_CODES:
        return True
    if facts.timed_out or stopped_us is None:
        return False
    # The signal goes to the whole group: plugins may die of it first, and Meltano reports their failure as its own.
    return record.ended_us >= stopped_us


def _culprit(plugins: Sequence[PluginCost]) -> PluginCost | None:
    failed = [plugin for plugin in plugins if plugin.exit_code]
    if not failed:
        return None
    return min(failed, key=lambda p: (p.exit_code in _CONSEQUENCES, p.ended_us or p.started_us))


def _last_words(errors: Sequence[tuple[str | None, str]], plugin: str | None) -> str | None:
    own = [text for name, text in errors if plugin is None or name == plugin]
    # A traceback's last line names the exception; what follows it is often a farewell without content.
    telling = [text for text in own if _looks_like_error(text)]
    found = telling or own
    return found[-1] if found else None


def _ended(code: int) -> str:
    number = -code if code < 0 else code - _SHELL_SIGNAL
    if code < 0 or code in STOPPED_CODES:
        name = {SIGKILL: "SIGKILL", SIGTERM: "SIGTERM"}.get(number, f"signal {number}")
        return f"was ended by {name}"
    return f"ended with exit code {code}"


def _side(name: str) -> str:
    return {"extractors": "extractor", "loaders": "loader"}.get(name, name)


def _sentence(what: str, said: str | None) -> str:
    text = what if said is None else f"{what}: {said}"
    return redacted(text[:1].upper() + text[1:])


def _too_long(timeout_s: int | None) -> str:
    return "The run took too long." if timeout_s is None else f"The run took longer than {timeout_s} s."


def _warning(code: str, stream: str | None, detail: str) -> str:
    return f"{code}: {detail}" if stream is None else f"{code}: {stream}: {detail}"
