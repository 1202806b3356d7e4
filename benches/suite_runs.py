"""Runs: the service beside the plain Meltano CLI, on the same machine, project, plugins and data, in turn.

Strategy: every row measures ours and the CLI's once per round, alternating, on project copies of their own that share
the plugin environments; the ratio is the median over the rounds. The service is the installed command; clients use real
HTTP and WebSocket connections. Everything is byte-compiled for both sides before the clock starts.

Rules:
- A run that does not end `succeeded` fails the benchmark; a fast wrong answer is no answer.
- The metering row compares two runs of the same executor, with and without the meter, on 336,776 real rows.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from tests.service import ROOT, Service, copy_project
from websockets.sync.client import connect

from benches.flights import ROWS, flights_project
from benches.record import Suite
from flx_api import _core
from flx_api.daemon import meter
from flx_api.daemon.executors import RunSpec
from flx_api.daemon.executors.local import LocalExecutor, MeterCommand

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = int(os.environ.get("FLX_BENCH_ROUNDS", "5"))
METER_ROUNDS = int(os.environ.get("FLX_BENCH_METER_ROUNDS", "3"))
TOTAL = 30_911
PARALLEL = 4


def main() -> int:
    """Measure all rows and write the record."""
    meltano = Path(os.environ["FLX_MELTANO"])
    suite = Suite("runs", meltano=_meltano_version(meltano))
    with tempfile.TemporaryDirectory(prefix="flx-bench-") as folder:
        bench = Runs(Path(folder), meltano, suite)
        bench.start_to_ready()
        bench.first_line_and_no_op()
        bench.parallel()
        bench.metering()
    return suite.finish()


class Runs:
    """The rows of this suite."""

    def __init__(self, folder: Path, meltano: Path, suite: Suite) -> None:
        self.folder, self.meltano, self.suite = folder, meltano, suite
        self.plugins = ROOT / ".demo"

    def start_to_ready(self) -> None:
        """`flx serve` until /ready answers 200, against `meltano --version`."""
        project = copy_project(self.folder / "start", plugins=self.plugins)
        ours, cli = [], []
        for warm in range(ROUNDS + 1):
            service = self._service(project)
            began = time.perf_counter()
            service.start()
            took = time.perf_counter() - began
            service.stop()
            rival = self._cli(project, "--version")
            if warm:
                ours.append(took)
                cli.append(rival)
        self.suite.compare(
            "flx serve to /ready", "wall", "s", ours, rival="meltano --version", rival_values=cli, target_ratio=0.8
        )

    def first_line_and_no_op(self) -> None:
        """The first log line, an incremental run with nothing new, and a read, on one warm service."""
        ours = copy_project(self.folder / "ours", plugins=self.plugins)
        theirs = copy_project(self.folder / "theirs", plugins=self.plugins)
        with self._running(ours) as service:
            _run(service, "nyc-to-jsonl")
            self._cli(theirs, "run", "nyc-to-jsonl")
            lines, cli_lines, runs, cli_runs = [], [], [], []
            for _ in range(ROUNDS):
                line, whole = _first_line(service, "nyc-to-jsonl")
                cli_line, cli_whole = self._cli_first_line(theirs, "run", "nyc-to-jsonl")
                lines.append(line * 1000)
                cli_lines.append(cli_line * 1000)
                runs.append(whole)
                cli_runs.append(cli_whole)
            self.suite.compare(
                "POST to first log line",
                "wall at a WebSocket client",
                "ms",
                lines,
                rival="meltano run, first line",
                rival_values=cli_lines,
                target_value=150,
            )
            self.suite.compare(
                "incremental run with nothing new",
                "wall, POST to final status",
                "s",
                runs,
                rival="meltano run",
                rival_values=cli_runs,
                target_ratio=0.6,
            )
            reads = [_read(service) * 1000 for _ in range(ROUNDS)]
            cli_reads = [self._cli(theirs, "job", "list") * 1000 for _ in range(ROUNDS)]
            self.suite.compare(
                "pipeline.list",
                "wall of a request, median of 200",
                "ms",
                reads,
                rival="meltano job list",
                rival_values=cli_reads,
                target_value=1.0,
            )

    def parallel(self) -> None:
        """Four runs of one tap at the same time: how many end right."""
        ours = copy_project(self.folder / "parallel-ours", plugins=self.plugins)
        theirs = copy_project(self.folder / "parallel-theirs", plugins=self.plugins)
        for project in (ours, theirs):
            _four_loaders(project)
        with self._running(ours, {"FLX_MAX_RUNS": str(PARALLEL)}) as service:
            executions = [_start(service, f"parallel-{number}", refresh="full") for number in range(PARALLEL)]
            ends = [service.wait(execution, 180) for execution in executions]
        right = sum(end["status"] == "succeeded" and end["records"] == TOTAL for end in ends)
        processes = [
            subprocess.Popen(
                [self.meltano / "bin" / "meltano", "run", f"parallel-{number}"],
                cwd=theirs,
                env=_cli_environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(PARALLEL)
        ]
        codes = [process.wait(180) for process in processes]
        cli_right = sum(
            code == 0 and _lines(theirs / "output" / str(number)) == TOTAL for number, code in enumerate(codes)
        )
        self.suite.count(
            "four parallel runs of one tap",
            "runs with all rows",
            right,
            rival="meltano run",
            rival_value=cli_right,
            target=PARALLEL,
        )

    def metering(self) -> None:
        """CPU of a run of 336,776 rows with and without the meter."""
        project = flights_project(self.folder / "flights", plugins=self.plugins)
        with_meter, without = [], []
        for _ in range(METER_ROUNDS):
            with_meter.append(asyncio.run(_executor_cpu(project, self.meltano, metered=True)))
            without.append(asyncio.run(_executor_cpu(project, self.meltano, metered=False)))
        self.suite.compare(
            "metering 336,776 rows, tap-spreadsheets to target-jsonl",
            "CPU of the run with its plugins",
            "s",
            with_meter,
            rival="the same run without the meter",
            rival_values=without,
            target_ratio=1.03,
        )

    def _service(self, project: Path, environ: dict[str, str] | None = None) -> Service:
        return Service(project, environ={"FLX_MELTANO": str(self.meltano), **(environ or {})})

    @contextmanager
    def _running(self, project: Path, environ: dict[str, str] | None = None) -> Iterator[Service]:
        service = self._service(project, environ).start()
        try:
            _run(service, "nyc-to-jsonl", refresh="full")  # the warm process is up and the catalogue is known
            yield service
            service.stop()
        finally:
            service.kill_all()

    def _cli(self, project: Path, *args: str) -> float:
        began = time.perf_counter()
        subprocess.run(
            [self.meltano / "bin" / "meltano", *args],
            cwd=project,
            env=_cli_environment(),
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - began

    def _cli_first_line(self, project: Path, *args: str) -> tuple[float, float]:
        began = time.perf_counter()
        process = subprocess.Popen(
            [self.meltano / "bin" / "meltano", "--log-format", "json", *args],
            cwd=project,
            env=_cli_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        process.stderr.readline()
        first = time.perf_counter() - began
        process.stderr.read()
        if process.wait() != 0:
            raise SystemExit("the rival's run failed")
        return first, time.perf_counter() - began


def _cli_environment() -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLX_")},
        "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "false",
        "MELTANO_CLI_DISABLE_VERSION_CHECK": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def _meltano_version(meltano: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('meltano'))"
    return subprocess.run(
        [meltano / "bin" / "python", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def _start(service: Service, pipeline: str, **body: Any) -> str:  # noqa: ANN401 - JSON
    answer = service.http.post(f"/v1/pipelines/{pipeline}/run", json=body)
    answer.raise_for_status()
    return str(answer.headers["location"].rsplit("/", 1)[1])


def _run(service: Service, pipeline: str, **body: Any) -> None:  # noqa: ANN401 - JSON
    over = service.wait(_start(service, pipeline, **body))
    if over["status"] != "succeeded":
        raise SystemExit(f"our run of {pipeline} ended {over}")


def _first_line(service: Service, pipeline: str) -> tuple[float, float]:
    """Seconds from POST to the first log line and to the final status, both seen by a WebSocket client."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    with connect(f"{service.ws_url}/ws/bench", additional_headers=headers) as listener:
        listener.recv(timeout=10)
        listener.send(json.dumps({"type": "subscribe", "event": "*"}))
        listener.recv(timeout=10)
        began = time.perf_counter()
        execution = _start(service, pipeline)
        first = 0.0
        while True:
            event = json.loads(listener.recv(timeout=60))
            if event.get("event") == f"execution.{execution}.log" and not first:
                first = time.perf_counter() - began
            if event.get("event") == f"execution.{execution}.status" and event["data"]["status"].startswith(
                "succeeded"
            ):
                return first, time.perf_counter() - began


def _read(service: Service, requests: int = 200) -> float:
    """Median seconds of pipeline.list on one connection, each request in one write: the client is not the subject."""
    host, port = service.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/commands/pipeline.list HTTP/1.1",
        f"Host: {host}:{port}",
        f"Authorization: Bearer {service.token()}",
        "Content-Type: application/json",
        "Content-Length: 2",
    )
    request = "\r\n".join([*head, "", "{}"]).encode()
    took = []
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(requests):
            began = time.perf_counter()
            connection.sendall(request)
            answer = _answer(connection)
            took.append(time.perf_counter() - began)
            if not answer.startswith(b"HTTP/1.1 200 ") or b"nyc-warehouse" not in answer:
                raise SystemExit(f"pipeline.list answered {answer[:15]!r}")
    return statistics.median(took)


def _answer(connection: socket.socket) -> bytes:
    """One HTTP answer with a length."""
    answer = b""
    while True:
        answer += connection.recv(65536)
        head, end, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if end and length and len(body) >= int(length[1]):
            return answer


def _four_loaders(project: Path) -> None:
    yaml, file = YAML(), project / "meltano.yml"
    document = yaml.load(file)
    for number in range(PARALLEL):
        document["plugins"]["loaders"].append(
            {
                "name": f"target-jsonl-{number}",
                "inherit_from": "target-jsonl",
                "config": {"destination_path": f"output/{number}"},
            }
        )
        document["jobs"].append({"name": f"parallel-{number}", "tasks": [f"tap-nyc target-jsonl-{number}"]})
    yaml.dump(document, file)


def _lines(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


async def _executor_cpu(project: Path, meltano: Path, *, metered: bool) -> float:
    """CPU seconds of one full run of the flights, from the run's own exit record."""
    shutil.rmtree(project / "output", ignore_errors=True)
    (project / "output").mkdir()
    script = Path(meter.__file__)
    native = Path(_core.__file__ or "")
    executor = LocalExecutor(
        project,
        project / ".flx",
        project / ".flx",
        meltano,
        os.environ,
        meter=MeterCommand(Path(sys.executable), script, native) if metered else None,
    )
    await executor.start()
    attempt = str(uuid.uuid4())
    try:
        run = await executor.spawn(
            RunSpec(
                attempt_id=attempt,
                execution_id=attempt,
                blocks=("flights",),
                full_refresh=True,
                extractors=("tap-flights",),
                loaders=("target-jsonl",),
            )
        )
        await run.release()
        await run.wait()
        record = await executor.settle(attempt, run_started=True)
    finally:
        await executor.close()
    if record is None or record.code != 0 or _lines(project / "output") != ROWS:
        raise SystemExit(f"the run of the flights ended {record}, {_lines(project / 'output')} rows")
    return record.cpu_s
