"""The registry: each command declared once.

Strategy: a command is a name, the structs of its arguments and result, what repeating it means, whether it goes on
after the answer, and a sentence. HTTP routes, permissions, the OpenAPI document, `command.list` and the documentation
are made from this list; handlers are bound to the names in `flx_api.daemon.handlers`, and a test holds that both agree.

Rules:
- The permission to call a command is its name. Some are for `everyone` who has a token: they concern the caller alone.
- `idempotency`: read (changes nothing), idempotent (repeating leaves things as they are), key (only an idempotency key
  makes repeating harmless), none. A key is honoured by all that is idempotent or key: repeated, the command is answered
  and not carried out again. With read and none it means nothing.
- `mode`: unary answers with the result; long answers `accepted` and goes on.
- `vital`: what stops something or tells how things are, and costs little; a part of the room is kept for it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Literal, NamedTuple

from flx_api.errors import NotFound
from flx_api.models import auth, connection, event, execution, monitoring, pipeline, presence, project, schedule

if TYPE_CHECKING:
    import msgspec

Idempotency = Literal["read", "idempotent", "key", "none"]


class Command(NamedTuple):
    """One command. `public` ones need no token, those for `everyone` no role; `vital` ones find room in an overload."""

    name: str
    args: type[msgspec.Struct]
    result: type[msgspec.Struct]
    idempotency: Idempotency
    mode: Literal["unary", "long"]
    sentence: str
    public: bool = False
    everyone: bool = False
    vital: bool = False


def _table(*commands: Command) -> dict[str, Command]:
    return {command.name: command for command in commands}


COMMANDS: dict[str, Command] = _table(
    Command("command.list", project.NoArgs, monitoring.CommandPage, "read", "unary", "All commands."),
    Command(
        "command.describe",
        project.CommandNameArgs,
        monitoring.CommandDescription,
        "read",
        "unary",
        "One command with the JSON Schemas of its arguments and its result.",
    ),
    Command("project.get", project.NoArgs, project.Project, "read", "unary", "The Meltano project in short."),
    Command(
        "project.validate",
        project.NoArgs,
        project.ProjectValidation,
        "read",
        "unary",
        "Read the project's files anew and name every field that is wrong.",
    ),
    Command("plugin.list", project.PluginListArgs, project.PluginPage, "read", "unary", "The project's plugins."),
    Command(
        "environment.list", project.NoArgs, project.EnvironmentPage, "read", "unary", "The project's environments."
    ),
    Command("pipeline.list", pipeline.PipelineListArgs, pipeline.PipelinePage, "read", "unary", "Pipelines, by name."),
    Command("pipeline.get", pipeline.PipelineIdArgs, pipeline.Pipeline, "read", "unary", "One pipeline."),
    Command("pipeline.create", pipeline.PipelineCreateArgs, pipeline.Pipeline, "key", "unary", "Make a pipeline."),
    Command(
        "pipeline.update",
        pipeline.PipelineUpdateArgs,
        pipeline.Pipeline,
        "idempotent",
        "unary",
        "Change a pipeline that the API made.",
    ),
    Command(
        "pipeline.delete",
        pipeline.PipelineDeleteArgs,
        pipeline.Deleted,
        "idempotent",
        "unary",
        "Delete a pipeline that the API made; its executions stay.",
    ),
    Command("pipeline.run", pipeline.PipelineRunArgs, execution.Execution, "key", "long", "Start a pipeline."),
    Command(
        "execution.list",
        execution.ExecutionListArgs,
        execution.ExecutionPage,
        "read",
        "unary",
        "Executions, newest first.",
    ),
    Command("execution.get", execution.ExecutionIdArgs, execution.Execution, "read", "unary", "One execution."),
    Command(
        "execution.cancel",
        execution.ExecutionCancelArgs,
        execution.Execution,
        "idempotent",
        "unary",
        "End a run: SIGTERM to its whole process group, SIGKILL after a grace.",
        vital=True,
    ),
    Command(
        "execution.wait",
        execution.ExecutionWaitArgs,
        execution.Execution,
        "read",
        "unary",
        "The execution when it is over, or as it is when the time is up.",
    ),
    Command(
        "execution.logs",
        execution.ExecutionLogsArgs,
        execution.LogPage,
        "read",
        "unary",
        "Lines of an execution's log by line number.",
    ),
    Command(
        "execution.streams",
        execution.ExecutionIdArgs,
        execution.StreamsResult,
        "read",
        "unary",
        "The row ledger: records in the pipe, rows at the destination, and a verdict for each stream.",
    ),
    Command(
        "execution.attempts",
        execution.ExecutionIdArgs,
        execution.AttemptPage,
        "read",
        "unary",
        "The attempts of an execution: when, how they ended, and why there was another one.",
    ),
    Command(
        "execution.retry",
        execution.ExecutionIdArgs,
        execution.Execution,
        "key",
        "long",
        "Try an execution again that has ended without success; one that waits for its next attempt goes on at once.",
    ),
    Command(
        "schedule.list",
        schedule.ScheduleListArgs,
        schedule.SchedulePage,
        "read",
        "unary",
        "The schedules of meltano.yml with their next fire times and what became of the last.",
    ),
    Command("schedule.get", schedule.ScheduleGetArgs, schedule.Schedule, "read", "unary", "One schedule."),
    Command(
        "schedule.enable",
        schedule.ScheduleNameArgs,
        schedule.Schedule,
        "idempotent",
        "unary",
        "Let a schedule fire again, from now on.",
    ),
    Command(
        "schedule.disable",
        schedule.ScheduleNameArgs,
        schedule.Schedule,
        "idempotent",
        "unary",
        "Keep a schedule from firing; runs that have begun go on.",
        vital=True,
    ),
    Command(
        "schedule.run",
        schedule.ScheduleRunArgs,
        execution.Execution,
        "key",
        "long",
        "Run now what a schedule runs, with its variables.",
    ),
    Command(
        "system.status", project.NoArgs, monitoring.SystemStatus, "read", "unary", "How the daemon is.", vital=True
    ),
    Command(
        "system.info", project.NoArgs, monitoring.SystemInfo, "read", "unary", "Versions and identity.", vital=True
    ),
    Command(
        "system.echo",
        project.EchoArgs,
        project.EchoArgs,
        "read",
        "unary",
        "Return the arguments as they came: for probes and benchmarks.",
    ),
    Command(
        "connection.list",
        connection.ConnectionListArgs,
        connection.ConnectionPage,
        "read",
        "unary",
        "Live connections, to all gateways.",
    ),
    Command(
        "connection.slowest",
        connection.ConnectionSlowestArgs,
        connection.SlowConnections,
        "read",
        "unary",
        "Those connections, to all gateways, which are furthest behind.",
    ),
    Command(
        "connection.disconnect",
        connection.ConnectionDisconnectArgs,
        connection.Disconnected,
        "key",
        "unary",
        "End a connection, or those of a subject or client id, on all gateways.",
        vital=True,
    ),
    Command(
        "presence.list",
        presence.PresenceListArgs,
        presence.PresenceList,
        "read",
        "unary",
        "Who hears a topic of applications, where its rule says that this is told.",
    ),
    Command("event.publish", event.PublishArgs, event.Published, "key", "unary", "Tell those who subscribed."),
    Command(
        "auth.login",
        auth.LoginArgs,
        auth.LoginResult,
        "none",
        "unary",
        "Exchange a user name and a password for an access token.",
        public=True,
    ),
    Command(
        "auth.logout",
        auth.LogoutArgs,
        auth.LogoutResult,
        "idempotent",
        "unary",
        "End the token or session that asks, or all of its subject's.",
        everyone=True,
        vital=True,
    ),
    Command(
        "token.revoke",
        auth.TokenRevokeArgs,
        auth.Revocation,
        "idempotent",
        "unary",
        "Revoke a token, a session, a subject's tokens or a key.",
        vital=True,
    ),
    Command(
        "token.revocations",
        auth.RevocationListArgs,
        auth.RevocationPage,
        "read",
        "unary",
        "Revocations in force, newest first.",
    ),
    Command(
        "token.restore",
        auth.RevocationIdArgs,
        auth.Revocation,
        "idempotent",
        "unary",
        "Take a revocation back.",
    ),
    Command("user.add", auth.UserAddArgs, auth.User, "key", "unary", "Make a user who can log in."),
    Command(
        "user.update",
        auth.UserUpdateArgs,
        auth.User,
        "idempotent",
        "unary",
        "Change a user's roles or password, or disable it; its tokens end.",
        vital=True,
    ),
)

VITAL: frozenset[str] = frozenset(command.name for command in COMMANDS.values() if command.vital)
"""The names of those that find room in an overload."""


def find(name: str) -> Command:
    """The command of a name.

    Raises:
        NotFound: `unknown_command`, with the nearest names as suggestions.
    """
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.5)
        detail = "There is no command of this name" + (f"; near are: {', '.join(near)}" if near else "")
        raise NotFound(detail, code="unknown_command", suggestions=near)
    return command
