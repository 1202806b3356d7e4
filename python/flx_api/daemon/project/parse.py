"""From the contents of a project's files to its `ProjectModel`.

Strategy: two steps with the shell between them. `declare` merges meltano.yml with the files it includes and checks
every entry as Meltano's constructors do; its result names the lock files to read. `build` resolves plugins against
those and puts the model together.

Rules:
- Pure: contents and an environment in; a model, or `ProjectInvalid` with every fault found, out.
- A fault is named by file and path, `meltano.yml:plugins.extractors[0].name`, in the file it stands in.
- What Meltano loads is loaded. What it loads but can never run is marked on the entry, not refused.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flx_api.daemon.project.annotations import retry_of
from flx_api.daemon.project.blocks import expand_variables, variables_in
from flx_api.daemon.project.document import Refused, merge
from flx_api.daemon.project.entries import component_name, keyword_mapping, mapping_of, text_of
from flx_api.daemon.project.model import (
    PLUGIN_TYPES,
    Environment,
    Job,
    Override,
    ProjectModel,
    Schedule,
)
from flx_api.daemon.project.plugins import Declared, Resolver, read_plugin
from flx_api.daemon.project.settings import flatten
from flx_api.errors import FieldError, ProjectInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

MAIN_FILE = "meltano.yml"
CRON_OF_INTERVAL: Mapping[str, str | None] = MappingProxyType(
    {
        "@once": None,
        "@manual": None,
        "@none": None,
        "@hourly": "0 * * * *",
        "@daily": "0 0 * * *",
        "@midnight": "0 0 * * *",
        "@weekly": "0 0 * * 0",
        "@monthly": "0 0 1 * *",
        "@yearly": "0 0 1 1 *",
        "@annually": "0 0 1 1 *",
    }
)
_LISTS = ("schedules", "environments", "jobs")
_ENVIRONMENT = frozenset({"name", "config", "env", "state_id_suffix", "annotations"})
_JOB = frozenset({"name", "tasks", "annotations"})

T = TypeVar("T")


class Document(NamedTuple):
    """One parsed file: its name relative to the project and its plain content."""

    file: str
    content: object


class Declarations(NamedTuple):
    """All entries of the project, checked, before lock files are read."""

    content: Mapping[str, Any]
    plugins: tuple[Declared, ...]
    jobs: tuple[Job, ...]
    schedules: tuple[Schedule, ...]
    environments: tuple[Environment, ...]
    env: Mapping[str, str | None]

    @property
    def lock_files(self) -> tuple[str, ...]:
        """The lock files that could matter, relative to the project."""
        return tuple(dict.fromkeys(item.lock_file for item in self.plugins if not item.is_custom))


class Values(NamedTuple):
    """What is known of the world outside the project's YAML: the process environment and the `.env` file."""

    environ: Mapping[str, str]
    dotenv: Mapping[str, str]


def include_patterns(content: object) -> tuple[str, ...]:
    """The glob patterns under `include_paths` of meltano.yml.

    Raises:
        ProjectInvalid: it is not a list of relative patterns.
    """
    if not isinstance(content, dict):
        return ()
    field = f"{MAIN_FILE}:include_paths"
    patterns = content.get("include_paths", [])
    if not isinstance(patterns, list):
        raise invalid([Refused(field, "must be a list of patterns")])
    for index, pattern in enumerate(patterns):
        if not isinstance(pattern, str) or not pattern or Path(pattern).is_absolute() or Path(pattern) == Path():
            raise invalid([Refused(field=f"{field}[{index}]", reason="must be a pattern relative to the project")])
    return tuple(patterns)


def declare(main: object, included: Sequence[Document] = ()) -> Declarations:
    """Every entry of meltano.yml and of the files it includes.

    Args:
        main: the plain content of meltano.yml.
        included: the included files in the order in which they were found.

    Raises:
        ProjectInvalid: Meltano would not load this project.
    """
    if main is None:
        raise invalid([Refused(MAIN_FILE, "is empty")])
    if not isinstance(main, dict):
        raise invalid([Refused(MAIN_FILE, "must be a mapping")])
    faults: list[Refused] = []
    content, origins = main, _Origins(MAIN_FILE)
    try:
        keyword_mapping(main, MAIN_FILE)
        for file, more in _checked(included):
            origins.add(content, file, more)
            content = merge(content, more, f"{MAIN_FILE}:")
        found = Declarations(
            content,
            tuple(_each_plugin(content, origins, faults)),
            tuple(_each(content, "jobs", origins, faults, _read_job)),
            tuple(_each(content, "schedules", origins, faults, _read_schedule)),
            tuple(_each(content, "environments", origins, faults, _read_environment)),
            _read_env(content),
        )
    except Refused as refused:
        raise invalid([*faults, refused]) from None
    except RecursionError:
        raise invalid([Refused(MAIN_FILE, "nested too deeply")]) from None
    if faults:
        raise invalid(faults)
    return found


def build(
    declared: Declarations,
    *,
    root: Path,
    revision: str,
    files: Sequence[str],
    locks: Mapping[str, Mapping[str, Any] | Refused | None],
    values: Values,
) -> ProjectModel:
    """The project's model.

    Args:
        declared: what `declare` found.
        root: the project's folder.
        revision: the hash of all contents.
        files: the files that exist, relative to the root.
        locks: the content of each of `declared.lock_files`, None for one that does not exist.
        values: the process environment and the `.env` file.
    """
    resolve = _ProjectSettings(declared, root, values)
    wanted = frozenset(
        name for environment in declared.environments for name in variables_in(environment.state_id_suffix or "")
    )
    try:
        plugins = Resolver(declared.plugins, locks, wanted).plugins()
    except RecursionError:
        raise invalid([Refused(MAIN_FILE, "nested too deeply")]) from None
    return ProjectModel(
        root=root,
        revision=revision,
        files=tuple(files),
        project_id=resolve.setting("project_id"),
        default_environment=_selected_environment(values)
        if _is_selected(values)
        else resolve.setting("default_environment"),
        environments=declared.environments,
        plugins=plugins,
        jobs=declared.jobs,
        schedules=declared.schedules,
        database_uri=resolve.setting("database_uri"),
        state_backend_uri=resolve.setting("state_backend.uri"),
        requires_meltano=text_of(declared.content, "requires_meltano", f"{MAIN_FILE}:"),
        dotenv_names=tuple(values.dotenv),
        env=tuple(declared.env),
        run_suffix=values.environ.get("MELTANO_RUN_STATE_ID_SUFFIX") or None,
        suffix_variables=MappingProxyType(
            {name: resolve.variables[name] for name in wanted & resolve.variables.keys()}
        ),
    )


def invalid(faults: Iterable[Refused]) -> ProjectInvalid:
    """The error a client sees."""
    errors = [FieldError(fault.field, fault.reason) for fault in faults]
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return ProjectInvalid(f"{errors[0].field}: {errors[0].reason}{more}", errors=errors)


class _Origins:
    """Which file the entries of a merged list came from: merging extends lists, so a count is enough."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._parts: dict[str, list[tuple[int, str]]] = {}

    def add(self, before: Mapping[str, Any], file: str, more: Mapping[str, Any]) -> None:
        """Note where each list of the content `before` ends, because `more` extends it."""
        sections = more.get("plugins")
        names = [f"plugins.{name}" for name in sections] if isinstance(sections, dict) else []
        for name in (*_LISTS, *names):
            there = before
            for key in name.split(".", 1):
                there = there.get(key) or {} if isinstance(there, dict) else {}
            self._parts.setdefault(name, []).append((len(there), file))

    def field(self, section: str, index: int) -> str:
        """The path of one entry in the file it stands in."""
        file, start = self._file, 0
        for begin, name in self._parts.get(section, ()):
            if index >= begin:
                file, start = name, begin
        return f"{file}:{section}[{index - start}]"


def _checked(included: Sequence[Document]) -> list[tuple[str, dict[str, Any]]]:
    """Included files are held to more than meltano.yml: no empty section, no name twice among them."""
    seen: dict[tuple[str, str], str] = {}
    checked: list[tuple[str, dict[str, Any]]] = []
    for file, raw in included:
        if raw is None:
            raise Refused(file, "is empty; an included file must hold a mapping")
        content = keyword_mapping(raw, file)
        checked.append((file, content))
        sections = content.get("plugins", {})
        if not isinstance(sections, dict):
            raise Refused(field=f"{file}:plugins", reason="must be a mapping of plugin types")
        lists = {f"plugins.{name}": entries for name, entries in sections.items()}
        lists |= {name: content.get(name, []) for name in _LISTS}
        for section, entries in lists.items():
            if not isinstance(entries, list | dict) or (isinstance(entries, dict) and entries):
                raise Refused(field=f"{file}:{section}", reason="must be a list; leave an empty section out")
            for index, entry in enumerate(entries):
                field = f"{file}:{section}[{index}]"
                if not isinstance(entry, dict) or "name" not in entry:
                    raise Refused(field, "must be a mapping with a name")
                key = (section, str(entry["name"]))
                if key in seen:
                    raise Refused(field=f"{field}.name", reason=f"stands in {seen[key]} already")
                seen[key] = file
    return checked


def _each_plugin(content: Mapping[str, Any], origins: _Origins, faults: list[Refused]) -> Iterator[Declared]:
    sections = content.get("plugins") or {}
    if not isinstance(sections, dict):
        raise Refused(field=f"{MAIN_FILE}:plugins", reason="must be a mapping of plugin types")
    for name, entries in sections.items():
        # Meltano looks at the type of an entry, so that an empty section may be called anything.
        if name not in PLUGIN_TYPES and entries not in ([], {}, ""):
            faults.append(
                Refused(field=f"{MAIN_FILE}:plugins.{name}", reason=f"is not a plugin type ({', '.join(PLUGIN_TYPES)})")
            )
    for plugin_type in PLUGIN_TYPES:
        if plugin_type not in sections:
            continue
        entries = sections[plugin_type]
        if not isinstance(entries, list) and entries not in ({}, ""):
            faults.append(
                Refused(field=f"{MAIN_FILE}:plugins.{plugin_type}", reason="must be a list; leave an empty section out")
            )
            continue
        for index, entry in enumerate(entries):
            try:
                yield read_plugin(plugin_type, entry, origins.field(f"plugins.{plugin_type}", index))
            except Refused as refused:
                faults.append(refused)


def _each(
    content: Mapping[str, Any],
    section: str,
    origins: _Origins,
    faults: list[Refused],
    read: Callable[[dict[str, Any], str], T],
) -> Iterator[T]:
    entries = content.get(section) or []
    if not isinstance(entries, list):
        raise Refused(field=f"{MAIN_FILE}:{section}", reason="must be a list")
    for index, entry in enumerate(entries):
        field = origins.field(section, index)
        try:
            yield read(keyword_mapping(entry, field), field)
        except Refused as refused:
            faults.append(refused)


def _read_job(entry: dict[str, Any], field: str) -> Job:
    _only(entry, _JOB, field)
    for key in ("name", "tasks"):
        if key not in entry:
            raise Refused(field=f"{field}.{key}", reason="is missing")
    name = text_of(entry, "name", field) or ""
    try:
        # Text is a sequence of letters to Meltano; whoever wrote `tasks: tap target` gets the error a run would give.
        tasks = tuple(_split(task) for task in _items(entry["tasks"]))
    except TypeError:
        return Job(name, (), "tasks must be a list of block names or of lists of them")
    retry, problem = retry_of(entry.get("annotations"))
    return Job(name, tasks, problem, retry)


def _items(value: object) -> Iterable[Any]:
    if not isinstance(value, str | list | dict):
        raise TypeError
    return value


def _split(task: object) -> tuple[str, ...]:
    """A task's block names. Only the space divides: two of them leave an empty name, as in Meltano."""
    if isinstance(task, str):
        return tuple(task.split(" "))
    return tuple(name for item in _items(task) for name in _split(item))


def _read_schedule(entry: dict[str, Any], field: str) -> Schedule:
    wanted = ("name", "interval") if entry.get("job") else ("name", "interval", "extractor", "loader", "transform")
    for key in wanted:
        if key not in entry:
            hint = "" if entry.get("job") or key in {"name", "interval"} else ", or name a job"
            raise Refused(field=f"{field}.{key}", reason=f"is missing{hint}")
    interval = text_of(entry, "interval", field)
    env = entry.get("env") or {}
    return Schedule(
        text_of(entry, "name", field) or "",
        interval,
        CRON_OF_INTERVAL.get(interval, interval) if interval else None,
        text_of(entry, "job", field) or None,
        text_of(entry, "extractor", field),
        text_of(entry, "loader", field),
        text_of(entry, "transform", field),
        text_of(entry, "start_date", field),
        tuple(str(name) for name in env) if isinstance(env, dict) else (),
        MappingProxyType(_variables(env) if isinstance(env, dict) else {}),
    )


def _variables(env: dict[Any, Any]) -> dict[str, str]:
    """Variables as a process gets them: YAML's numbers and truth values as text."""
    spelled = {name: str(value).lower() if isinstance(value, bool) else value for name, value in env.items()}
    return {str(name): "" if value is None else str(value) for name, value in spelled.items()}


def _read_environment(entry: dict[str, Any], field: str) -> Environment:
    _only(entry, _ENVIRONMENT, field)
    name = component_name(entry, field)
    suffix = entry.get("state_id_suffix") or None
    if suffix is not None and not isinstance(suffix, str):
        # Meltano loads a number here and then fails in every run of the environment.
        raise Refused(field=f"{field}.state_id_suffix", reason="must be a string; put it in quotes")
    config = keyword_mapping(entry.get("config") or {}, f"{field}.config")
    sections = mapping_of(config, "plugins", f"{field}.config")
    overrides: list[Override] = []
    for plugin_type, entries in sections.items():
        section = f"{field}.config.plugins.{plugin_type}"
        if plugin_type not in PLUGIN_TYPES:
            raise Refused(section, "is not a plugin type")
        if not isinstance(entries, list) and entries not in ({}, ""):
            raise Refused(section, "must be a list; leave an empty section out")
        overrides += (_read_override(plugin_type, item, f"{section}[{at}]") for at, item in enumerate(entries))
    env = mapping_of(entry, "env", field)
    return Environment(name, tuple(overrides), tuple(str(key) for key in env), suffix)


def _read_override(plugin_type: str, raw: object, field: str) -> Override:
    entry = keyword_mapping(raw, field)
    if "plugin_type" in entry:
        raise Refused(field=f"{field}.plugin_type", reason="must not stand here; the section says the type")
    name = component_name(entry, field)
    config = mapping_of(entry, "config", field)
    extras = {f"_{key}": value for key, value in entry.items() if key not in {"name", "config", "env", "annotations"}}
    both = {**config, **extras}
    env = mapping_of(entry, "env", field)
    keys = tuple(key for key, _ in flatten(both))
    return Override(plugin_type, name, keys, tuple(str(key) for key in env), MappingProxyType(both))


def _read_env(content: Mapping[str, Any]) -> dict[str, str | None]:
    env = content.get("env") or {}
    if not isinstance(env, dict):
        raise Refused(field=f"{MAIN_FILE}:env", reason="must be a mapping")
    return {str(key): None if value is None else str(value) for key, value in env.items()}


def _only(entry: Mapping[str, Any], known: frozenset[str], field: str) -> None:
    if unknown := [key for key in entry if key not in known]:
        raise Refused(field=f"{field}.{unknown[0]}", reason=f"is not known here (known: {', '.join(sorted(known))})")


def _is_selected(values: Values) -> bool:
    """Whether MELTANO_ENVIRONMENT says something; `null` says that there is none."""
    return bool(values.environ.get("MELTANO_ENVIRONMENT", values.dotenv.get("MELTANO_ENVIRONMENT")))


def _selected_environment(values: Values) -> str | None:
    name = values.environ.get("MELTANO_ENVIRONMENT", values.dotenv.get("MELTANO_ENVIRONMENT", ""))
    return None if name.lower() == "null" else name


class _ProjectSettings:
    """Meltano's own settings, resolved in its order: `env` of meltano.yml, process, `.env`, meltano.yml."""

    def __init__(self, declared: Declarations, root: Path, values: Values) -> None:
        self._content = declared.content
        own = {name: value for name, value in declared.env.items() if value is not None}
        self._environ = {
            **values.environ,
            "MELTANO_PROJECT_ROOT": str(root),
            "MELTANO_SYS_DIR_ROOT": values.environ.get("MELTANO_SYS_DIR_ROOT") or str(root / ".meltano"),
            **own,
        }
        self._dotenv = values.dotenv
        self.variables = {**self._dotenv, **self._environ}
        for key, value in flatten(self._content):
            if isinstance(value, str) and key.split(".", 1)[0] not in {"plugins", "jobs", "schedules", "environments"}:
                self.variables.setdefault(_setting_variable(key), expand_variables(value, self.variables))

    def setting(self, name: str) -> str | None:
        """The value of one of Meltano's settings, None where its default holds."""
        variable = _setting_variable(name)
        for store in (self._environ, self._dotenv):
            if variable in store:
                return store[variable] or None
        value = text_of(self._content, name, f"{MAIN_FILE}:")
        section, _, key = name.partition(".")
        if value is None and key and isinstance(inner := self._content.get(section), dict):
            value = text_of(inner, key, f"{MAIN_FILE}:{section}")
        return expand_variables(value, self.variables) or None if value else None


def _setting_variable(name: str) -> str:
    return f"MELTANO_{name}".upper().replace(".", "_").replace("-", "_")
