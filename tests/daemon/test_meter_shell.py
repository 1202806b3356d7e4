"""The meter shell as a process: bytes, exits and signals as without it, and the records it leaves.

The native module is the naive twin, so these tests need no build; the end-to-end ones use the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import naive_meter

from flx_api.daemon import meter_shell

METER = Path(meter_shell.__file__).with_name("meter.py")
NAIVE = Path(naive_meter.__file__)
ROW = b'{"type":"RECORD","stream":"s","record":{"id":%d}}\n'
WAIT_S = 30


def command(folder: Path, *argv: str, role: str = "extractor", native: Path = NAIVE) -> list[str]:
    """The shim's command line around a plugin's."""
    words = [sys.executable, "-I", "-S", METER, native, folder, role, "plug/in", "--", *argv]
    return [str(word) for word in words]


def python(body: str) -> list[str]:
    """A plugin in one line of Python."""
    return [sys.executable, "-I", "-S", "-c", body]


def records(folder: Path, number: int = 0) -> list[dict[str, Any]]:
    """The records of one invocation."""
    (path,) = folder.glob(f"{number:03d}-*.jsonl")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_bytes_pass_unchanged_and_are_counted(tmp_path: Path) -> None:
    """Stdin reaches the plugin, its stdout arrives byte for byte, and start, count and end are recorded."""
    data = b'{"type":"SCHEMA","stream":"s","schema":{},"key_properties":["id"]}\n' + b"".join(ROW % n for n in range(9))
    done = subprocess.run(command(tmp_path, "cat"), input=data + b"\xff torn", capture_output=True, check=True)
    assert data + b"\xff torn" == done.stdout
    start, count, end = records(tmp_path)
    assert (start["kind"], start["role"], start["plugin"], start["purpose"]) == (
        "start",
        "extractor",
        "plug/in",
        "sync",
    )
    assert {"s": {"records": 9, "bytes": 9 * len(ROW % 0)}} == count["streams"]
    assert (end["kind"], end["exit_code"], end["keys_complete"]) == ("end", 0, True)
    assert end["snapshot"]["partial_bytes"] == 6
    assert end["snapshot"]["streams"]["s"]["distinct_keys"] == 9
    keys = next(tmp_path.glob("*.keys")).read_bytes().splitlines()
    assert [["s", [n]] for n in range(9)] == [json.loads(line) for line in keys]


@pytest.mark.parametrize("code", [0, 1, 2, 143, 255])
def test_the_exit_code_is_the_plugins(tmp_path: Path, code: int) -> None:
    """Whatever the plugin returns is returned."""
    assert subprocess.run(command(tmp_path, *python(f"raise SystemExit({code})")), check=False).returncode == code
    assert records(tmp_path)[-1]["exit_code"] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_plugin_killed_by_a_signal_looks_killed(tmp_path: Path, number: int) -> None:
    """The parent sees the same signal as the end."""
    body = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {int(number)})"
    assert subprocess.run(command(tmp_path, *python(body)), check=False).returncode == -number
    assert records(tmp_path)[-1]["exit_code"] == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_handed_on_and_the_rest_drained(tmp_path: Path, number: int) -> None:
    """A plugin that ends by itself after a signal keeps its last words and its code."""
    body = (
        "import signal, os, time\n"
        # Not `print`: the signal may come while the plugin is still inside of its first one.
        "def end(*_): os.write(1, b'last words\\n'); os._exit(7)\n"
        f"signal.signal({int(number)}, end)\n"
        "print('ready', flush=True)\n"
        # Not `signal.pause`: a signal just before it is noted, and its handler runs only when something wakes us.
        "while True: time.sleep(0.05)"
    )
    # What is ignored stays ignored (nohup), and a shell starts its background jobs with SIGINT ignored.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command(tmp_path, *python(body)), stdout=subprocess.PIPE)
    finally:
        signal.signal(number, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"last words\n"
        assert process.wait(WAIT_S) == 7
    assert records(tmp_path)[-1]["exit_code"] == 7


def test_a_reader_that_goes_away_is_seen_by_the_plugin(tmp_path: Path) -> None:
    """With its reader gone a plugin that writes on dies of SIGPIPE, as without the meter."""
    body = "import signal, os\nsignal.signal(13, signal.SIG_DFL)\nwhile True: os.write(1, b'x' * 100_000)"
    with subprocess.Popen(command(tmp_path, *python(body)), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(WAIT_S) == -signal.SIGPIPE


def test_the_plugin_starts_with_default_signals(tmp_path: Path) -> None:
    """Python ignores SIGPIPE and SIGXFSZ for itself; the plugin must not inherit that."""
    done = subprocess.run(command(tmp_path, "cat", "/proc/self/status"), capture_output=True, check=True)
    ignored = next(line for line in done.stdout.decode().splitlines() if line.startswith("SigIgn"))
    pythons = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert int(ignored.split()[1], 16) & pythons == 0


def test_the_plugin_dies_with_the_meter(tmp_path: Path) -> None:
    """A meter that is killed outright takes the plugin with it."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    body = f"import time\nheld = open({str(fifo)!r}, 'w')\nprint('ready', flush=True)\ntime.sleep(3600)"
    folder = tmp_path / "meter"
    folder.mkdir()
    with subprocess.Popen(command(folder, *python(body)), stdout=subprocess.PIPE) as process:
        with fifo.open() as held:
            process.kill()
            assert held.read() == ""  # the end of file comes when the plugin's descriptor is closed by its death
        process.wait(WAIT_S)
    assert "end" not in {record["kind"] for record in records(folder)}


@pytest.mark.parametrize(
    ("argv", "role", "purpose"),
    [
        (["--discover", "--config", "c"], "extractor", "discover"),
        (["--about", "--format=json"], "loader", "about"),
        (["--test=schema"], "extractor", "test"),
        (["--version"], "extractor", "other"),
        (["build"], "utility", "other"),
        (["--config", "c", "--state", "s"], "extractor", "sync"),
    ],
)
def test_what_an_invocation_is_for(argv: list[str], role: str, purpose: str) -> None:
    """Only a sync is counted."""
    assert purpose == meter_shell.purpose_of(role, ["tap", *argv])


def test_other_purposes_pass_without_counting(tmp_path: Path) -> None:
    """Discovery output is no Singer stream: recorded start and end, no snapshot."""
    done = subprocess.run(command(tmp_path, "echo", "--discover"), capture_output=True, check=True)
    assert done.stdout == b"--discover\n"
    start, end = records(tmp_path)
    assert (start["purpose"], end["snapshot"]) == ("discover", None)


def test_without_the_native_module_the_run_goes_on(tmp_path: Path) -> None:
    """A counter that cannot be loaded costs the counts, not the run."""
    done = subprocess.run(
        command(tmp_path, "echo", "row", native=tmp_path / "absent.so"), capture_output=True, check=True
    )
    assert done.stdout == b"row\n"
    assert records(tmp_path)[-1]["snapshot"] is None


def test_without_a_folder_the_run_goes_on(tmp_path: Path) -> None:
    """Records that cannot be written cost the ledger, not the run."""
    done = subprocess.run(command(tmp_path / "absent", "echo", "row"), capture_output=True, check=True)
    assert done.stdout == b"row\n"


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    """As the shell says it: 127 and a line on stderr."""
    done = subprocess.run(command(tmp_path, "./no-such-plugin"), capture_output=True, check=False)
    assert done.returncode == 127
    assert b"./no-such-plugin" in done.stderr


def test_numbers_are_never_shared(tmp_path: Path) -> None:
    """Plugins of different roles that start at once get different numbers."""
    processes = [subprocess.Popen(command(tmp_path, "true", role=role)) for role in ("extractor", "utility") * 4]
    for process in processes:
        process.wait(WAIT_S)
    numbers = sorted(path.name[:3] for path in tmp_path.glob("*.jsonl"))
    assert [f"{number:03d}" for number in range(8)] == numbers


def test_the_number_is_the_place_in_spawn_order_whoever_comes_first(tmp_path: Path) -> None:
    """A loader that starts up faster than its extractor still has the higher number; a number taken is passed over."""
    for role, order in (("loader", "2"), ("extractor", "1"), ("extractor", "1"), ("utility", "nonsense")):
        words = command(tmp_path, "true", role=role)
        words.insert(words.index("--"), order)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    found = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.glob("*.jsonl"))
    assert found == ["001-extractor", "002-loader", "003-extractor", "004-utility"]


def test_a_loader_reads_its_producer(tmp_path: Path) -> None:
    """Without a known loader the destination is `none` with a reason; the last state line is kept."""
    subprocess.run(command(tmp_path, "echo", "{}"), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        command(tmp_path, "printf", '{"a":1}\n{"a":2}\n', role="loader"), check=True, stdout=subprocess.DEVNULL
    )
    start, before, after, end = records(tmp_path, 1)
    assert [start["kind"], before["when"], after["when"], end["kind"]] == ["start", "before", "after", "end"]
    assert (after["ok"], after["method"], after["reason"]) == (False, "none", "no counter is known for this loader")
    assert end["snapshot"]["last_state"] == '{"a":2}'


def test_json_is_what_the_library_would_write() -> None:
    """The small encoder against the real decoder."""
    value = {
        "text": 'é"\\\n\x00\ud83d',
        "n": -3,
        "f": 0.25,
        "none": None,
        "yes": True,
        "list": [1, ["x"], {}],
        "t": (1,),
    }
    assert json.loads(meter_shell.to_json(value)) == {**value, "t": [1]}


def test_keys_become_lines() -> None:
    """One line per key, with its stream."""
    lines = meter_shell.keys_lines([("a-é", b'["x",1]\n[null,2]\n')])
    assert [json.loads(line) for line in lines.splitlines()] == [["a-é", ["x", 1]], ["a-é", [None, 2]]]
