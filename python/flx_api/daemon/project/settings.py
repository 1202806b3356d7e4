"""Settings of plugins: what can be set, of which kind, and through which environment variables.

Strategy: the rules of Meltano's `SettingDefinition`, as functions over plain values. A plugin's settings are those of
its parent, overridden by its own, plus one for every configured key nobody declared; its extras (`select`, `metadata`)
are settings whose names begin with an underscore.

Rules:
- Pure. Values of settings are looked at for their kind and never kept.
- `env_names` is the one place that knows how a variable's name is made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from flx_api.daemon.project.document import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KINDS = frozenset(
    {
        "string",
        "integer",
        "boolean",
        "decimal",
        "date_iso8601",
        "email",
        "password",
        "oauth",
        "options",
        "file",
        "array",
        "object",
        "hidden",
    }
)
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9]")


class Setting(msgspec.Struct, frozen=True):
    """A declared or discovered setting, before the names of its variables are known."""

    name: str
    kind: str | None = None
    env: str | None = None
    aliases: tuple[str, ...] = ()
    env_aliases: tuple[str, ...] = ()
    sensitive: bool = False
    custom: bool = False


# What Meltano's plugin classes add by themselves (EXTRA_SETTINGS of 4.4.1), by plugin type.
_SINGER = (Setting("_log_parser"),)
EXTRAS: dict[str, tuple[Setting, ...]] = {
    "extractors": (
        *_SINGER,
        Setting("_catalog"),
        Setting("_state"),
        Setting("_load_schema"),
        Setting("_select", "array"),
        Setting("_metadata", "object", aliases=("metadata",)),
        Setting("_schema", "object"),
        Setting("_select_filter", "array"),
        Setting("_use_cached_catalog", "boolean"),
    ),
    "loaders": (*_SINGER, Setting("_dialect")),
    "mappers": (
        *_SINGER,
        Setting("_mappings", "array", aliases=("mappings",)),
        Setting("_mapping_name", "string", aliases=("mapping_name",)),
    ),
    "transforms": (Setting("_package_name"), Setting("_vars", "object")),
    "files": (Setting("_update", "object", aliases=("update",)),),
}
SUPERSET_EXTRAS = (Setting("_config_path"),)


def read_settings(raw: object, field: str) -> tuple[Setting, ...]:
    """The declarations under a plugin's `settings`.

    Raises:
        Refused: an entry Meltano would refuse: no mapping, no name, a kind it does not know.
    """
    if not raw:
        return ()
    if not isinstance(raw, list):
        raise Refused(field, "must be a list")
    return tuple(_read_setting(item, f"{field}[{index}]") for index, item in enumerate(raw))


def _read_setting(raw: object, field: str) -> Setting:
    if not isinstance(raw, dict):
        raise Refused(field, "must be a mapping with a name")
    if not isinstance(raw.get("name"), str):
        raise Refused(field=f"{field}.name", reason="must be a string")
    kind = raw.get("kind") or None
    if kind is not None and kind not in KINDS:
        raise Refused(field=f"{field}.kind", reason=f"must be one of {', '.join(sorted(KINDS))}")
    sensitive = bool(raw.get("sensitive"))
    # Two kinds of old that are flags today; with the flag beside it, the kind is a plain string.
    if kind == "hidden" and raw.get("hidden"):
        kind = "string"
    if kind in {"password", "oauth"}:
        kind, sensitive = "string" if sensitive else kind, True
    env = raw.get("env")
    return Setting(
        raw["name"],
        kind,
        env if isinstance(env, str) else None,
        _names(raw.get("aliases"), f"{field}.aliases"),
        _names(raw.get("env_aliases"), f"{field}.env_aliases"),
        sensitive,
        bool(raw.get("custom", False)),
    )


def _names(raw: object, field: str) -> tuple[str, ...]:
    if not raw:
        return ()
    if not isinstance(raw, list) or not all(isinstance(name, str) for name in raw):
        raise Refused(field, "must be a list of strings")
    return tuple(raw)


def missing(known: Iterable[Setting], config: Mapping[str, Any], *, custom: bool = True) -> tuple[Setting, ...]:
    """One setting for each configured key that none of `known` declares; nested keys are joined by dots."""
    names = {setting.name for setting in known}
    return tuple(Setting(key, _kind_of(value), custom=custom) for key, value in flatten(config) if key not in names)


def flatten(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values; an empty mapping is a value."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def _kind_of(value: object) -> str | None:
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "decimal"), (dict, "object"), (list, "array")):
        if isinstance(value, kind):
            return name
    return None


def env_name(*parts: str | None) -> str:
    """The environment variable made of these parts, as Meltano makes it."""
    return "_".join(_NOT_IN_NAME.sub("_", part).upper() for part in parts if part)


def env_names(setting: Setting, prefixes: Iterable[str | None], *, own_names: bool) -> tuple[str, ...]:
    """Every variable through which a setting can be set.

    Args:
        setting: the setting.
        prefixes: name and namespace of the plugin.
        own_names: whether the `env_aliases` of the declaration count; they do not for a plugin that inherits.
    """
    used = [prefix for prefix in prefixes if prefix]
    names = [env_name(prefix, name) for name in (setting.name, *setting.aliases) for prefix in used]
    if own_names:
        names += [alias.removeprefix("!") for alias in setting.env_aliases]
    if setting.env:
        names.append(setting.env)
    return tuple(dict.fromkeys(names))
