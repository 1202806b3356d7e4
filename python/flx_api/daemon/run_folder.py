"""A run's folder: what outlives a crash of the daemon, laid out in one place.

Strategy: everything about one attempt lies in `<data_dir>/runs/<attempt id>/`: what it is (`spec.json`, no secrets),
which process it is (`process.json`), its log, its meter records, its own exit record. Under `sys/` is the private
system folder Meltano works in, so that runs of one tap do not write each other's files; plugin environments in it are
links to the shared ones. What discovery found is worth keeping between runs: the catalogue of the last good run of an
extractor is copied into the next private folder and saves it a discovery.

Rules:
- All folders are 0700. `sys/` holds secrets (configuration files of plugins) while the run lives and is removed after.
- Of a private folder only the catalogue and its key are ever kept, never a configuration file.
- A catalogue without its key is never used: the key is removed before and written after the catalogue. Seeding and
  keeping hold one lock, so nobody sees a catalogue of one run with the key of another.
- Everything here is synchronous file work, a few milliseconds; the executor calls it in threads.
"""

from __future__ import annotations

import os
import shutil
import threading
from typing import TYPE_CHECKING, TypeVar

import msgspec

from flx_api.daemon.executors import ExitRecord, ProcessIdentity, RunSpec
from flx_api.errors import Conflict

if TYPE_CHECKING:
    from pathlib import Path

Record = TypeVar("Record")

CATALOGUE = "tap.properties.json"
CATALOGUE_KEY = "tap.properties.cache_key"

# What a run makes for itself in its private system folder; everything else there is a link to the shared one.
PRIVATE_NAMES = frozenset(
    {"run", "logs", "meltano.db", "meltano.db-wal", "meltano.db-shm", ".gitignore", "CACHEDIR.TAG"}
)
# Shared even when it does not exist yet: the usual place of a file state backend, which must outlive the run.
SHARED_STATE = "state"


class SpecOnDisk(msgspec.Struct, frozen=True):
    """A RunSpec as it is written down: the values of its overrides may be secrets, only their names are."""

    attempt_id: str
    execution_id: str
    blocks: tuple[str, ...]
    environment: str | None
    full_refresh: bool
    timeout_s: int | None
    state_id_suffix: str | None
    override_names: tuple[str, ...]
    extractors: tuple[str, ...]
    loaders: tuple[str, ...]


class ProcessOnDisk(msgspec.Struct, frozen=True):
    """Which process the attempt has; pids and start times are of one boot only."""

    pid: int
    start_time: int
    boot_id: str


class RunFolder:
    """The paths and records of one attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log.jsonl"
        self.meter = path / "meter"
        self.system = path / "sys"
        self._spec = path / "spec.json"
        self._exit = path / "exit.json"
        self._process = path / "process.json"

    @property
    def spec(self) -> SpecOnDisk | None:
        """What the attempt runs."""
        return _read(self._spec, SpecOnDisk)

    @property
    def exit_record(self) -> ExitRecord | None:
        """What the run wrote about its end."""
        return _read(self._exit, ExitRecord)

    @property
    def process(self) -> ProcessOnDisk | None:
        """The process that was made for the attempt."""
        return _read(self._process, ProcessOnDisk)

    @property
    def was_released(self) -> bool:
        """Whether the run has begun: the first thing it does is to open its log."""
        return self.log.exists()

    def identity(self, boot_id: str) -> ProcessIdentity | None:
        """The attempt's process, if it is of this boot and not known to be gone."""
        process = self.process
        if process is None or not process.pid or process.boot_id != boot_id:
            return None
        return ProcessIdentity(process.pid, process.start_time)

    def write_process(self, identity: ProcessIdentity, boot_id: str) -> None:
        """Remember the process, before it may do anything."""
        _write(self._process, ProcessOnDisk(identity.pid, identity.start_time, boot_id))

    def write_gone(self, boot_id: str) -> None:
        """The process and its session are gone: its pid may become somebody else's and must not be acted upon."""
        self.write_process(ProcessIdentity(0, 0), boot_id)

    def write_spec(self, spec: RunSpec) -> None:
        """Write down what runs, without the values of overrides."""
        _write(
            self._spec,
            SpecOnDisk(
                attempt_id=spec.attempt_id,
                execution_id=spec.execution_id,
                blocks=spec.blocks,
                environment=spec.environment,
                full_refresh=spec.full_refresh,
                timeout_s=spec.timeout_s,
                state_id_suffix=spec.state_id_suffix,
                override_names=tuple(sorted(spec.overrides)),
                extractors=spec.extractors,
                loaders=spec.loaders,
            ),
        )

    def remove_system(self) -> None:
        """Remove the private system folder with its secrets. Links are removed, never followed."""
        shutil.rmtree(self.system, ignore_errors=True)
        if self.system.exists():  # something was made while we removed
            shutil.rmtree(self.system)


class RunFolders:
    """All run folders of one data directory, and the catalogues kept between runs."""

    def __init__(self, data_dir: Path, shared_system: Path) -> None:
        self._runs = data_dir / "runs"
        self._catalogues = data_dir / "catalogues"
        self._shared = shared_system
        self._catalogue_lock = threading.Lock()

    def of(self, attempt_id: str) -> RunFolder:
        """The folder of an attempt, whether it exists or not."""
        return RunFolder(self._runs / _one_segment(attempt_id))

    def prepare(self, spec: RunSpec) -> RunFolder:
        """Make everything a run needs before it has a process.

        Raises:
            Conflict: the attempt has had a process before; a run is never started twice under one id.
        """
        folder = self.of(spec.attempt_id)
        if folder.process is not None or folder.exit_record is not None:
            raise Conflict("The attempt has been started before.")
        for path in (self._runs, folder.path, folder.meter, folder.system):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.write_spec(spec)
        self._link_shared(folder.system)
        with self._catalogue_lock:
            for extractor in spec.extractors:
                self._seed(self._catalogue_of(spec.environment, extractor), folder.system / "run" / extractor)
        return folder

    def keep_catalogues(self, folder: RunFolder, environment: str | None) -> None:
        """Keep what discovery found in a good run, for the next run of each extractor."""
        with self._catalogue_lock:
            for found in sorted(folder.system.glob(f"run/*/{CATALOGUE}")):
                if (found.parent / CATALOGUE_KEY).is_file():
                    _copy_pair(found.parent, self._catalogue_of(environment, found.parent.name))

    def forget_catalogues(self, extractor: str) -> None:
        """Discover anew in the next run, in every environment: the extractor was installed or changed."""
        with self._catalogue_lock:
            for kept in self._catalogues.glob(f"*/{_one_segment(extractor)}"):
                shutil.rmtree(kept)

    def with_leftovers(self) -> list[str]:
        """Attempts whose private folder, with its secrets, still exists: to be settled by a restarted daemon."""
        if not self._runs.is_dir():
            return []
        return sorted(path.parent.name for path in self._runs.glob("*/sys"))

    def remove(self, attempt_id: str) -> None:
        """Forget an attempt: retention says so."""
        shutil.rmtree(self.of(attempt_id).path, ignore_errors=True)

    def _link_shared(self, system: Path) -> None:
        (self._shared / SHARED_STATE).mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self._shared):
            link = system / entry.name
            if entry.name not in PRIVATE_NAMES and not link.is_symlink():
                link.symlink_to(entry.path)

    def _seed(self, kept: Path, target: Path) -> None:
        if (kept / CATALOGUE_KEY).is_file() and (kept / CATALOGUE).is_file():
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            _copy_pair(kept, target)

    def _catalogue_of(self, environment: str | None, extractor: str) -> Path:
        return self._catalogues / _one_segment(environment or "_") / _one_segment(extractor)


def _copy_pair(source: Path, target: Path) -> None:
    """Copy a catalogue and its key so that a crash in between leaves a catalogue without a key, never a wrong pair."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    (target / CATALOGUE_KEY).unlink(missing_ok=True)
    for name in (CATALOGUE, CATALOGUE_KEY):
        new = target / (name + ".new")
        shutil.copyfile(source / name, new)
        new.replace(target / name)


def _one_segment(name: str) -> str:
    """A name as exactly one path segment; names come from the project and from requests."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise ValueError("not a path segment")
    return name


def _read(path: Path, kind: type[Record]) -> Record | None:
    """A record, None when there is none or only a part of one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write(path: Path, record: msgspec.Struct) -> None:
    new = path.with_name(path.name + ".new")
    new.write_bytes(msgspec.json.encode(record))
    new.replace(path)
