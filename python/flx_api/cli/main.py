"""The commands of `flx`, one function each; what a command needs is imported when it is called.

Rules:
- What goes wrong is raised; `flx_api.cli.entry` makes a line and an exit code of it.
- Options override settings (FLX_ variables) and have no defaults of their own; `flx config show` says what is in force.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flx_api.cli import entry
from flx_api.cli.entry import say
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from flx_api.cli.client import Client
    from flx_api.config import Settings

app = typer.Typer(
    name="flx",
    help="A Meltano project as a service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
token_app = typer.Typer(help="Access tokens.", no_args_is_help=True)
user_app = typer.Typer(help="Users who can log in.", no_args_is_help=True)
config_app = typer.Typer(help="Settings.", no_args_is_help=True)
app.add_typer(token_app, name="token")
app.add_typer(user_app, name="user")
app.add_typer(config_app, name="config")

ProjectOption = Annotated[str | None, typer.Option("--project", help="The Meltano project's folder (FLX_PROJECT).")]
UrlOption = Annotated[str | None, typer.Option("--url", help="A service elsewhere (FLX_URL).")]
TokenOption = Annotated[str | None, typer.Option("--token", help="A token for it (FLX_TOKEN).")]


@app.command()
def serve(
    project: ProjectOption = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on (FLX_API_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes any free one (FLX_API_PORT).")] = None,
    realtime_port: Annotated[
        str | None, typer.Option(help="The native listener's port; 0 takes any free one, off none (FLX_REALTIME_PORT).")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Gateway processes (FLX_WORKERS).")] = None,
) -> None:
    """Serve a Meltano project until Ctrl-C."""
    if realtime_port is not None:
        os.environ["FLX_REALTIME_PORT"] = realtime_port
    entry.serve({"project": project, "api_host": host, "api_port": port, "workers": workers})


@app.command()
def daemon(
    project: ProjectOption = None,
    socket: Annotated[Path | None, typer.Option(help="Where to listen; in the runtime directory by default.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT to listen on in its place (FLX_GRPC_LISTEN).")] = None,
) -> None:
    """Run only the daemon, in the foreground; `flx serve` does this by itself."""
    from flx_api.cli import meltano, runtime  # noqa: PLC0415
    from flx_api.daemon.main import run_daemon  # noqa: PLC0415

    settings = _settings(project=project, grpc_listen=listen)
    if socket is not None and listen is not None:
        msg = "--listen: the daemon listens on a socket or on TCP, not on both"
        raise StartupError(msg)
    runtime.check_project(settings)
    runtime.prepare_data_folder(settings)
    folder = meltano.ensure(meltano.environment_folder(settings), say)
    settings = _settings(project=project, grpc_listen=listen, meltano=str(folder))
    if socket is None and settings.listening is not None:
        raise SystemExit(run_daemon(settings, tcp=settings.listening, environ=os.environ))
    place = socket or runtime.make_runtime_dir(settings, dict(os.environ)) / "daemon.sock"
    raise SystemExit(run_daemon(settings, socket_path=place, environ=os.environ))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="The demo's work folder.")] = Path("flx-demo"),
    *,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Make everything ready and stop.")] = False,
) -> None:
    """Run real pipelines on real data through the API, and show what was counted."""
    from flx_api.cli import demo_folder  # noqa: PLC0415

    if prepare_only:
        demo_folder.prepare(folder.resolve(), say, fresh=False)
        return
    from flx_api.cli.demo import Demo  # noqa: PLC0415

    raise SystemExit(Demo(folder.resolve()).run())


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A job of meltano.yml, or a pipeline made through the API.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log and wait for its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Start nothing; say what would happen.")] = False,
    project: ProjectOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Start a pipeline; prints the execution's id. With --follow, exit 0 only when it succeeded.

    With --dry-run, exit 0 only when it would be accepted.
    """
    with _client(project, url, token) as client:
        if dry_run:
            from flx_api.cli.show import planned  # noqa: PLC0415

            raise SystemExit(planned(client.plan(pipeline)))
        execution = client.run(pipeline)
        print(execution, flush=True)
        if follow:
            from flx_api.cli.show import follow_log, verdict  # noqa: PLC0415

            follow_log(client, execution)
            raise SystemExit(verdict(client, execution))


@app.command()
def logs(
    execution: Annotated[str, typer.Argument(help="An execution's id.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the execution is over.")] = False,
    from_line: Annotated[int, typer.Option("--from", help="The first line.")] = 1,
    project: ProjectOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Print an execution's log."""
    from flx_api.cli.show import print_log  # noqa: PLC0415

    with _client(project, url, token) as client:
        print_log(client, execution, from_line=from_line, follow=follow)


@app.command()
def watch(
    topics: Annotated[list[str], typer.Argument(help="Such as execution_events, execution.ID.log or '*'.")],
    *,
    start: Annotated[
        str | None, typer.Option("--from", help="The `pos` of an event: what came after it first.")
    ] = None,
    transport: Annotated[
        str, typer.Option(help="websocket, sse, or auto: a WebSocket, and sse where that does not get through.")
    ] = "auto",
    project: ProjectOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Print events as they happen, one JSON object a line, until Ctrl-C; `gap` lines say where some are missing."""
    from flx_api.cli.show import print_events  # noqa: PLC0415
    from flx_api.client.stream import transport_of  # noqa: PLC0415

    try:
        found = transport_of(transport)
    except ValueError as error:
        msg = f"--{error}"
        raise StartupError(msg) from None
    with _client(project, url, token) as client:
        print_events(client, topics, start=start, transport=found)


@token_app.command("mint")
def token_mint(
    sub: Annotated[str, typer.Option(help="Whom the token names.")],
    role: Annotated[list[str] | None, typer.Option(help="viewer, operator, developer or admin; repeatable.")] = None,
    tenant: Annotated[str, typer.Option(help="The tenant.")] = "default",
    ttl: Annotated[str, typer.Option(help="How long it is good, such as 15m or 1h.")] = "1h",
    project: ProjectOption = None,
) -> None:
    """Print a token that the service accepts, alone on stdout."""
    from flx_api.cli.client import mint  # noqa: PLC0415
    from flx_api.commands.permissions import ROLES  # noqa: PLC0415

    unknown = [name for name in role or [] if name not in ROLES]
    if unknown:
        msg = f"--role: {unknown[0]} is none of {', '.join(ROLES)}"
        raise StartupError(msg)
    print(mint(_settings(project=project), sub, role or ["viewer"], tenant=tenant, ttl=ttl))


@user_app.command("add")
def user_add(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    role: Annotated[list[str], typer.Option(help="viewer, operator, developer or admin; repeatable.")],
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    project: ProjectOption = None,
) -> None:
    """Make a user, through the running daemon or straight into the database when none runs."""
    from flx_api.cli.users import add  # noqa: PLC0415

    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    add(_settings(project=project), name, role, password)
    say(f"user {name} may log in ({', '.join(role)})")


@config_app.command("show")
def config_show(project: ProjectOption = None) -> None:
    """Print the settings in force, secrets redacted."""
    from flx_api.config import shown  # noqa: PLC0415

    for setting, value in shown(_settings(project=project)).items():
        print(f"{setting}={value}")


@config_app.command("check")
def config_check(project: ProjectOption = None) -> None:
    """Check the settings and the project; exit 2 with one line when something is wrong."""
    from flx_api.cli import runtime  # noqa: PLC0415
    from flx_api.config import describe  # noqa: PLC0415

    settings = _settings(project=project)
    if settings.grpc_daemon_host is None:
        runtime.check_project(settings)
    runtime.check_limits(settings)
    runtime.check_certificate(settings)
    known = {setting.name for setting in describe()} | {"FLX_URL", "FLX_TOKEN"}
    for name in sorted(name for name in os.environ if name.startswith("FLX_") and name not in known):
        print(f"{name}: is no setting of this version, and has no effect", file=sys.stderr)
    print("the settings are acceptable")


@app.command()
def doctor(project: ProjectOption = None) -> None:
    """Look at everything a service needs and say how to mend what is broken; exit 1 when something is."""
    from flx_api.cli.doctor import examine  # noqa: PLC0415

    raise SystemExit(examine(_settings(project=project)))


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from flx_api.cli.show import openapi_document  # noqa: PLC0415

    print(openapi_document())


@app.command()
def asyncapi() -> None:
    """Print the AsyncAPI document: the messages of the WebSocket."""
    from flx_api.cli.show import asyncapi_document  # noqa: PLC0415

    print(asyncapi_document())


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of  # noqa: PLC0415

    print(version_of("flx-api"))


def _settings(**overrides: Any) -> Settings:  # noqa: ANN401 - as many shapes as there are settings
    from flx_api.config import load  # noqa: PLC0415

    return load(os.environ, overrides)


def _client(project: str | None, url: str | None, token: str | None) -> Client:
    from flx_api.cli.client import Client  # noqa: PLC0415

    return Client.find(_settings(project=project), url, token)
