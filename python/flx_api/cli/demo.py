"""`flx demo`: a real service, a real user, real pipelines on real data, all through the API.

Strategy: the demo does what a person would: it starts `flx serve`, makes a user, logs in over HTTP, starts two
pipelines side by side (one tap twice at once, which plain Meltano cannot do), follows them over the WebSocket, then
shows the row ledgers and one answer from the warehouse. It is a client like any other; every number it prints comes
from the service or the warehouse.

Rules:
- It succeeds only when every record that left the extractor was found at the destination, in both pipelines.
- Whatever happens, the service is stopped before it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flx_api.cli import demo_folder, runtime, users
from flx_api.cli.client import Client, CommandFailed
from flx_api.cli.demo_progress import StreamProgress
from flx_api.cli.follow import execution_events
from flx_api.config import Settings, load
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flx_api.cli.runtime import Endpoints

_PIPELINES = ("nyc-to-jsonl", "nyc-warehouse")
_READY_S = 60.0
_STOP_S = 15.0
_USER = "demo"
_WIDTH = 100
_QUESTION = "Which New York airport had the worst weather each month of 2013? (hours)"
_QUERY = """
select
    month, airport, hours_observed as hours,
    windy_hours as windy, low_visibility_hours as low_visibility, wet_hours as wet
from analytics.worst_weather where rank_in_month = 1 order by month_number
"""


class Demo:
    """One run of the demo in its work folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._console = Console(highlight=False)
        if not self._console.is_terminal:  # a file or a pipe has no width; tables need a little more than 80
            self._console = Console(highlight=False, width=_WIDTH)
        self._log = folder / "serve.log"

    def run(self) -> int:
        """Do it all; 0 only when both pipelines are verified with the same number of records."""
        started = time.monotonic()
        self._console.rule("[bold]FLX API demo[/bold]", align="left")
        environment = demo_folder.prepare(self._folder, self._say, fresh=True)
        settings = load({"FLX_PROJECT": str(self._folder), "FLX_MELTANO": str(environment), "FLX_API_PORT": "0"})
        with self._serving(settings) as endpoints:
            client = self._log_in(settings, endpoints)
            with client:
                ends = self._pipelines(client)
            self._answer()
        self._say(f"the service has stopped; everything it wrote is in {self._folder}")
        good = all(end["verdict"] == "verified" for end in ends) and len({end["records"] for end in ends}) == 1
        records = " and ".join(f"{end['records'] or 0:,}" for end in ends)
        took = f"{time.monotonic() - started:.1f} s"
        if good:
            self._console.print(
                f"[green]Both pipelines verified: {records} records, counted at both ends. {took}[/green]"
            )
            self._say("your own project: flx serve --project DIR   documentation: README.md and docs/")
            return 0
        verdicts = ", ".join(
            f"{name} {end['status']}/{end['verdict']}" for name, end in zip(_PIPELINES, ends, strict=True)
        )
        self._console.print(f"[red]Not verified: {verdicts} ({records} records).[/red] The service's log: {self._log}")
        return 1

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    # ---- the service ----

    @contextlib.contextmanager
    def _serving(self, settings: Settings) -> Iterator[Endpoints]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FLX_")}
        environ |= {"FLX_PROJECT": str(settings.project_dir), "FLX_MELTANO": str(settings.meltano), "FLX_API_PORT": "0"}
        # The demo starts its runs itself: at midnight the project's schedule would come between.
        environ |= {"FLX_SCHEDULES": "off", "FLX_REALTIME_PORT": "0"}
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flx_api", "serve"],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            began = time.monotonic()
            while (found := runtime.running_service(settings)) is None:
                if process.poll() is not None or time.monotonic() - began > _READY_S:
                    lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    msg = f"demo: the service did not start: {lines[-1] if lines else 'it said nothing'}"
                    raise StartupError(msg)
                time.sleep(0.02)
            self._say(f"flx serve is ready after {time.monotonic() - began:.2f} s: {found.url} (documentation: /docs)")
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log_in(self, settings: Settings, endpoints: Endpoints) -> Client:
        password = secrets.token_urlsafe(18)
        users.add(settings, _USER, ["operator"], password)
        with Client(endpoints.url, None) as anyone:
            answer = anyone.ask("POST", "/auth/login", json={"username": _USER, "password": password}).json()
        self._say(f"user {_USER!r} made and logged in over HTTP; the token is good for {answer['expires_in']} s")
        return Client(endpoints.url, answer["access_token"])

    # ---- the pipelines ----

    def _pipelines(self, client: Client) -> list[dict[str, Any]]:
        """Start all pipelines, follow them side by side, and return how each ended."""
        self._console.print()
        executions = {client.run(name): name for name in _PIPELINES}
        for execution, name in executions.items():
            self._console.print(f"[bold]{name}[/bold] is execution {execution}", soft_wrap=True)
        with StreamProgress(self._console) as progress:
            for event in execution_events(client, *executions):
                _, execution, kind = event.event.split(".")
                if kind == "metric":
                    progress.update(executions[execution], event.data)
                elif kind == "status":
                    progress.status(executions[execution], event.data["status"])
        return [self._end(client, execution, name) for execution, name in executions.items()]

    def _end(self, client: Client, execution: str, name: str) -> dict[str, Any]:
        end = client.wait(execution)
        took = ((end["finished_us"] or 0) - (end["started_us"] or 0)) / 1e6
        self._console.print()
        self._console.print(self._ledger(client, execution, name))
        self._console.print(
            f"{end['status']}, {end['verdict'] or 'not counted'}: {end['records'] or 0:,} records, {took:.1f} s"
        )
        for warning in end.get("warnings", ()):
            self._say(f"  warning: {warning}")
        if end.get("error"):
            self._say(f"  error: {end['error']}")
        return end

    @staticmethod
    def _ledger(client: Client, execution: str, name: str) -> Table:
        table = Table("stream", title=f"row ledger of {name}", title_justify="left")
        for heading in ("in the pipe", "at the destination"):
            table.add_column(heading, justify="right")
        table.add_column("verdict")
        ledger = client.streams(execution)["ledger"] or {"blocks": []}
        for block in ledger["blocks"]:
            for stream in block["streams"]:
                numbers = [stream["piped"], stream["loaded_found"]]
                table.add_row(
                    stream["stream"],
                    *("-" if number is None else f"{number:,}" for number in numbers),
                    stream["verdict"] + (f": {stream['reason']}" if stream.get("reason") else ""),
                )
        return table

    # ---- the warehouse ----

    def _answer(self) -> None:
        """Ask the warehouse one question, with the dbt plugin's own DuckDB."""
        script = (
            "import duckdb, json, sys; "
            "rows = duckdb.connect(sys.argv[1], read_only=True).execute(sys.argv[2]); "
            "print(json.dumps([[c[0] for c in rows.description], *rows.fetchall()], default=str))"
        )
        warehouse = self._folder / "output" / "warehouse.duckdb"
        done = subprocess.run(  # noqa: S603 - the plugin's own interpreter, our own words
            [str(demo_folder.plugin_python(self._folder, "dbt-duckdb")), "-c", script, str(warehouse), _QUERY],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            msg = f"the warehouse cannot be asked: {done.stderr.strip().splitlines()[-1:]}"
            raise CommandFailed(msg)
        headings, *rows = json.loads(done.stdout)
        table = Table(*(heading.replace("_", " ") for heading in headings), title=_QUESTION, title_justify="left")
        for row in rows:
            table.add_row(*(str(value) for value in row))
        self._console.print()
        self._console.print(table)
