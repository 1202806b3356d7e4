"""A child's life as the supervisor sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from flx_api.cli.children import Child, describe, environ_of
from flx_api.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_pauses_grow_while_it_fails_and_begin_anew_after_it_ran_well() -> None:
    child = Child("part", "module")
    pauses = []
    for _ in range(8):
        child._started = 0.0
        pauses.append(child.ended(1.0))
    assert [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0] == pauses
    child._started = 0.0
    assert 0.1 == child.ended(60.0)
    assert 60.1 == child.restart_at


def test_it_is_told_to_end_and_ends() -> None:
    child = Child("part", "http.server")
    child.start(0.0, [], dict(os.environ))
    assert child.pid is not None
    child.stop(kill_at=3.0)
    _, status = os.waitpid(child.pid, 0)
    assert (3.0, "signal SIGTERM") == (child.kill_at, describe(status))


def test_descriptors_are_inherited_only_by_name() -> None:
    reader, writer = os.pipe()
    child = Child("part", "antigravity_of_nobody")
    child.start(0.0, [], dict(os.environ), [writer])
    assert not os.get_inheritable(writer)
    os.close(writer)
    assert child.pid is not None
    _, status = os.waitpid(child.pid, 0)
    assert "exit code 1" == describe(status)
    assert b"" == os.read(reader, 1)
    os.close(reader)


def test_children_see_what_the_command_line_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLX_API_PORT", "1")
    settings = Settings(project=str(tmp_path), api_port=0)
    environ = environ_of(settings, {"api_port": 0, "workers": None}, meltano=tmp_path / "m")
    assert ("0", str(tmp_path), str(tmp_path / ".flx"), str(tmp_path / "m")) == tuple(
        environ[name] for name in ("FLX_API_PORT", "FLX_PROJECT", "FLX_DATA_DIR", "FLX_MELTANO")
    )
    assert "FLX_WORKERS" not in environ


def test_signals_have_names() -> None:
    assert "signal SIGKILL" == describe(signal.SIGKILL)
    assert "exit code 2" == describe(2 << 8)


def test_a_service_goes_without_rich_and_pydantic() -> None:
    """The two entry modules of the service import neither: they cost a fifth of its start."""
    code = (
        "import sys; from flx_api.cli.children import leave_out_optional_parts as leave_out; leave_out(); "
        "import flx_api.main, flx_api.routes.application, flx_api.daemon.main, flx_api.observability.logging as l; "
        "l.set_up('info'); print([n for n in ('rich', 'pydantic') if sys.modules[n] is not None])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, "[]") == (done.returncode, done.stdout.strip()), done.stderr


# The collector is one for each process, so that it is looked at in another one.
_SPARED = """
import gc, os, weakref
from flx_api.cli.gateway_process import hand_over

class Link: ...

def circle():
    link = Link()
    link.itself = link
    return weakref.ref(link)

class App: ...

reader, writer = os.pipe()
assert isinstance(app := hand_over(App(), os.getppid(), writer, "rsgi"), App)
app.on_drained()
assert os.read(reader, 1) == b"", "whoever waits for the end of the drain would wait on"
frozen, (young, _, _) = gc.get_freeze_count(), gc.get_threshold()
collections = gc.get_stats()[0]["collections"]
in_flight = [[] for _ in range(20_000)]
looked = gc.get_stats()[0]["collections"] - collections
left = circle()
held = [[] for _ in range(young + 1)]
print(frozen > 10_000, looked, left() is None)
"""


def test_a_worker_spares_the_collector_what_it_started_with_and_circles_still_go() -> None:
    done = subprocess.run([sys.executable, "-c", _SPARED], capture_output=True, text=True, check=False)
    assert ("True 0 True", "") == (done.stdout.strip(), done.stderr)
