"""All HTTP routes, declared once: what the framework binds, what the edge lets through, what the documentation says.

Rules:
- A resource route is a command with its arguments spread over path, query and body; it has no logic of its own.
- `after` names what makes the HTTP answer differ from the command's result.
- A test holds that this table, the application and the OpenAPI document agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from flx_api.gateway.paths import Access

After = Literal["plain", "created", "revision", "deleted", "accepted", "cancelled", "waited"]


class Resource(NamedTuple):
    """A route that stands for a command. `body`: the arguments come as JSON; `optional` allows none."""

    method: str
    template: str
    command: str
    sentence: str
    body: Literal["none", "required", "optional"] = "none"
    after: After = "plain"
    access: Access = "token"

    @property
    def guarded(self) -> bool:
        """Whether `If-Match` says which revision must be the present one."""
        return self.after in {"revision", "deleted"} and self.method != "GET"


class Page(NamedTuple):
    """A route of the gateway's own; `result` is a model, a media type, or empty for the command reply."""

    method: str
    template: str
    sentence: str
    access: Access
    media: str = "application/json"


RESOURCES: Final[tuple[Resource, ...]] = (
    Resource("POST", "/auth/login", "auth.login", "Exchange a password for a token.", "required", access="public"),
    Resource("POST", "/auth/logout", "auth.logout", "End the token that asks.", "optional"),
    Resource("POST", "/v1/auth/revocations", "token.revoke", "Revoke a token, session, subject or key.", "required"),
    Resource("GET", "/v1/auth/revocations", "token.revocations", "Revocations in force, newest first."),
    Resource("DELETE", "/v1/auth/revocations/{id}", "token.restore", "Take a revocation back."),
    Resource("GET", "/v1/pipelines", "pipeline.list", "Pipelines, by name."),
    Resource("POST", "/v1/pipelines", "pipeline.create", "Make a pipeline.", "required", "created"),
    Resource("GET", "/v1/pipelines/{id}", "pipeline.get", "One pipeline.", after="revision"),
    Resource("PUT", "/v1/pipelines/{id}", "pipeline.update", "Change a pipeline.", "required", "revision"),
    Resource("PATCH", "/v1/pipelines/{id}", "pipeline.update", "Change a pipeline.", "required", "revision"),
    Resource("DELETE", "/v1/pipelines/{id}", "pipeline.delete", "Delete a pipeline.", after="deleted"),
    Resource("POST", "/v1/pipelines/{id}/run", "pipeline.run", "Start a pipeline.", "optional", "accepted"),
    Resource("GET", "/v1/pipelines/{pipeline}/executions", "execution.list", "Executions of one pipeline."),
    Resource("GET", "/v1/executions", "execution.list", "Executions, newest first."),
    Resource("GET", "/v1/executions/{id}", "execution.get", "One execution."),
    Resource("DELETE", "/v1/executions/{id}", "execution.cancel", "End a run.", after="cancelled"),
    Resource("GET", "/v1/executions/{id}/streams", "execution.streams", "The row ledger of an execution."),
    Resource("GET", "/v1/executions/{id}/attempts", "execution.attempts", "The attempts of an execution."),
    Resource("POST", "/v1/executions/{id}/retry", "execution.retry", "Try it again.", "optional", "accepted"),
    Resource("GET", "/v1/executions/{id}/wait", "execution.wait", "Wait until it is over.", after="waited"),
    Resource("GET", "/v1/schedules", "schedule.list", "Schedules with their next fire times."),
    Resource("GET", "/v1/schedules/{name}", "schedule.get", "One schedule."),
    Resource("POST", "/v1/schedules/{name}/enable", "schedule.enable", "Let a schedule fire again.", "optional"),
    Resource("POST", "/v1/schedules/{name}/disable", "schedule.disable", "Keep it from firing.", "optional"),
    Resource("POST", "/v1/schedules/{name}/run", "schedule.run", "Run it now.", "optional", "accepted"),
    Resource("GET", "/v1/plugins", "plugin.list", "The project's plugins."),
    Resource("GET", "/v1/environments", "environment.list", "The project's environments."),
    Resource("GET", "/v1/project", "project.get", "The Meltano project in short."),
    Resource("GET", "/v1/commands", "command.list", "All commands."),
    Resource("GET", "/v1/commands/{name}", "command.describe", "One command with its schemas."),
    Resource("GET", "/v1/system/status", "system.status", "How the daemon is."),
    Resource("GET", "/v1/system/info", "system.info", "Versions and identity."),
)

EXECUTE: Final = Page("POST", "/v1/execute", "Any command; everything in the body.", "token")
BATCH: Final = Page("POST", "/v1/batch", "Many commands, each decided about and answered by itself.", "token")
COMMAND: Final = Page("POST", "/v1/commands/{name}", "Any command; the body is its arguments.", "token")
ROOT_COMMAND: Final = Page("POST", "/{name}", "Any command by its name, which holds a dot.", "token")
LOGS: Final = Page(
    "GET",
    "/v1/executions/{id}/logs",
    "The log by line number, as it grows when asked to.",
    "token",
    "application/x-ndjson",
)
EVENTS: Final = Page("GET", "/v1/events", "Live events as a stream.", "ticket", "text/event-stream")
WHOAMI: Final = Page("GET", "/v1/auth/whoami", "Who the token speaks for.", "token")
TICKET: Final = Page("POST", "/v1/ws-ticket", "A ticket for one WebSocket or event stream.", "token")
ROOT: Final = Page("GET", "/", "What is served here.", "public")
HEALTH: Final = Page("GET", "/health", "The process lives.", "probe")
READY: Final = Page("GET", "/ready", "Whether the gateway can serve.", "probe")
METRICS: Final = Page("GET", "/metrics", "Metrics for Prometheus.", "metrics", "text/plain")
DOCS: Final = Page("GET", "/docs", "This interface, for a browser.", "public", "text/html")
ASSETS: Final = Page("GET", "/docs/{file}", "A file of the page above.", "public", "application/octet-stream")
OPENAPI: Final = Page("GET", "/openapi.json", "This interface, for programs.", "public")
ASYNCAPI: Final = Page("GET", "/asyncapi.json", "The live events, for programs.", "public")
KEYS: Final = Page("GET", "/.well-known/jwks.json", "Public keys that verify our tokens.", "public")

PAGES: Final[tuple[Page, ...]] = (
    EXECUTE, BATCH, COMMAND, ROOT_COMMAND, LOGS, EVENTS, WHOAMI, TICKET,
    ROOT, HEALTH, READY, METRICS, DOCS, ASSETS, OPENAPI, ASYNCAPI, KEYS,
)  # fmt: skip


def templates() -> frozenset[str]:
    """What a limit may be about: all routes, what leads nowhere, and WebSocket handshakes."""
    from flx_api.observability.metrics import UNMATCHED, WEBSOCKET  # noqa: PLC0415 - the table itself stays light

    return frozenset({*(of.template for of in RESOURCES), *(of.template for of in PAGES), UNMATCHED, WEBSOCKET})
