"""The daemon's side of the zygote, against stand-ins for Meltano's Python that misbehave."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from flx_api.daemon.executors.zygote_process import Answer, Report, ZygoteProcess
from flx_api.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

# Serves as the zygote does, one line of report per request; what follows `once` is answered by a fresh process.
SERVES = """
import json, os, socket, sys
words = sys.argv[sys.argv.index("serve"):] if "serve" in sys.argv else sys.argv[sys.argv.index("once"):]
def answer(descriptors, **line):
    body = json.load(os.fdopen(os.dup(descriptors[0]), "rb")) if os.lseek(descriptors[0], 0, 0) == 0 else None
    os.write(descriptors[-1], json.dumps({"pid": os.getpid(), "rows": body["n"], **line}).encode() + b"\\n")
if words[0] == "once":
    answer([int(word) for word in words[2:]])
    sys.exit()
control = socket.socket(fileno=int(words[1]))
control.sendall(b"ready")
while True:
    kind, descriptors, _, _ = socket.recv_fds(control, 64, 8)
    if not kind:
        sys.exit()
    if kind == b"die":
        os._exit(1)
    answer(descriptors, **({"error": "no"} if kind == b"refuse" else {}))
    for descriptor in descriptors:
        os.close(descriptor)
"""
FAILS = "import sys\nsys.exit('no module named meltano')\n"


def environment(folder: Path, program: str) -> Path:
    """A folder whose `bin/python` runs the program instead of our script, with the same words."""
    (folder / "bin").mkdir(parents=True)
    (folder / "program.py").write_text(program)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{folder}/program.py" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


def run_async(story: Coroutine[Any, Any, None]) -> None:
    uvloop.run(story)


async def ask(zygote: ZygoteProcess, kind: str, n: int) -> Answer:
    answer, report = await zygote.ask(kind, {"n": n})
    report.close()
    return answer


@pytest.mark.parametrize("use_fork", [True, False])
def test_many_requests_at_once_get_their_own_answers(tmp_path: Path, use_fork: bool) -> None:
    async def story() -> None:
        zygote = ZygoteProcess(environment(tmp_path / "m", SERVES), tmp_path / "rt", {}, use_fork=use_fork)
        answers = await asyncio.gather(*(ask(zygote, "run", n) for n in range(8)))
        assert [answer.rows for answer in answers] == list(range(8))
        assert len({answer.pid for answer in answers}) == (1 if use_fork else 8)
        assert (zygote.pid is not None) == use_fork
        await zygote.warm()
        await zygote.close()
        assert zygote.pid is None

    run_async(story())


def test_a_zygote_that_dies_under_a_request_is_replaced(tmp_path: Path) -> None:
    async def story() -> None:
        zygote = ZygoteProcess(environment(tmp_path / "m", SERVES), tmp_path / "rt", {}, use_fork=True)
        first = await ask(zygote, "run", 1)
        assert (await ask(zygote, "die", 2)).rows == 2, "two zygotes died, a fresh process answered"
        again = await ask(zygote, "run", 3)
        assert again.rows == 3
        assert again.pid not in {first.pid, os.getpid()}
        await zygote.close()

    run_async(story())


def test_a_refused_fork_is_made_up_for_by_a_fresh_process(tmp_path: Path) -> None:
    async def story() -> None:
        zygote = ZygoteProcess(environment(tmp_path / "m", SERVES), tmp_path / "rt", {}, use_fork=True)
        answer = await ask(zygote, "refuse", 4)
        assert answer.rows == 4
        assert answer.pid != zygote.pid
        assert zygote.pid is not None
        await zygote.close()

    run_async(story())


def test_a_meltano_that_cannot_be_imported_is_unavailable(tmp_path: Path) -> None:
    async def story() -> None:
        zygote = ZygoteProcess(environment(tmp_path / "m", FAILS), tmp_path / "rt", {}, use_fork=True)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await ask(zygote, "run", 1)
        await zygote.close()

    run_async(story())


def test_no_python_is_unavailable(tmp_path: Path) -> None:
    async def story() -> None:
        zygote = ZygoteProcess(tmp_path / "none", tmp_path / "rt", {}, use_fork=True)
        with pytest.raises(Unavailable):
            await ask(zygote, "run", 1)
        await zygote.close()

    run_async(story())


def test_a_new_meltano_means_a_new_zygote(tmp_path: Path) -> None:
    async def story() -> None:
        meltano = environment(tmp_path / "m", SERVES)
        packages = meltano / "lib" / "python3.11" / "site-packages"
        packages.mkdir(parents=True)
        zygote = ZygoteProcess(meltano, tmp_path / "rt", {}, use_fork=True)
        first = await ask(zygote, "run", 1)
        assert (await ask(zygote, "run", 2)).pid == first.pid
        os.utime(packages, ns=(1, 1))
        assert (await ask(zygote, "run", 3)).pid != first.pid
        await zygote.close()

    run_async(story())


def test_a_report_comes_in_pieces() -> None:
    async def story() -> None:
        read_end, write_end = os.pipe()
        report = Report(read_end)
        os.write(write_end, b'{"pid": 1}\n{"co')
        assert await report.line(1) == Answer(pid=1)
        with pytest.raises(TimeoutError):
            await report.line(0.01)
        os.write(write_end, b'de": 0}\n')
        assert await report.line(1) == Answer(code=0)
        os.close(write_end)
        assert await report.line(1) is None
        report.close()

    run_async(story())
