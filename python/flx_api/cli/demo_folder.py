"""The demo's work folder: a copy of the example project, Meltano's environment and the plugins.

Strategy: the copy is made anew each time, so that a demo starts from nothing (no output, no state, no journal); only
the plugin environments, which take a minute to make, are kept. They are made again when what they are made from
changes.

Rules:
- Only a folder that bears our mark, or an empty one, is written to.
- A folder in which a service runs is left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from flx_api.cli import meltano
from flx_api.cli.runtime import running_service
from flx_api.config import load
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

_MARK = ".flx-demo"
_KEPT = frozenset({_MARK, ".meltano", ".meltano-environment", ".meltano-environment.lock"})
_PLUGIN_KINDS = frozenset({"extractors", "loaders", "utilities"})


def prepare(folder: Path, say: Callable[[str], None], *, fresh: bool) -> Path:
    """Make the work folder ready and return Meltano's environment; with `fresh`, forget earlier runs.

    Raises:
        StartupError: the folder is someone's own, is in use, or something could not be installed.
    """
    example = example_folder()
    _claim(folder)
    with (folder / _MARK).open("r+", encoding="ascii") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        busy = running_service(load({"FLX_PROJECT": str(folder)}))
        if busy is None:
            _copy(example, folder, fresh=fresh)
        elif fresh:
            msg = f"--dir: a service (process {busy.pid}) runs in {folder}; stop it first, or name another folder"
            raise StartupError(msg)
        chosen = os.environ.get("FLX_MELTANO")
        environment = meltano.ensure(Path(chosen).resolve() if chosen else folder / ".meltano-environment", say)
        _install(folder, environment, say)
    return environment


def example_folder() -> Path:
    """The example project: in a wheel beside this module, in a checkout under examples/."""
    packed = Path(str(resources.files("flx_api.cli"))) / "examples" / "nyc-flights"
    checkout = Path(__file__).resolve().parents[3] / "examples" / "nyc-flights"
    for folder in (checkout, packed):
        if (folder / "meltano.yml").exists():
            return folder
    msg = "demo: the example project is not part of this installation"
    raise StartupError(msg)


def plugin_python(folder: Path, plugin: str) -> Path:
    """The Python of an installed plugin."""
    return next((folder / ".meltano").glob(f"*/{plugin}/venv")) / "bin" / "python"


def _claim(folder: Path) -> None:
    if folder.exists() and not (folder / _MARK).exists() and any(folder.iterdir()):
        msg = f"--dir: {folder} is not empty and no demo folder; name another"
        raise StartupError(msg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
    except OSError as error:
        msg = f"--dir: {folder} cannot be made: {os.strerror(error.errno or 0)}"
        raise StartupError(msg) from None


def _copy(example: Path, folder: Path, *, fresh: bool) -> None:
    if fresh:
        for entry in folder.iterdir():
            if entry.name not in _KEPT:
                _remove(entry)
        for entry in (folder / ".meltano").glob("*"):
            if entry.name not in _PLUGIN_KINDS:
                _remove(entry)
    shutil.copytree(example, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".meltano", ".flx", "target"))
    (folder / "output").mkdir(exist_ok=True)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _install(folder: Path, environment: Path, say: Callable[[str], None]) -> None:
    record = folder / ".meltano" / "utilities" / ".flx-installed"
    wanted = _fingerprint(folder, environment)
    if record.exists() and record.read_text(encoding="ascii") == wanted:
        return
    say("installing the plugins (once)")
    environ = meltano.clean_environ() | {
        "MELTANO_CLI_DISABLE_VERSION_CHECK": "1",
        "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "false",
        "NO_COLOR": "1",
    }
    command = [str(environment / "bin" / "meltano"), "install"]
    with subprocess.Popen(  # noqa: S603 - our own environment's command, no shell, no input
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        last = ""
        for line in process.stdout or ():
            last = line.strip() or last
            if "Installed" in line:
                say(f"  {line[line.index('Installed') :].strip()}")
    if process.returncode != 0:
        msg = f"demo: `meltano install` failed: {last}"
        raise StartupError(msg)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(wanted, encoding="ascii")


def _fingerprint(folder: Path, environment: Path) -> str:
    """What the plugin environments are made from: their declarations, Meltano, and the Python."""
    parts = [
        (folder / "meltano.yml").read_bytes(),
        (meltano.version_of(environment) or "").encode(),
        f"{sys.version_info[0]}.{sys.version_info[1]}".encode(),
        os.fsencode(folder),  # virtual environments know where they are
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
