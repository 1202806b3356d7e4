"""Meltano's own environment: where it is, and how it is made.

Strategy: Meltano and its 50 packages live apart from ours. The exact, hashed list is part of this package; uv installs
it. A virtual environment cannot be moved, so it is built in its final place: `.flx-building` is there first,
`.flx-complete` (with the digest of the list) last, a lock beside the folder keeps two builders apart.

Rules:
- A folder without our marks is someone's own: it is used when it holds Meltano, and never written.
- uv takes the Python that runs us and never downloads one.
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

from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flx_api.config import Settings

_COMPLETE = ".flx-complete"
_BUILDING = ".flx-building"


def environment_folder(settings: Settings) -> Path:
    """Where Meltano's environment is or will be."""
    return Path(settings.meltano).resolve() if settings.meltano else settings.data_path / "meltano"


def is_ready(folder: Path) -> bool:
    """Whether the folder holds a Meltano that can be used as it is."""
    complete = folder / _COMPLETE
    if complete.exists():
        return complete.read_text(encoding="ascii").strip() == _digest()
    return not (folder / _BUILDING).exists() and (folder / "bin" / "meltano").exists()


def version_of(folder: Path) -> str | None:
    """The version of the Meltano in an environment, read from its metadata without starting it."""
    for found in folder.glob("lib/python3*/site-packages/meltano-*.dist-info"):
        return found.name.removeprefix("meltano-").removesuffix(".dist-info")
    return None


def ensure(folder: Path, say: Callable[[str], None]) -> Path:
    """Make Meltano's environment unless it is there.

    Raises:
        StartupError: uv is missing, cannot install, or the folder is something else.
    """
    if is_ready(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_ready(folder):
                _build(folder, say)
    except OSError as error:
        msg = f"FLX_MELTANO: {folder} cannot be made: {os.strerror(error.errno or 0)}"
        raise StartupError(msg) from None
    return folder


def clean_environ() -> dict[str, str]:
    """Our environment without what would lead another Python or uv astray."""
    astray = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT"}
    environ = {name: value for name, value in os.environ.items() if name not in astray}
    return environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_COMPILE_BYTECODE": "1", "UV_NO_PROGRESS": "1"}


def _build(folder: Path, say: Callable[[str], None]) -> None:
    if folder.exists() and not (folder / _COMPLETE).exists():
        if any(folder.iterdir()) and not (folder / _BUILDING).exists():
            msg = f"FLX_MELTANO: {folder} exists and holds no Meltano (bin/meltano)"
            raise StartupError(msg)
        shutil.rmtree(folder)
    say("making Meltano's environment (once)")
    folder.mkdir(exist_ok=True)
    (folder / _BUILDING).touch()
    (folder / _COMPLETE).unlink(missing_ok=True)
    python = folder / "bin" / "python"
    if not python.exists():
        _uv("venv", "--quiet", "--no-project", "--allow-existing", "--python", sys.executable, str(folder))
    with resources.as_file(_requirements()) as file:
        _uv("pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode", "--python", str(python), str(file))
    (folder / _COMPLETE).write_text(_digest(), encoding="ascii")
    (folder / _BUILDING).unlink()


def _uv(*args: str) -> None:
    try:
        from uv import find_uv_bin  # noqa: PLC0415 - only those who build need it

        done = subprocess.run(  # noqa: S603 - our own tool, no shell, no input
            [find_uv_bin(), *args], env=clean_environ(), capture_output=True, text=True, check=False
        )
    except (ImportError, FileNotFoundError):
        msg = "FLX_MELTANO: uv, which makes Meltano's environment, is not installed (pip install uv)"
        raise StartupError(msg) from None
    if done.returncode != 0:
        lines = [line.strip(" \u00d7╰─▶│├") for line in done.stderr.splitlines() if line.strip()]
        msg = f"FLX_MELTANO: uv {args[0]} failed: {lines[-1] if lines else f'exit code {done.returncode}'}"
        raise StartupError(msg)


def _requirements() -> resources.abc.Traversable:
    return resources.files("flx_api.cli") / "meltano-requirements.txt"


def _digest() -> str:
    """What an environment must have been made from to be complete: the list and the Python."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}".encode()
    return hashlib.sha256(_requirements().read_bytes() + version).hexdigest()
