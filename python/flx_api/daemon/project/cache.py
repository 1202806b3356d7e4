"""The project's files and the model made of them: the shell around `parse`.

Strategy: `current()` compares the stamps (stat) of every file that took part with those of the last reading, and
answers with the model it has when all are equal. Folders in which an include pattern could find a new file are stamped
too; a change there alone only repeats the search. A file written so recently that a second write could leave the same
stamp is compared by content until it has settled. Within one turn of an event loop one look serves all who ask: many
commands that came together cost one, and none waits for the interpreter's lock after each stat.

Rules:
- Stamps are taken before contents, so that a write in between shows as a change next time.
- A broken project is an answer like any other: kept, and raised anew until one of its files changes.
- Files are named relative to the project, everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from flx_api.daemon.project.document import Refused, read_lock, read_yaml
from flx_api.daemon.project.dotenv import read_dotenv
from flx_api.daemon.project.parse import (
    MAIN_FILE,
    Document,
    Values,
    build,
    declare,
    include_patterns,
    invalid,
)
from flx_api.daemon.run_environment import OURS
from flx_api.errors import ProjectInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from flx_api.daemon.project.model import ProjectModel

DOTENV_FILE = ".env"
# The coarsest clock a file system in use stamps files with (a scheduler tick), several times over.
SETTLED_NS = 100_000_000

Stamp = tuple[int, int, int, int] | None


class _Reading(NamedTuple):
    """One reading of the project: what was read, and what came of it."""

    stamps: dict[str, Stamp]
    folders: dict[str, Stamp]
    patterns: tuple[str, ...]
    included: tuple[str, ...]
    contents: dict[str, bytes | None]
    model: ProjectModel | None
    error: ProjectInvalid | None


class _Watch(NamedTuple):
    """A reading and what must hold for it to count; one value, so that threads never see half of it change.

    `present` and `missing` are what every call looks at: absolute paths, those that exist with the stamp they had.
    """

    reading: _Reading
    present: tuple[tuple[str, Stamp], ...]
    missing: tuple[str, ...]
    settled: bool


class ProjectCache:
    """The present model of the project in a folder.

    Args:
        root: the folder with meltano.yml.
        environ: the environment Meltano will run in; MELTANO_ENVIRONMENT and what `${NAME}` refers to come from it.
        clock: nanoseconds since the epoch, on the clock that stamps files.
    """

    def __init__(self, root: Path, environ: Mapping[str, str], *, clock: Callable[[], int] = time.time_ns) -> None:
        self.root = root.resolve()
        self._prefix = f"{self.root}{os.sep}"
        # Runs never see our own variables, so what the project writes with their names means nothing here either.
        self._environ = {name: value for name, value in environ.items() if not name.startswith(OURS)}
        self._clock = clock
        self._watch: _Watch | None = None
        self._is_looked_at = False

    def current(self) -> ProjectModel:
        """The model of what the files say now.

        Raises:
            ProjectInvalid: the files cannot be used; the error names file, field and reason.
        """
        watch = self._watch
        if watch is None or not self._is_looked_at:
            if watch is None or not watch.settled or not _is_unchanged(watch):
                watch = self._watch = self._refresh(watch)
            # Without a loop everybody looks for himself.
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().call_soon(self._end_turn)
                self._is_looked_at = True
        reading = watch.reading
        if reading.model is not None:
            return reading.model
        # A new error each time: one object raised again and again would gather tracebacks.
        kept = reading.error or ProjectInvalid()
        raise ProjectInvalid(kept.detail, errors=kept.errors)

    def _end_turn(self) -> None:
        self._is_looked_at = False

    def _refresh(self, watch: _Watch | None) -> _Watch:
        now = self._clock()
        reading = (self._same(watch.reading) if watch is not None else None) or self._read()
        stamps = (*reading.stamps.items(), *reading.folders.items())
        times = [moment for _, stamp in stamps if stamp is not None for moment in stamp[:2]]
        return _Watch(
            reading,
            tuple((self._prefix + name, stamp) for name, stamp in stamps if stamp is not None),
            tuple(self._prefix + name for name, stamp in stamps if stamp is None),
            # A time far ahead (an unpacked archive) is as safe as one long past: the next write will not repeat it.
            all(abs(now - moment) > SETTLED_NS for moment in times),
        )

    def _same(self, old: _Reading) -> _Reading | None:
        """The old reading with new stamps, if no content and no included file has changed."""
        folders = self._stamps(self._folders(old.patterns))
        stamps = self._stamps(old.stamps)
        try:
            if self._search(old.patterns) != old.included:
                return None
        except ProjectInvalid:
            return None
        if any(self._content(name) != content for name, content in old.contents.items()):
            return None
        return old._replace(stamps=stamps, folders=folders)

    def _read(self) -> _Reading:
        """Everything anew. What was touched before a fault is watched, so that its repair is seen."""
        stamps: dict[str, Stamp] = {}
        contents: dict[str, bytes | None] = {}
        folders: dict[str, Stamp] = {}
        patterns: tuple[str, ...] = ()
        included: tuple[str, ...] = ()

        def fetch(name: str) -> bytes | None:
            stamps[name] = self._stamp(name)
            contents[name] = self._content(name)
            return contents[name]

        model = error = None
        try:
            main = fetch(MAIN_FILE)
            dotenv = fetch(DOTENV_FILE)
            if main is None:
                raise invalid([Refused(MAIN_FILE, "does not exist or cannot be read")])
            content = _yaml(main, MAIN_FILE)
            patterns = include_patterns(content)
            folders = self._stamps(self._folders(patterns))
            included = self._search(patterns)
            documents = [Document(name, _yaml(fetch(name), name)) for name in included]
            declared = declare(content, documents)
            locks = {name: _lock(fetch(name), name) for name in declared.lock_files}
            values = Values(self._environ, read_dotenv(_text(dotenv or b"", DOTENV_FILE), self._environ))
            model = build(
                declared,
                root=self.root,
                revision=_revision(contents),
                files=[name for name, found in contents.items() if found is not None],
                locks=locks,
                values=values,
            )
        except Refused as refused:
            error = invalid([refused])
        except ProjectInvalid as found:
            error = found
        return _Reading(stamps, folders, patterns, included, contents, model, error)

    def _stamps(self, names: Iterable[str]) -> dict[str, Stamp]:
        return {name: self._stamp(name) for name in names}

    def _stamp(self, name: str) -> Stamp:
        try:
            found = os.stat(self._prefix + name)  # noqa: PTH116  as in the loop that runs on every call
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def _content(self, name: str) -> bytes | None:
        try:
            return Path(self._prefix + name).read_bytes()
        except OSError:
            return None

    def _search(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The files the patterns find, in Meltano's order, which is the folder's own.

        Raises:
            ProjectInvalid: a pattern finds a folder, or a file outside the project.
        """
        found: dict[str, None] = {}
        for index, pattern in enumerate(patterns):
            field = f"{MAIN_FILE}:include_paths[{index}]"
            try:
                for path in self.root.glob(pattern):
                    name = path.relative_to(self.root).as_posix()
                    if name == MAIN_FILE:
                        continue
                    if not path.is_file():
                        raise invalid([Refused(field, "finds something that is not a file")])
                    if not path.resolve().is_relative_to(self.root):
                        raise invalid([Refused(field, "finds a file outside the project")])
                    found[name] = None
            except (ValueError, NotImplementedError, OSError):
                raise invalid([Refused(field, "must be a pattern relative to the project")]) from None
        return tuple(found)

    def _folders(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The folders whose listing decides what the patterns find."""
        found = (folder for pattern in patterns for folder in _visited(self.root, PurePath(pattern).parts))
        return tuple(dict.fromkeys(_relative(self.root, folder) for folder in found))


def _is_unchanged(watch: _Watch) -> bool:
    # The one loop that runs on every call, so it is written for speed: to ask whether a file is still missing costs a
    # third of a stat that fails.
    stat, exists = os.stat, os.access
    for path in watch.missing:
        if exists(path, os.F_OK):
            return False
    try:
        for path, stamp in watch.present:
            found = stat(path)
            if stamp != (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino):
                return False
    except OSError:
        return False
    return True


def _visited(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        return
    yield folder
    head, rest = parts[0], parts[1:]
    if head == "**":
        for child in _subfolders(folder):
            yield from _visited(child, parts)
        yield from _visited(folder, rest)
    elif any(mark in head for mark in "*?["):
        for child in _subfolders(folder):
            if rest and fnmatch(child.name, head):
                yield from _visited(child, rest)
    elif rest:
        yield from _visited(folder / head, rest)


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _relative(root: Path, folder: Path) -> str:
    return Path(os.path.relpath(folder, root)).as_posix()


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refused(name, "is not UTF-8 text") from None


def _yaml(content: bytes | None, name: str) -> object:
    if content is None:
        raise Refused(name, "cannot be read")
    return read_yaml(_text(content, name), name)


def _lock(content: bytes | None, name: str) -> Mapping[str, Any] | Refused | None:
    if content is None:
        return None
    try:
        return read_lock(_text(content, name), name)
    except Refused as refused:
        return refused


def _revision(contents: Mapping[str, bytes | None]) -> str:
    """One hash over names and contents; a file that appears or disappears changes it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, content in sorted(contents.items()):
        digest.update(f"{name}\0{-1 if content is None else len(content)}\0".encode())
        digest.update(content or b"")
    return digest.hexdigest()
