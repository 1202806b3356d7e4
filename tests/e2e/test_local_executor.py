"""Runs as processes of this machine: real Meltano, what it does and what is left when something dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.ledger_runs import shorten
from tests.e2e.scripted_project import BLOCKS, Bench, make_project, until
from tests.processor_turns import turn_ns_of

from flx_api.daemon.executors import ExitRecord, ProcessIdentity
from flx_api.daemon.executors.local import LocalRun, MeterCommand
from flx_api.daemon.processes import identify, is_alive, session_members
from flx_api.daemon.run_folder import RunFolder
from flx_api.daemon.zygote import LONG_TURN_NS
from flx_api.errors import Conflict, DeadlineExceeded

pytestmark = pytest.mark.e2e

GRACE_S = 10.0
FLIGHTS_RECORDS, WEATHER_RECORDS = 30_911, 26_115
LINE_S = 0.15
MEASUREMENTS = 10  # one good one is enough: others may be using the machine


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, meltano_env: Path) -> Path:
    """The scripted project with Meltano's database made, to be copied."""
    project = make_project(tmp_path_factory.mktemp("prepared") / "project")
    words = [str(meltano_env / "bin" / "meltano"), "job", "list"]
    environ = {**os.environ, "MELTANO_CLI_DISABLE_VERSION_CHECK": "1"}
    subprocess.run(words, cwd=project, env=environ, check=True, capture_output=True)
    return project


@pytest.fixture(params=[True, False], ids=["forked", "fresh"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, prepared: Path, meltano_env: Path) -> Bench:
    """The scripted project, both ways of having a process."""
    shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    return Bench(tmp_path / "project", meltano_env, use_fork=request.param)


@pytest.fixture
def forked(tmp_path: Path, prepared: Path, meltano_env: Path) -> Bench:
    """The scripted project with a zygote."""
    shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    return Bench(tmp_path / "project", meltano_env)


def until_written(path: Path) -> None:
    """Return when the file holds something."""
    until(lambda: path.exists() and path.stat().st_size, path.name)


def inner_of(run: LocalRun) -> int:
    """Meltano's own process, the keeper's child."""
    children = Path(f"/proc/{run.identity.pid}/task/{run.identity.pid}/children")
    return int(until(lambda: children.read_text().split(), "Meltano's process")[0])


def autogroup_of(pid: int) -> int | None:
    """The niceness of a process' session, where the kernel has such a thing."""
    path = Path(f"/proc/{pid}/autogroup")
    return int(path.read_text().split()[-1]) if path.exists() else None


def test_a_run_does_what_meltano_does_and_says_how_it_ended(bench: Bench) -> None:
    async def story() -> None:
        executor = bench.executor()
        spec = bench.spec()
        before = time.time_ns() // 1000
        run, record = await bench.complete(executor, spec)
        assert record is not None
        assert record.code == 0
        assert before <= record.started_us < record.ended_us <= time.time_ns() // 1000
        assert 0 < record.cpu_s < 60
        assert record.max_rss_kib > 10_000
        assert bench.rows() == 2
        [(state, ended, _, trigger)] = bench.meltano_rows(spec.attempt_id)
        assert (state, trigger) == ("SUCCESS", "flx-api")
        assert ended
        assert bench.events(run)[-1] == "Run completed"
        bench.assert_settled(run)
        with pytest.raises(Conflict):
            await executor.spawn(spec)

    bench.run(story())


def test_a_failing_run_keeps_its_exit_code(forked: Bench) -> None:
    (forked.project / "target.py").write_text("#!/usr/bin/env python3\nraise SystemExit(3)\n")

    async def story() -> None:
        executor = forked.executor()
        run, record = await forked.complete(executor, forked.spec())
        assert record is not None
        assert record.code == 1
        assert any("Loader failed" in event or "Block run completed" in event for event in forked.events(run))

    forked.run(story())


def test_nothing_happens_behind_a_gate_that_closes(bench: Bench) -> None:
    async def story() -> None:
        executor = bench.executor()
        spec = bench.spec()
        run = await executor.spawn(spec)
        assert identify(run.identity.pid) == run.identity
        assert run._gate is not None
        run._gate.close()  # what the kernel does when the daemon is killed
        assert await run.wait() is None
        assert await executor.settle(spec.attempt_id, run_started=False) is None
        bench.assert_settled(run)
        assert not (run.folder / "log.jsonl").exists()
        assert bench.rows() == 0
        assert bench.meltano_rows(spec.attempt_id) == []

    bench.run(story())


@pytest.mark.parametrize("moment", ["at the gate", "before Meltano is up", "in mid-run", "in a utility"])
def test_cancel_leaves_nothing(bench: Bench, moment: str) -> None:
    async def story() -> None:
        executor = bench.executor()
        bench.hold()
        spec = bench.spec("tool:work") if moment == "in a utility" else bench.spec()
        run = await executor.spawn(spec)
        if moment != "at the gate":
            await run.release()
        if moment in {"in mid-run", "in a utility"}:
            await asyncio.to_thread(bench.plugin_started)
        begun = time.monotonic()
        await run.cancel(GRACE_S)
        assert time.monotonic() - begun < GRACE_S
        record = await run.wait()
        assert session_members(run.identity) == []
        assert await executor.settle(spec.attempt_id, run_started=True) == record
        bench.assert_settled(run)
        if moment == "at the gate":
            assert record is None
        else:
            assert record is not None
            assert record.code in {143, -signal.SIGTERM}
        states = [state for state, *_ in bench.meltano_rows(spec.attempt_id)]
        assert states == (["FAIL"] if moment == "in mid-run" else [])
        bench.let_go()
        _, again = await bench.complete(executor, bench.spec())
        assert again is not None
        assert again.code == 0

    bench.run(story())


@pytest.mark.parametrize("mode", ["stubborn", "helper"])
def test_cancel_kills_what_does_not_listen(forked: Bench, mode: str) -> None:
    """A tap that ignores SIGTERM in a group of its own; a helper that outlives its tap."""

    async def story() -> None:
        executor = forked.executor()
        forked.hold()
        spec = forked.spec(overrides={"TAP_SCRIPTED_MODE": mode})
        run = await executor.spawn(spec)
        await run.release()
        await asyncio.to_thread(forked.plugin_started)
        await run.cancel(0.3)
        record = await run.wait()
        assert record is not None
        assert record.code in {143, -signal.SIGTERM, -signal.SIGKILL}
        await executor.settle(spec.attempt_id, run_started=True)
        forked.assert_settled(run)
        assert [state for state, *_ in forked.meltano_rows(spec.attempt_id)] == ["FAIL"]

    forked.run(story())


def test_a_killed_run_is_cleared_up_and_blocks_nobody(bench: Bench) -> None:
    async def story() -> None:
        executor = bench.executor()
        bench.hold()
        spec = bench.spec()
        run = await executor.spawn(spec)
        await run.release()
        await asyncio.to_thread(bench.plugin_started)
        assert await executor.leftovers() == [spec.attempt_id]
        os.kill(run.identity.pid, signal.SIGKILL)
        assert await run.wait() is None
        assert await executor.settle(spec.attempt_id, run_started=True) is None
        bench.assert_settled(run)
        assert await executor.leftovers() == []
        [(state, ended, payload, _)] = bench.meltano_rows(spec.attempt_id)
        assert state == "FAIL"
        assert ended
        assert "killed" in payload["error"]
        assert await executor.settle(spec.attempt_id, run_started=True) is None
        bench.let_go()
        _, record = await bench.complete(executor, bench.spec())
        assert record is not None
        assert record.code == 0

    bench.run(story())


def test_the_signal_that_killed_meltano_is_told_and_its_plugins_go_with_it(forked: Bench) -> None:
    """As the kernel does it when memory runs out: the daemon is not even needed."""

    async def story() -> None:
        executor = forked.executor()
        forked.hold()
        spec = forked.spec()
        run = await executor.spawn(spec)
        await run.release()
        plugin = await asyncio.to_thread(forked.plugin_started)
        os.kill(inner_of(run), signal.SIGKILL)
        record = await run.wait()
        assert record is not None
        assert record.code == -signal.SIGKILL
        until(lambda: identify(plugin) is None, "the end of the tap")
        await executor.settle(spec.attempt_id, run_started=True)
        assert [state for state, *_ in forked.meltano_rows(spec.attempt_id)] == ["FAIL"]

    forked.run(story())


def test_a_killed_zygote_is_replaced_and_its_runs_go_on(forked: Bench) -> None:
    async def story() -> None:
        executor = forked.executor()
        await executor.start()
        await executor.warm()
        forked.hold()
        spec = forked.spec()
        run = await executor.spawn(spec)
        await run.release()
        await asyncio.to_thread(forked.plugin_started)
        first = executor._zygote.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        other, record = await _complete_other(forked, executor)
        assert executor._zygote.pid not in {None, first}
        assert record is not None
        assert record.code == 0
        forked.let_go()
        record = await run.wait()
        assert record is not None
        assert record.code == 0
        await executor.settle(spec.attempt_id, run_started=True)
        forked.assert_settled(run)
        forked.assert_settled(other)

    forked.run(story())


async def _complete_other(bench: Bench, executor: Any) -> tuple[LocalRun, ExitRecord | None]:
    """A run that does not wait: another block, another state id."""
    (bench.project / "tool.py").write_text("#!/bin/sh\nexit 0\n")
    return await bench.complete(executor, bench.spec("tool:work"))


def test_a_closed_zygote_leaves_no_process(forked: Bench) -> None:
    async def story() -> None:
        executor = forked.executor()
        await executor.warm()
        zygote = executor._zygote.pid
        assert zygote is not None
        await executor.close()
        assert identify(zygote) is None

    forked.run(story())


DAEMON = """
import asyncio, json, os, sys
from pathlib import Path
from tests.e2e.scripted_project import Bench
async def story():
    bench = Bench(Path(sys.argv[1]), Path(sys.argv[2]))
    executor = bench.executor()
    spec, waiting = bench.spec(), bench.spec("tool:work")
    run = await executor.spawn(spec)
    gated = await executor.spawn(waiting)
    await run.release()
    print(json.dumps([spec.attempt_id, run.identity.pid, run.identity.start_time, executor._zygote.pid,
                      waiting.attempt_id, gated.identity.pid, gated.identity.start_time]), flush=True)
    await asyncio.Event().wait()
asyncio.run(story())
"""


def test_a_killed_daemon_finds_its_run_again(forked: Bench) -> None:
    """Kill -9 of the daemon: the zygote ends, the run goes on, the next daemon learns its true end."""
    forked.hold()
    root = Path(__file__).resolve().parents[2]
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(forked.project), str(forked.meltano)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}/python:{root}"},
    )
    with daemon:
        assert daemon.stdout is not None
        attempt, pid, start, zygote, gated, gated_pid, gated_start = json.loads(daemon.stdout.readline())
        forked.plugin_started()
        daemon.kill()
    identity, waiting = ProcessIdentity(pid, start), ProcessIdentity(gated_pid, gated_start)
    until(lambda: identify(zygote) is None, "the end of the zygote")
    until(lambda: not is_alive(waiting), "the end of the run that was never released")

    async def story() -> None:
        executor = forked.executor()
        assert await executor.attach(gated, waiting) is None
        assert await executor.attach(attempt, ProcessIdentity(pid, start + 1)) is None
        run = await executor.attach(attempt, identity)
        assert run is not None
        forked.let_go()
        record = await run.wait()
        assert record is not None
        assert record.code == 0
        assert await executor.attach(attempt, identity) is None
        assert sorted(await executor.leftovers()) == sorted([attempt, gated])
        for each in (attempt, gated):
            await executor.settle(each, run_started=each == attempt)
        assert await executor.leftovers() == []
        assert forked.rows() == 2

    forked.run(story())


def test_our_own_variables_never_reach_a_run(bench: Bench) -> None:
    secret = {"FLX_JWT_SECRET_KEY": "s3cret", "FLX_RUN_ENV": "X_*", "X_TOKEN": "seen", "Y_TOKEN": "unseen"}
    bench.environ = {**bench.environ, **secret, "MELTANO_RUN_FULL_REFRESH": "true", "PYTHONPATH": "/nowhere"}
    (bench.project / ".env").write_text("FLX_FROM_DOTENV=s3cret\nFROM_DOTENV=here\n")

    async def story() -> None:
        executor = bench.executor(run_env=("X_*",), dotenv_names=lambda: ("FROM_DOTENV", "FLX_FROM_DOTENV"))
        bench.hold()
        spec = bench.spec(overrides={"TAP_SCRIPTED_EXTRA": "over", "FLX_OVERRIDE": "s3cret"})
        run = await executor.spawn(spec)
        await run.release()
        plugin = await asyncio.to_thread(bench.plugin_started)
        for pid in (run.identity.pid, inner_of(run), plugin):
            environ = await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)
            assert b"FLX_" not in environ
            assert b"s3cret" not in environ
            assert b"unseen" not in environ
        seen = json.loads((bench.project / "environment.json").read_text())
        assert seen["X_TOKEN"] == "seen"
        assert seen["FROM_DOTENV"] == "here"
        assert seen["TAP_SCRIPTED_EXTRA"] == "over"
        assert "MELTANO_RUN_FULL_REFRESH" not in seen
        assert "PYTHONPATH" not in seen
        assert not [name for name in seen if name.startswith("FLX_")]
        assert b"over" not in (run.folder / "spec.json").read_bytes().replace(b"overrides", b"").replace(
            b"override_names", b""
        )
        bench.let_go()
        await run.wait()
        await executor.settle(spec.attempt_id, run_started=True)

    bench.run(story())


def test_a_run_stands_back_for_everything_else_and_its_keeper_does_not(bench: Bench) -> None:
    steps, ours = 7, os.getpriority(os.PRIO_PROCESS, 0)

    async def story() -> None:
        executor = bench.executor(nice=steps)
        bench.hold()
        spec = bench.spec()
        run = await executor.spawn(spec)
        await run.release()
        plugin = await asyncio.to_thread(bench.plugin_started)
        for pid, expected in ((run.identity.pid, ours), (inner_of(run), ours + steps), (plugin, ours + steps)):
            assert os.getpriority(os.PRIO_PROCESS, pid) == min(expected, 19)
        assert await asyncio.to_thread(autogroup_of, plugin) in {None, steps}
        assert turn_ns_of(plugin) in {None, LONG_TURN_NS}
        assert turn_ns_of(run.identity.pid) != LONG_TURN_NS
        bench.let_go()
        await run.wait()
        await executor.settle(spec.attempt_id, run_started=True)

    bench.run(story())


def test_an_edited_project_is_seen_by_the_next_run(forked: Bench) -> None:
    async def story() -> None:
        executor = forked.executor()
        await forked.complete(executor, forked.spec())
        zygote = executor._zygote.pid
        text = (forked.project / "meltano.yml").read_text()
        (forked.project / "meltano.yml").write_text(text.replace("tap-scripted", "tap-renamed"))
        spec = forked.spec(
            "tap-renamed", "target-scripted", environment="prod", state_id_suffix="-x", full_refresh=True
        )
        run, record = await forked.complete(executor, spec)
        assert record is not None
        assert record.code == 0
        assert any("prod:tap-renamed-to-target-scripted:-x" in event for event in forked.events(run))
        assert executor._zygote.pid == zygote

    forked.run(story())


def test_first_runs_do_not_race_in_making_the_database(forked: Bench) -> None:
    shutil.rmtree(forked.project / ".meltano")

    async def story() -> None:
        executor = forked.executor()
        assert not (forked.project / ".meltano" / "meltano.db").exists()
        specs = [forked.spec(state_id_suffix=f"n{n}") for n in range(3)]
        ended = await asyncio.gather(*(forked.complete(executor, spec) for spec in specs))
        assert [record.code for _, record in ended if record] == [0, 0, 0]
        assert [forked.meltano_rows(spec.attempt_id)[0][0] for spec in specs] == ["SUCCESS"] * 3

    forked.run(story())


def test_the_meter_stands_before_every_plugin(bench: Bench, tmp_path: Path) -> None:
    """A stand-in that writes down its words and becomes the plugin."""
    stand_in = tmp_path / "meter.py"
    stand_in.write_text(
        "import json, os, sys\n"
        "_, native, folder, role, plugin, order, dashes, *argv = sys.argv\n"
        "with open(folder + '/words', 'a') as file: file.write(json.dumps([role, plugin, dashes, argv]) + '\\n')\n"
        "os.execv(argv[0], argv)\n"
    )

    async def story() -> None:
        executor = bench.executor(meter=MeterCommand(Path(sys.executable), stand_in, Path("/native.so")))
        run, record = await bench.complete(executor, bench.spec(*BLOCKS, "tool:work"))
        assert record is not None
        assert record.code == 0
        words = [json.loads(line) for line in (run.folder / "meter" / "words").read_text().splitlines()]
        assert {(role, plugin, dashes) for role, plugin, dashes, _ in words} == {
            ("extractor", "tap-scripted", "--"),
            ("loader", "target-scripted", "--"),
            ("utility", "tool", "--"),
        }
        assert bench.rows() == 2
        (bench.project / "tap.py").unlink()
        run, record = await bench.complete(executor, bench.spec())
        assert record is not None
        assert record.code == 1
        assert any("could not be found" in event for event in bench.events(run)), "Meltano's own words, not the meter's"

    bench.run(story())


def test_other_commands_answer_with_their_output(forked: Bench) -> None:
    async def story() -> None:
        executor = forked.executor()
        result = await executor.command("environment", "list")
        assert result.code == 0
        assert b"dev" in result.stdout
        assert (await executor.command("no-such-command")).code == 2
        forked.hold()
        with pytest.raises(DeadlineExceeded):
            await executor.command("invoke", "tool:work", within_s=3.0)
        until(lambda: all(identify(pid) is None for pid in _started(forked)), "the end of the killed command")

    forked.run(story())


def _started(bench: Bench) -> list[int]:
    return [int(path.name.removeprefix("started-")) for path in bench.project.glob("started-*")]


def test_a_row_of_another_database_is_repaired_by_meltanos_own_means(forked: Bench) -> None:
    """The way a PostgreSQL database goes, on the one database every machine has."""

    async def story() -> None:
        executor = forked.executor(database_uri=lambda: "sqlite+pysqlite:///$MELTANO_SYS_DIR_ROOT/meltano.db")
        forked.hold()
        spec = forked.spec()
        run = await executor.spawn(spec)
        await run.release()
        await asyncio.to_thread(forked.plugin_started)
        assert [state for state, *_ in forked.meltano_rows(spec.attempt_id)] == ["RUNNING"]
        os.kill(run.identity.pid, signal.SIGKILL)
        await run.wait()
        await executor.settle(spec.attempt_id, run_started=True)
        [(state, ended, payload, _)] = forked.meltano_rows(spec.attempt_id)
        assert state == "FAIL"
        assert ended
        assert "killed" in payload["error"]

    forked.run(story())


def test_the_warm_path_is_fast(forked: Bench) -> None:
    """A generous bound; the figures are in the benchmarks. From asking for a process to its first line of log."""

    async def story() -> None:
        executor = forked.executor()
        await executor.warm()
        took: list[float] = []
        while not took or (min(took) > LINE_S and len(took) < MEASUREMENTS):
            begun = time.perf_counter()
            run = await executor.spawn(forked.spec())
            await run.release()
            await asyncio.to_thread(until_written, run.folder / "log.jsonl")
            took.append(time.perf_counter() - begun)
            await run.wait()
        assert min(took) < LINE_S

    forked.run(story())


@pytest.fixture
def flights(nyc_project: Path, meltano_env: Path) -> Bench:
    """The demo project: a tap and a target from the package index."""
    return Bench(nyc_project, meltano_env)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_real_plugins_and_a_catalogue_that_is_discovered_once(flights: Bench) -> None:
    async def story() -> None:
        executor = flights.executor()
        first, record = await flights.complete(executor, flights.spec("tap-nyc", "target-jsonl"))
        assert record is not None
        assert record.code == 0
        loaded = [path.read_text().count("\n") for path in (flights.project / "output").glob("*.jsonl")]
        assert sum(loaded) == FLIGHTS_RECORDS
        kept = flights.data_dir / "catalogues" / "_" / "tap-nyc"
        assert sorted(path.name for path in kept.iterdir()) == ["tap.properties.cache_key", "tap.properties.json"]
        assert any("discovery" in event.lower() for event in flights.events(first))
        second, record = await flights.complete(executor, flights.spec("tap-nyc", "target-jsonl"))
        assert record is not None
        assert record.code == 0
        assert not any("discovery" in event.lower() for event in flights.events(second))
        flights.assert_settled(second)

    flights.run(story())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_four_runs_of_one_tap_at_once(flights: Bench) -> None:
    """Plain Meltano fails four of four here: they share one catalogue file. Few rows do: it is about the beginning."""
    shorten(flights.project, "weather", 1_000)

    async def story() -> None:
        executor = flights.executor()
        specs = [
            flights.spec(
                "tap-nyc",
                "target-jsonl",
                state_id_suffix=f"n{n}",
                overrides={"TARGET_JSONL_DESTINATION_PATH": f"output/{n}"},
            )
            for n in range(4)
        ]
        ended = await asyncio.gather(*(flights.complete(executor, spec) for spec in specs))
        assert [record.code for _, record in ended if record] == [0, 0, 0, 0]
        for n in range(4):
            loaded = [path.read_text().count("\n") for path in (flights.project / "output" / str(n)).glob("*.jsonl")]
            assert sum(loaded) == FLIGHTS_RECORDS - WEATHER_RECORDS + 1_000

    flights.run(story())


@pytest.mark.parametrize("name", ["env", "exec_args", "Popen_options"])
def test_meltano_still_has_what_the_hooks_stand_in_for(meltano_env: Path, name: str) -> None:
    code = f"from meltano.core.plugin_invoker import PluginInvoker; PluginInvoker.{name}"
    subprocess.run([meltano_env / "bin" / "python", "-c", code], check=True)


def test_a_folder_of_an_unknown_attempt_settles_to_nothing(forked: Bench) -> None:
    async def story() -> None:
        executor = forked.executor()
        assert await executor.settle("0198c0de-0000-7000-8000-000000000000", run_started=False) is None
        assert RunFolder(forked.data_dir / "none").spec is None
        with contextlib.suppress(FileNotFoundError):
            assert await executor.leftovers() == []

    forked.run(story())
