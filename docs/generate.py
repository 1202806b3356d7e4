"""Write docs/reference/*.md from the code, or with --check say which of them are out of date (exit 1).

Strategy: a page is a function that returns its text; the table at the end names them all. What a page tells is declared
once in the code (settings, commands, errors, metrics, the command line); nothing is written here that is known there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from flx_api.commands import COMMANDS, Command
from flx_api.commands.permissions import ROLES, permits
from flx_api.config import describe
from flx_api.errors import CODES, STATUSES
from flx_api.models.event import TOPICS, Topic
from flx_api.models.message import BatchedMessage, ClientMessage, Closed, ServerMessage
from flx_api.models.plan import Change, LimitCost, Permission, Plan, PlannedError, PlannedRun, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).resolve().parent / "reference"
_NOTE = "<!-- Written by docs/generate.py (`make docs`); change the code, not this page. -->\n"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def settings_page() -> str:
    """Every setting."""
    rows = [[f"`{s.name}`", s.type, f"`{s.default}`" if s.default else "", s.sentence] for s in describe()]
    return (
        "# Settings\n\nSettings are environment variables; some have an option of `flx serve`, which wins. "
        "`flx config show` prints those in force.\n\n" + table(["setting", "type", "default", "meaning"], rows)
    )


_BATCHES = """\
Up to 1,000 of them go in one request: `POST /v1/batch` with `{"mode": "parallel", "fail_fast": false, "operations":
[{"command": NAME, "args": {...}}, ...]}`. An operation has the fields of a body of `/v1/execute`, its own
`idempotency_key` among them, and is decided about by itself: permission, limits and cost of its command, arguments,
deadline (from when it is begun). A body that cannot be read as a whole is refused with the field at fault, and
nothing is carried out; else the status is 200 and `results` holds, in the order of the operations, `{index, id,
command, status, result or error, meta}`, an error being a problem document. `ordered` begins each when the one before
it has ended; `fail_fast` begins nothing after the first failure, and what was not begun says `not_attempted`. With
`Accept: application/x-ndjson` each result is a line when it is ready, and the last line holds the totals. Who leaves
ends the batch; what was accepted goes on.

"""


_PLANS = """\
`dry_run` (true in the body or an operation of a batch, `?dry_run=true` on any other route of a command; of a whole
batch: `"dry_run": true` beside `operations`) changes nothing and answers with a plan, and 200: the `result` is a
`Plan`, and `meta.dry_run` is true. The command takes its usual way up to the change itself, which is made and undone
in the database, so the plan is what the command would do at this moment; each operation of a batch is planned against
the present state, not what those before it would leave. Nothing is emitted, started or kept, an idempotency key is
looked up and not used up.

- Who may not call the command gets `outcome: refused` and `permission.allowed: false`, and nothing else is looked at.
- What the command would be refused for (403, 404, 409, 412, 422) stands in `errors`. What is no judgement about it is
  answered as always: a request that cannot be read, 401, 429, 5xx, and a log-in with a wrong password, which is a try
  like any other.
- Of a read the plan says whether it would be answered; the answer itself is not in it, and `execution.wait` does not
  wait.
- A dry run costs what `command.describe` costs, by `/v1/execute` and `/v1/batch`; that of a log-in, what a log-in does.
  Where the path names the command, limits are decided before the rest is read, and a dry run costs what the command
  costs. `limits` tells the command's costs.

"""


_REPEATING = """\
**Repeating a command.** Give a command that changes something a key of your own (`Idempotency-Key`, or
`idempotency_key` in the body) when it must happen once. The key belongs to the subject of the token. The answer is kept
in the transaction that makes the change, for a day: the same command with the same arguments and key is answered from
there, with `meta.replayed: true` (a run with 202 and its `Location`, and the execution as it is now), and nothing
happens again. With other arguments it is 422 `idempotency_key_reuse`. What was refused changed nothing and is not kept:
it is decided about anew. A request whose first one is not written yet waits for it, and is told 409
`idempotency_in_progress` when its own deadline comes before. When a connection broke and nobody knows what became of a
command, send it again with its key, or look for the run that it began: `execution.list` with `idempotency_key`. Under
"repeating", *key* says that only a key makes it harmless, *idempotent* that it leaves things as they are anyway (a
second deletion finds nothing), *read* and *none* that a key means nothing. Requests without a key get one from the
gateway, for its own tries alone.

"""


def commands_page() -> str:
    """Every command with its arguments, result and roles."""
    text = (
        '# Commands\n\nA command is called with `POST /v1/execute` (`{"command": NAME, "args": {...}}`) or '
        "`POST /v1/commands/NAME` (the body is the arguments). The permission is the command's name.\n\n"
        + _REPEATING
        + _BATCHES
        + _PLANS
    )
    for kind in (Plan, Permission, LimitCost, PlannedError, Change, PlannedRun, Wait):
        text += f"`{kind.__name__}`: {_paragraph(kind)}\n\n"
        text += table(["field", "type"], [[f"`{name}`", shape] for name, shape, _ in _fields(kind)]) + "\n"
    rows = [
        [
            f"[`{c.name}`](#{c.name.replace('.', '')})",
            c.mode,
            c.idempotency,
            _roles(c),
            c.sentence,
        ]
        for c in COMMANDS.values()
    ]
    text += table(["command", "mode", "repeating", "roles", "does"], rows)
    for command in COMMANDS.values():
        text += f"\n## {command.name}\n\n{command.sentence}\n"
        for title, kind in (("Arguments", command.args), ("Result", command.result)):
            rows = [[f"`{name}`", shape, "yes" if needed else ""] for name, shape, needed in _fields(kind)]
            text += f"\n{title} (`{kind.__name__}`)" + (":\n\n" if rows else ": none.\n")
            text += table(["field", "type", "required" if title == "Arguments" else "always"], rows) if rows else ""
    return text


def _paragraph(kind: type[msgspec.Struct]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _roles(command: Command) -> str:
    if command.public or command.everyone:
        return "no token needed" if command.public else "any token"
    return ", ".join(role for role in ROLES if permits([role], command.name))


def _fields(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, bool]]:
    (schema,), components = msgspec.json.schema_components([kind])
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    found = components.get(name, schema)
    required = found.get("required", [])
    for field, shape in found.get("properties", {}).items():
        yield field, _shape(shape), field in required


def _shape(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_shape(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_shape(schema.get('items', {}))}" if isinstance(schema.get("items", {}), dict) else "list"
    kind = str(schema.get("type", "anything"))
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("maximum", "≤"), ("minLength", "length ≥"), ("maxLength", "length ≤"))
        if key in schema
    ]
    return f"{kind} ({', '.join(limits)})" if limits else kind


def errors_page() -> str:
    """Every error code."""
    rows = [
        [
            f"`{name}`",
            str(code.http),
            f"{code.grpc} {STATUSES[code.grpc].name}",
            code.source,
            "yes" if code.retryable else "no",
            code.title,
        ]
        for name, code in CODES.items()
    ]
    bare = [
        [f"{number} {status.name}", f"`{status.code}`", str(CODES[status.code].http)]
        for number, status in STATUSES.items()
    ]
    return (
        "# Error codes\n\nAn error is an `application/problem+json` document; `code` is one of these. "
        "`retry` says that the same request may succeed later and can do no harm (`retryable` in the document). Over "
        "gRPC a command's error is its code and document in the reply; a call without one ends with the status.\n\n"
        + table(["code", "HTTP", "gRPC", "source", "retry", "meaning"], rows)
        + "\nA gRPC status that comes without a code is told as:\n\n"
        + table(["gRPC", "code", "HTTP"], bare)
    )


def cli_page() -> str:
    """The help of every command of the command line."""
    import typer  # noqa: PLC0415 - only this page needs it

    from flx_api.cli.main import app  # noqa: PLC0415

    text = "# Command line\n"
    for name, command in _commands(typer.main.get_command(app), "flx"):
        help_text = command.get_help(command.make_context(name, [], resilient_parsing=True, terminal_width=100))
        body = "\n".join(line.rstrip() for line in help_text.splitlines())
        text += f"\n## {name}\n\n```text\n{body}\n```\n"
    return text


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - typer's own copy of click
    yield name, command
    for child, found in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(found, f"{name} {child}")


def metrics_page() -> str:
    """Every metric of a gateway."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - only this page needs it

    from flx_api.observability.metrics import Metrics  # noqa: PLC0415

    families = text_string_to_metric_families(Metrics().exposition().decode())
    rows = [[f"`{family.name}`", family.type, family.documentation] for family in families]
    return "# Metrics\n\n`GET /metrics` gives these (see `FLX_METRICS`).\n\n" + table(
        ["metric", "type", "meaning"], rows
    )


def messages_page() -> str:
    """Every message of the WebSocket, and what events carry."""
    text = (
        "# Messages\n\nWhat clients and the gateway say over the WebSocket, one JSON object a message: its `type` is "
        "in the heading. [The protocol](../protocol.md) tells how they belong together; `GET /asyncapi.json` and "
        "`flx asyncapi` give the same for programs.\n"
    )
    unions = (
        ("A client sends", ClientMessage),
        ("The gateway sends", ServerMessage),
        ("With `flx.v1`, in place of events and gaps", BatchedMessage),
    )
    for title, union in unions:
        text += f"\n## {title}\n"
        for kind in get_args(union):
            name = kind.__struct_config__.tag or f"{kind.__name__.lower()} (without `type`)"
            text += f"\n### {name}\n\n{_paragraph(kind)}\n\n{_members(kind)}"
    text += "\n## In a stream of events\n\nThere are `subscribed`, events, gaps as with `flx.v1`, and at the end:\n"
    text += f"\n### closed\n\n{_paragraph(Closed)}\n\n{_members(Closed)}"
    rows = [[f"`{_template(topic)}`", _data(topic.data), topic.sentence] for topic in TOPICS]
    text += "\n## What events carry\n\n" + table(["topic", "`data`", "when"], rows)
    for kind in dict.fromkeys(topic.data for topic in TOPICS if isinstance(topic.data, type(msgspec.Struct))):
        text += f"\n### {kind.__name__}\n\n{_paragraph(kind)}\n\n{_members(kind)}"
    return text


def _template(topic: Topic) -> str:
    return topic.template.format({"app.{}": "…", "user.{}": "{sub}"}.get(topic.template, "{id}"))


def _data(shape: Any) -> str:  # noqa: ANN401 - a struct, or a union of what JSON knows
    if shape is Any:
        return "anything"
    return f"[{shape.__name__}](#{shape.__name__.lower()})" if isinstance(shape, type) else "object or string"


def _members(kind: type[msgspec.Struct]) -> str:
    # The tag of a message stands in its heading.
    tag = kind.__struct_config__.tag_field
    rows = [[f"`{name}`", shape, "yes" if always else ""] for name, shape, always in _fields(kind) if name != tag]
    return table(["member", "type", "always"], rows) if rows else "No other members.\n"


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "errors.md": errors_page,
    "cli.md": cli_page,
    "metrics.md": metrics_page,
    "messages.md": messages_page,
}


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is out of date")
    check = parser.parse_args().check
    stale = []
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        file, text = FOLDER / name, _NOTE + make()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                file.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"docs/reference is out of date: {', '.join(stale)}; run `make docs`", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
