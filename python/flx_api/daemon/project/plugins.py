"""Plugins: from the entries of meltano.yml and the lock files to plugins with everything they inherit.

Strategy: two steps, because only the first tells which lock files are needed. `read_plugin` checks one entry as
Meltano's `ProjectPlugin` does and keeps it as a `Declared`; `Resolver` then gives each its parent, which is its own
custom definition, another plugin of the project or a lock file, and fills what the entry leaves out from there.

Rules:
- Pure: lock files come in as values.
- A plugin whose definition is missing or unusable stays in the project, marked: Meltano too notices only on use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from flx_api.daemon.project.document import Refused
from flx_api.daemon.project.entries import component_name, keyword_mapping, mapping_of, text_of
from flx_api.daemon.project.model import NOTHING, PLUGIN_TYPES, Command, Plugin, SettingModel, Source
from flx_api.daemon.project.settings import (
    EXTRAS,
    SUPERSET_EXTRAS,
    Setting,
    env_names,
    missing,
    read_settings,
)

DEFAULT_VARIANT = "default"
ORIGINAL_VARIANT = "original"
# What Meltano's constructors take by name; any other key of an entry is an extra.
_ENTRY = frozenset(
    {
        "name",
        "inherit_from",
        "namespace",
        "variant",
        "pip_url",
        "python",
        "executable",
        "capabilities",
        "settings_group_validation",
        "settings",
        "commands",
        "requires",
        "requires_meltano",
        "config",
        "default_variant",
        "env",
        "annotations",
    }
)
_PRESENTATION = frozenset({"hidden", "label", "logo_url", "description"})
_DEFINITION = frozenset(
    {"variants", "is_default_variant", "original", "deprecated", "docs", "repo", "supported_python_versions"}
)
_STANDALONE = frozenset(
    {
        "plugin_type",
        "name",
        "namespace",
        "variant",
        "label",
        "docs",
        "repo",
        "pip_url",
        "python",
        "executable",
        "description",
        "logo_url",
        "capabilities",
        "settings_group_validation",
        "settings",
        "commands",
        "requires",
        "requires_meltano",
        "env",
        "supported_python_versions",
        "annotations",
    }
)
_COMMAND = frozenset({"args", "description", "executable", "container_spec", "annotations"})
_SELECT_ALL = ("*.*",)


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin entry, checked but without its parent."""

    type: str
    name: str
    field: str
    inherit_from: str | None
    namespace: str | None
    variant: str | None
    default_variant: str
    text: Mapping[str, str | None]
    capabilities: tuple[str, ...] | None
    settings: tuple[Setting, ...]
    commands: Mapping[str, Command]
    config: Mapping[str, Any]
    extras: Mapping[str, Any]
    env: Mapping[str, str]
    mappings: tuple[str, ...]
    variants: tuple[Mapping[str, Any], ...]
    fault: Refused | None

    @property
    def is_custom(self) -> bool:
        """Whether the entry is a definition of its own."""
        return self.inherit_from is None and bool(self.namespace)

    @property
    def lock_file(self) -> str:
        """The lock file this entry's definition stands in, relative to the project."""
        name = self.inherit_from or self.name
        variant = self.default_variant if self.variant is None else self.variant
        return f"plugins/{self.type}/{name}--{variant}.lock" if variant else f"plugins/{self.type}/{name}.lock"


class _Parent(NamedTuple):
    """What a plugin falls back to."""

    name: str
    label: str | None
    namespace: str | None
    variant: str | None
    pip_url: str | None
    python: str | None
    executable: str | None
    description: str | None
    capabilities: tuple[str, ...] | None
    settings: tuple[Setting, ...]
    extra_settings: tuple[Setting, ...]
    commands: Mapping[str, Command]
    env: tuple[str, ...]
    select: tuple[str, ...]
    source: Source
    problem: str | None
    plugins: tuple[Plugin, ...]


def read_plugin(plugin_type: str, raw: object, field: str) -> Declared:
    """One entry of a section under `plugins`.

    Raises:
        Refused: Meltano would not load it.
    """
    entry = keyword_mapping(raw, field)
    if "plugin_type" in entry:
        raise Refused(field=f"{field}.plugin_type", reason="must not stand here; the section says the type")
    name = component_name(entry, field)
    # Meltano looks at the shape of these only when it uses the plugin: a fault is kept on the plugin.
    faults: list[Refused] = []

    def text(key: str) -> str | None:
        try:
            return text_of(entry, key, field)
        except Refused as refused:
            faults.append(refused)
            return None

    def mapping(key: str) -> dict[Any, Any]:
        try:
            return mapping_of(entry, key, field)
        except Refused as refused:
            faults.append(refused)
            return {}

    inherit_from = (text("inherit_from") if entry.get("inherit_from") else None) or None
    inherit_from = None if inherit_from == name else inherit_from
    namespace = text("namespace") if entry.get("namespace") else None
    custom = inherit_from is None and bool(namespace)
    extras = {key: value for key, value in entry.items() if key not in _ENTRY and key not in _PRESENTATION}
    variants: tuple[Mapping[str, Any], ...] = ()
    if custom:
        variants = _read_variants(entry.get("variants"), f"{field}.variants")
        if variants:
            # Beside `variants`, Meltano takes what would describe the only variant for extras.
            extras = {key: value for key, value in extras.items() if key not in {"variants", "is_default_variant"}}
            described = ("pip_url", "executable", "capabilities", "settings_group_validation", "settings", "requires")
            extras = {key: entry.get(key) for key in (*described, "requires_meltano")} | extras
        else:
            extras = {key: value for key, value in extras.items() if key not in _DEFINITION}
    _check_requires(entry.get("requires"), f"{field}.requires")
    try:
        capabilities = _capabilities(entry.get("capabilities"), f"{field}.capabilities")
    except Refused as refused:
        if custom and not isinstance(entry["capabilities"], str | dict):
            raise
        faults.append(refused)
        capabilities = None
    texts = ("pip_url", "python", "executable", "label", "description")
    return Declared(
        type=plugin_type,
        name=name,
        field=field,
        inherit_from=inherit_from,
        namespace=namespace,
        variant=text("variant"),
        default_variant=text("default_variant") or DEFAULT_VARIANT,
        text=MappingProxyType({key: text(key) for key in texts}),
        capabilities=capabilities,
        settings=read_settings(entry.get("settings"), f"{field}.settings"),
        commands=_read_commands(entry.get("commands"), f"{field}.commands"),
        config=MappingProxyType(mapping("config")),
        extras=MappingProxyType(extras),
        env=MappingProxyType({str(key): str(value) for key, value in mapping("env").items()}),
        mappings=_read_mappings(entry, field) if plugin_type == "mappers" else (),
        variants=variants,
        fault=faults[0] if faults else None,
    )


class Resolver:
    """Gives every declared plugin what it inherits.

    Args:
        declared: the entries in Meltano's order: by type, then as written.
        locks: lock files by name; None for one that does not exist, a `Refused` for one that cannot be read.
        suffix_names: variables of which a plugin's own values must be kept, because a state id is made of them.
    """

    def __init__(
        self,
        declared: Sequence[Declared],
        locks: Mapping[str, Mapping[str, Any] | Refused | None],
        suffix_names: frozenset[str] = frozenset(),
    ) -> None:
        self._declared = declared
        self._locks = locks
        self._suffix_names = suffix_names
        self._done: dict[int, tuple[Plugin, _Parent]] = {}
        self._open: set[int] = set()

    def plugins(self) -> tuple[Plugin, ...]:
        """All plugins, resolved, in the order they were declared."""
        return tuple(self._resolve(item)[0] for item in self._declared)

    def _resolve(self, item: Declared) -> tuple[Plugin, _Parent]:
        if id(item) not in self._done:
            self._open.add(id(item))
            try:
                self._done[id(item)] = self._build(item, self._parent_of(item))
            finally:
                self._open.discard(id(item))
        return self._done[id(item)]

    def _parent_of(self, item: Declared) -> _Parent:
        try:
            if item.is_custom:
                return _custom_parent(item)
            parent = self._inherited(item)
            if parent is None and (lock := self._locks.get(item.lock_file)) is not None:
                parent = _locked_parent(item, lock)
        except Refused as refused:
            return _no_parent(item, "broken", str(refused))
        return parent or _no_parent(item, "hub", f"{item.lock_file} does not exist; Meltano would ask the Hub")

    def _inherited(self, item: Declared) -> _Parent | None:
        """The plugin of the project this one inherits from; a variant says that a definition is meant instead."""
        if not item.inherit_from or item.variant is not None:
            return None
        found = self._find(item.type, item.inherit_from)
        if found is None:
            return None
        if id(found) in self._open:
            raise Refused(field=f"{item.field}.inherit_from", reason="leads back to this plugin")
        return self._resolve(found)[1]

    def _find(self, plugin_type: str, name: str) -> Declared | None:
        return next((item for item in self._declared if item.type == plugin_type and item.name == name), None)

    def _build(self, item: Declared, parent: _Parent) -> tuple[Plugin, _Parent]:
        text = {key: value if value is not None else getattr(parent, key) for key, value in item.text.items()}
        namespace, label = item.namespace, item.text["label"]
        if item.inherit_from:
            namespace = item.name.replace("-", "_") if namespace is None else namespace
            label = f"{parent.label}: {item.name}" if label is None else label
        else:
            namespace = parent.namespace if namespace is None else namespace
            label = parent.label if label is None else label
        variant = item.variant if item.variant is not None else parent.variant
        capabilities = parent.capabilities if item.capabilities is None else item.capabilities
        own = {setting.name for setting in item.settings}
        settings = (*(setting for setting in parent.settings if setting.name not in own), *item.settings)
        settings += missing(settings, item.config)
        extra_config = {f"_{key}": value for key, value in item.extras.items()}
        extra_settings = parent.extra_settings + missing(parent.extra_settings, extra_config)
        commands = {**parent.commands, **item.commands}
        env = tuple(dict.fromkeys((*parent.env, *item.env)))
        select = _select(item.extras.get("select", item.config.get("_select")), parent.select)
        prefixes = tuple(dict.fromkeys((item.name, namespace)))

        def named(found: Iterable[Setting]) -> tuple[SettingModel, ...]:
            return tuple(
                SettingModel(
                    setting.name,
                    setting.kind,
                    env_names(setting, prefixes, own_names=item.inherit_from is None),
                    setting.sensitive,
                    setting.custom,
                )
                for setting in found
            )

        plugin = Plugin(
            type=item.type,
            name=item.name,
            variant=item.default_variant if variant is None else variant,
            inherit_from=item.inherit_from,
            namespace=namespace,
            pip_url=text["pip_url"],
            executable=text["executable"],
            python=text["python"],
            label=label,
            description=text["description"],
            capabilities=capabilities or (),
            settings=named(settings),
            extra_settings=named(extra_settings),
            config=item.config,
            extras=item.extras,
            select=select if item.type == "extractors" else (),
            commands=MappingProxyType(commands),
            env=env,
            mappings=item.mappings,
            source="broken" if item.fault else parent.source,
            problem=str(item.fault) if item.fault else parent.problem,
            parents=parent.plugins,
            suffix_variables=MappingProxyType(
                {key: value for key, value in item.env.items() if key in self._suffix_names}
            ),
        )
        as_parent = _Parent(
            item.name,
            label,
            namespace,
            plugin.variant,
            plugin.pip_url,
            plugin.python,
            plugin.executable,
            plugin.description,
            capabilities,
            settings,
            extra_settings,
            commands,
            env,
            select,
            plugin.source if plugin.source in {"hub", "broken"} else "inherited",
            plugin.problem,
            (plugin, *parent.plugins),
        )
        return plugin, as_parent


def _custom_parent(item: Declared) -> _Parent:
    """The definition inside an entry with a namespace."""
    label = item.text["label"] or item.name
    executable, settings = item.text["executable"], item.settings
    variant, pip_url, capabilities = item.variant, item.text["pip_url"], item.capabilities
    description = item.text["description"]
    if item.variants:
        chosen = _choose_variant(item)
        field = f"{item.field}.variants"
        variant, pip_url = text_of(chosen, "name", field), text_of(chosen, "pip_url", field)
        executable, description = text_of(chosen, "executable", field), description or None
        capabilities = _capabilities(chosen.get("capabilities"), field)
        settings = read_settings(chosen.get("settings"), f"{field}.settings")
    return _Parent(
        item.name,
        label,
        item.namespace,
        variant,
        pip_url,
        item.text["python"],
        executable or item.name,
        description,
        capabilities or (),
        settings,
        _class_extras(item.type, item.name),
        NOTHING,
        (),
        _SELECT_ALL,
        "custom",
        None,
        (),
    )


def _choose_variant(item: Declared) -> Mapping[str, Any]:
    if item.variant in {None, DEFAULT_VARIANT}:
        return item.variants[0]
    if item.variant == ORIGINAL_VARIANT:
        return next((found for found in item.variants if found.get("original")), item.variants[0])
    for found in item.variants:
        if found.get("name") == item.variant:
            return found
    raise Refused(field=f"{item.field}.variant", reason="is not one of the variants")


def _locked_parent(item: Declared, lock: Mapping[str, Any] | Refused) -> _Parent:
    """The definition in a lock file.

    Raises:
        Refused: Meltano could not make a plugin of it.
    """
    if isinstance(lock, Refused):
        raise lock
    file = item.lock_file
    for key in ("plugin_type", "name", "namespace"):
        if not isinstance(lock.get(key), str):
            raise Refused(field=f"{file}:{key}", reason="must be a string")
    if lock["plugin_type"] not in PLUGIN_TYPES:
        raise Refused(field=f"{file}:plugin_type", reason="is not a plugin type")
    variant = text_of(lock, "variant", f"{file}:")
    wanted = item.default_variant if item.variant is None else item.variant
    if wanted not in {DEFAULT_VARIANT, ORIGINAL_VARIANT, variant}:
        raise Refused(field=f"{file}:variant", reason="is another variant than the one wanted")
    extras = {
        key: value
        for key, value in lock.items()
        if key not in _STANDALONE and key not in _PRESENTATION and key not in _DEFINITION
    }
    defaults = _class_extras(item.type, lock["name"])
    defaults += missing(defaults, {f"_{key}": value for key, value in extras.items()}, custom=False)
    return _Parent(
        lock["name"],
        text_of(lock, "label", f"{file}:") or lock["name"],
        lock["namespace"],
        variant,
        text_of(lock, "pip_url", f"{file}:"),
        text_of(lock, "python", f"{file}:"),
        text_of(lock, "executable", f"{file}:") or lock["name"],
        text_of(lock, "description", f"{file}:"),
        _capabilities(lock.get("capabilities"), f"{file}:capabilities") or (),
        read_settings(lock.get("settings"), f"{file}:settings"),
        defaults,
        _read_commands(lock.get("commands"), f"{file}:commands"),
        (),
        _select(extras.get("select"), _SELECT_ALL),
        "lock",
        None,
        (),
    )


def _no_parent(item: Declared, source: Source, problem: str) -> _Parent:
    name = item.inherit_from or item.name
    extras = _class_extras(item.type, name)
    return _Parent(
        name, name, None, None, None, None, None, None, None, (), extras, NOTHING, (), _SELECT_ALL, source, problem, ()
    )


def _class_extras(plugin_type: str, name: str) -> tuple[Setting, ...]:
    if (plugin_type, name) == ("utilities", "superset"):
        return SUPERSET_EXTRAS
    return EXTRAS.get(plugin_type, ())


def _select(raw: object, inherited: tuple[str, ...]) -> tuple[str, ...]:
    """Select rules; as text they are a JSON list."""
    if raw is None:
        return inherited
    rules = raw
    if isinstance(raw, str):
        try:
            rules = json.loads(raw)
        except ValueError:
            return (raw,)
    return tuple(str(rule) for rule in rules) if isinstance(rules, list) else (str(rules),)


def _read_variants(raw: object, field: str) -> tuple[Mapping[str, Any], ...]:
    if not raw:
        return ()
    if not isinstance(raw, list):
        raise Refused(field, "must be a list")
    return tuple(keyword_mapping(item, f"{field}[{index}]") for index, item in enumerate(raw))


def _capabilities(raw: object, field: str) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list):
        raise Refused(field, "must be a list")
    return tuple(str(item) for item in raw)


def _read_commands(raw: object, field: str) -> Mapping[str, Command]:
    if raw is None:
        return NOTHING
    if not isinstance(raw, dict):
        raise Refused(field, "must be a mapping")
    return MappingProxyType({str(name): _read_command(value, f"{field}.{name}") for name, value in raw.items()})


def _read_command(raw: object, field: str) -> Command:
    if raw is None:
        return Command()
    if isinstance(raw, str):
        return Command(raw)
    if not isinstance(raw, dict):
        raise Refused(field, "must be a string or a mapping with args")
    if unknown := [key for key in raw if key not in _COMMAND]:
        raise Refused(field=f"{field}.{unknown[0]}", reason="is not a key of a command")
    container = raw.get("container_spec")
    if container and not (isinstance(container, dict) and "image" in container):
        raise Refused(field=f"{field}.container_spec", reason="must be a mapping with an image")
    args = text_of(raw, "args", field)
    return Command(args or "", text_of(raw, "description", field), text_of(raw, "executable", field))


def _read_mappings(entry: Mapping[str, Any], field: str) -> tuple[str, ...]:
    raw = entry.get("mappings", [])
    if not isinstance(raw, list):
        raise Refused(field=f"{field}.mappings", reason="must be a list")
    names: list[str] = []
    for index, mapping in enumerate(raw):
        if not isinstance(mapping, dict):
            raise Refused(field=f"{field}.mappings[{index}]", reason="must be a mapping with name and config")
        if isinstance(name := mapping.get("name"), str):
            names.append(name)
        if not isinstance(mapping.get("config") or {}, dict):
            raise Refused(field=f"{field}.mappings[{index}].config", reason="must be a mapping")
    return tuple(names)


def _check_requires(raw: object, field: str) -> None:
    if raw is None:
        return
    if not isinstance(raw, dict):
        raise Refused(field, "must be a mapping of plugin types")
    for plugin_type, wanted in raw.items():
        if not isinstance(wanted, list):
            raise Refused(field=f"{field}.{plugin_type}", reason="must be a list")
        for index, item in enumerate(wanted):
            entry = keyword_mapping(item, f"{field}.{plugin_type}[{index}]")
            if "name" not in entry or not entry.keys() <= {"name", "variant", "annotations"}:
                raise Refused(
                    field=f"{field}.{plugin_type}[{index}]", reason="must have a name, may have a variant, nothing else"
                )
