"""The script of the warm process, as far as it goes without Meltano: the keeper at its gate."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
from tests.processor_turns import turn_ns_of

from flx_api.daemon import zygote
from flx_api.daemon.executors.zygote_process import SCRIPT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def test_a_run_that_nobody_hears_of_leaves_the_gate_to_its_successor(tmp_path: Path) -> None:
    gate_read, gate_write = os.pipe()
    report_read, report_write = os.pipe()
    os.close(report_read)
    with tempfile.TemporaryFile() as request:
        request.write(msgspec.json.encode({"folder": str(tmp_path), "cwd": "/", "env": {}, "argv": []}))
        request.flush()
        descriptors = (request.fileno(), gate_read, report_write)
        words = [sys.executable, "-I", str(SCRIPT), "once", "run", *map(str, descriptors)]
        ended = subprocess.run(words, pass_fds=descriptors, check=False, timeout=10, stderr=subprocess.DEVNULL)
    os.close(report_write)
    os.write(gate_write, b"g")
    os.close(gate_write)
    assert ended.returncode == 1
    assert os.read(gate_read, 2) == b"g"
    os.close(gate_read)
    assert list(tmp_path.iterdir()) == []


def in_a_child(what: Callable[[], object]) -> object:
    """What a function gives in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, msgspec.json.encode(what()))
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as told:
        return msgspec.json.decode(told.read())


def long_turns(nice: int, policy: int) -> tuple[int | None, int, int]:
    """Turn, niceness and policy of a process that stood back and then asked for long turns."""
    os.sched_setscheduler(0, policy, os.sched_param(0))
    os.nice(nice)
    zygote.take_long_turns()
    return (turn_ns_of(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))


def test_long_turns_change_nothing_else() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    for policy in (os.SCHED_OTHER, os.SCHED_BATCH):
        turn_ns, *rest = cast("list[Any]", in_a_child(partial(long_turns, 3, policy)))
        assert [min(ours + 3, 19), policy] == rest
        assert turn_ns in {None, zygote.LONG_TURN_NS}


def test_who_was_given_another_policy_keeps_it() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    turn_ns, *rest = cast("list[Any]", in_a_child(partial(long_turns, 0, os.SCHED_IDLE)))
    assert [ours, os.SCHED_IDLE] == rest
    assert turn_ns != zygote.LONG_TURN_NS


def test_where_nobody_tells_the_policy_a_run_begins_without_long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def untold(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "sched_getscheduler", untold)
    zygote.take_long_turns()


def test_plugins_are_numbered_in_the_order_in_which_meltano_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class PluginInvoker:
        def __init__(self, kind: str, name: str) -> None:
            self.plugin = SimpleNamespace(type=kind, name=name)

        def env(self) -> dict[str, Any]:
            return {"FLX_SECRET": "s", "TAP_URL": "u"}

        def exec_args(self, *args: Any, command: str | None = None, env: dict[str, Any] | None = None) -> list[str]:
            del command, env
            return [sys.executable, *args]

    module = ModuleType("meltano.core.plugin_invoker")
    module.PluginInvoker = PluginInvoker  # type: ignore[attr-defined]
    for name in ("meltano", "meltano.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    zygote.install_hooks(["meter"])
    tap, target = PluginInvoker("extractors", "tap"), PluginInvoker("loaders", "target")
    assert tap.env() == {"TAP_URL": "u"}
    environment = {"PATH": os.environ["PATH"]}
    assert tap.exec_args("-x", env=environment) == ["meter", "extractor", "tap", "0", "--", sys.executable, "-x"]
    # Asked for a message only: nothing is started, no number is taken.
    assert tap.exec_args("-x") == [sys.executable, "-x"]
    assert target.exec_args(env=environment) == ["meter", "loader", "target", "1", "--", sys.executable]
