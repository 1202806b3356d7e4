"""How commands of the command line speak to a running service.

Strategy: on the same machine the service is found through its address file and a token is signed with its own key, so
`flx run` needs no options; elsewhere `--url` and `--token` (or FLX_URL and FLX_TOKEN) say both. A problem document
becomes a `CommandFailed` with its sentence.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import httpx

from flx_api.addresses import is_loopback
from flx_api.cli.runtime import running_service
from flx_api.config import secret_of
from flx_api.daemon.tokens import issue
from flx_api.errors import NOT_NOW, StartupError
from flx_api.models.rate_limit import duration_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from flx_api.config import Settings

_TIMEOUT_S = 60
_WAIT_MS = 25_000
# A service that is started again is back by then.
_PATIENCE_S = 15.0
_AGAIN_S = 0.4
OVER = frozenset({"succeeded", "succeeded_with_warnings", "failed", "cancelled", "timed_out", "crashed"})


class CommandFailed(Exception):
    """The service refused or failed. `str()` is one line for the person at the terminal.

    `is_passing`: it may be another answer a little later.
    """

    def __init__(self, sentence: str, *, is_passing: bool = False) -> None:
        super().__init__(sentence)
        self.is_passing = is_passing


def mint(settings: Settings, subject: str, roles: Sequence[str], *, tenant: str, ttl: str) -> str:
    """A token that the service of these settings accepts.

    Raises:
        StartupError: there is no key, or `ttl` is no duration.
    """
    try:
        lifetime_s = duration_ms(ttl) // 1000
    except ValueError as error:
        msg = f"--ttl: {error}"
        raise StartupError(msg) from None
    return issue(
        secret_of(settings),
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        subject=subject,
        roles=roles,
        tenant=tenant,
        now_s=int(time.time()),
        jti=secrets.token_urlsafe(16),
        ttl_s=lifetime_s,
    ).token


class Patience:
    """How long a service that is away for a moment is asked again."""

    def __init__(self) -> None:
        self._ends: float | None = None

    def renew(self) -> None:
        """It answers."""
        self._ends = None

    def bear(self, failed: CommandFailed) -> None:
        """Wait for a little, or raise what lasts or has lasted too long."""
        now = time.monotonic()
        self._ends = self._ends or now + _PATIENCE_S
        if not failed.is_passing or now > self._ends:
            raise failed
        time.sleep(_AGAIN_S)


class Client:
    """A connection to one service.

    Args:
        url: the service's base URL.
        token: what every request carries: a token, a function that makes a new one, or None.
    """

    def __init__(self, url: str, token: str | Callable[[], str] | None) -> None:
        self.url = url.rstrip("/")
        self.token = token
        # No proxy knows the way to this machine.
        elsewhere = not is_loopback(httpx.URL(self.url).host)
        self._http = httpx.Client(base_url=self.url, auth=self._sign, timeout=_TIMEOUT_S, trust_env=elsewhere)

    @classmethod
    def find(cls, settings: Settings, url: str | None = None, token: str | None = None) -> Self:
        """A client for the named service, or for the one that runs on this data folder.

        Raises:
            StartupError: no service is named and none is running here, or it cannot be reached as what it is named.
        """
        url, token = url or os.environ.get("FLX_URL"), token or os.environ.get("FLX_TOKEN")
        if url is None:
            found = running_service(settings)
            if found is None:
                msg = f"no service runs on {settings.data_path}; start one with `flx serve`, or name one with --url"
                raise StartupError(msg)
            host = httpx.URL(found.url).host
            if settings.trusted_hosts and host not in settings.trusted_hosts:
                msg = f"FLX_TRUSTED_HOSTS: does not name {host}, where commands on this machine ask"
                raise StartupError(f"{msg}; add it, or name the service with --url")
            # Made anew as often as one is needed: a command may go on for longer than a token lives.
            own = partial(mint, settings, _person(), ["admin"], tenant="default", ttl="1h")
            return cls(found.url, token or own)
        _check_url(url)
        return cls(url, token)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def _sign(self, request: httpx.Request) -> httpx.Request:
        token = self.token() if callable(self.token) else self.token
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        """One request; a refusal is raised.

        Raises:
            CommandFailed: the service cannot be reached, refused or failed.
        """
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if answer.is_error:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: httpx.HTTPError) -> CommandFailed:
        return CommandFailed(f"{self.url} cannot be reached: {error}", is_passing=True)

    def run(self, pipeline: str) -> str:
        """Start a pipeline and return its execution's id."""
        answer = self.ask("POST", f"/v1/pipelines/{pipeline}/run", json={})
        return answer.headers["location"].rsplit("/", 1)[-1]

    def plan(self, pipeline: str) -> dict[str, Any]:
        """What a start of a pipeline would do now; nothing is started."""
        request = {"command": "pipeline.run", "args": {"id": pipeline}, "dry_run": True}
        found: dict[str, Any] = self.ask("POST", "/v1/execute", json=request).json()["result"]
        return found

    def execution(self, execution: str) -> dict[str, Any]:
        """An execution as it is now."""
        found: dict[str, Any] = self.ask("GET", f"/v1/executions/{execution}").json()
        return found

    def wait(self, execution: str) -> dict[str, Any]:
        """An execution when it is over; a service that is away for a moment is asked again."""
        patience = Patience()
        while True:
            try:
                answer = self.ask("GET", f"/v1/executions/{execution}/wait", params={"timeout_ms": _WAIT_MS})
            except CommandFailed as failed:
                patience.bear(failed)
                continue
            patience.renew()
            found: dict[str, Any] = answer.json()
            if found["status"] in OVER:
                return found

    def log_page(self, execution: str, from_line: int, limit: int) -> dict[str, Any]:
        """Lines of a log, at most `limit`, with `next_line` to go on from."""
        args = {"id": execution, "from_line": from_line, "limit": limit}
        answer = self.ask("POST", "/v1/execute", json={"command": "execution.logs", "args": args})
        found: dict[str, Any] = answer.json()["result"]
        return found

    def follow(self, execution: str, from_line: int) -> Iterator[str]:
        """Lines of a log as they come, until the execution is over; over as many connections as it takes.

        Raises:
            CommandFailed: the service refuses, or is gone for good.
        """
        patience = Patience()
        while True:
            try:
                for line in self._lines(execution, from_line):
                    patience.renew()
                    from_line = line["line"] + 1
                    yield line["text"]
            except CommandFailed as failed:
                patience.bear(failed)
            else:
                return

    def _lines(self, execution: str, from_line: int) -> Iterator[dict[str, Any]]:
        path, params = f"/v1/executions/{execution}/logs", {"from": str(from_line), "follow": "true"}
        timeout = httpx.Timeout(_TIMEOUT_S, read=None)
        try:
            with self._http.stream("GET", path, params=params, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                rest = b""
                # Lines of text may have other ends within them, for which a library would look too.
                for part in answer.iter_bytes():
                    *whole, rest = (rest + part).split(b"\n")
                    yield from map(json.loads, whole)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def streams(self, execution: str) -> dict[str, Any]:
        """The row ledger of an execution."""
        found: dict[str, Any] = self.ask("GET", f"/v1/executions/{execution}/streams").json()
        return found


def _check_url(url: str) -> None:
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL:
        found = httpx.URL()
    if found.scheme not in {"http", "https"} or not found.host:
        msg = "--url (or FLX_URL): is no address such as http://localhost:8000"
        raise StartupError(msg)


def _refusal(answer: httpx.Response) -> CommandFailed:
    return CommandFailed(_sentence(answer), is_passing=answer.status_code in NOT_NOW)


def _sentence(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        fields = "; ".join(f"{found['field']}: {found['reason']}" for found in problem.get("errors", ()))
        return f"{problem['code']}: {problem['detail']}{f' ({fields})' if fields else ''}"
    except (ValueError, KeyError, TypeError):
        return f"the service answered {answer.status_code}"


def _person() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid-{os.getuid()}"
