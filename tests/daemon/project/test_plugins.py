"""Plugins and what they inherit. (Agreement with Meltano, rule by rule, is the contract test's part.)"""

from __future__ import annotations

from typing import Any

from flx_api.daemon.project.document import Refused
from flx_api.daemon.project.plugins import Resolver, read_plugin


def resolved(entries: list[dict[str, Any]], locks: dict[str, Any] | None = None) -> dict[str, Any]:
    """Extractors by name."""
    declared = [read_plugin("extractors", entry, f"f[{at}]") for at, entry in enumerate(entries)]
    return {plugin.name: plugin for plugin in Resolver(declared, locks or {}).plugins()}


def test_a_chain_fills_what_is_left_out() -> None:
    found = resolved(
        [
            {"name": "tap-c", "inherit_from": "tap-b", "config": {"x": 1}},
            {"name": "tap-b", "inherit_from": "tap-a", "executable": "b", "env": {"B": "1"}},
            {"name": "tap-a", "namespace": "a", "pip_url": "a", "capabilities": ["state"], "settings": [{"name": "s"}]},
        ]
    )
    tap = found["tap-c"]
    assert (tap.pip_url, tap.executable, tap.namespace) == ("a", "b", "tap_c")
    assert (tap.capabilities, tap.env, tap.source) == (("state",), ("B",), "inherited")
    assert [setting.env for setting in tap.settings] == [("TAP_C_S",), ("TAP_C_X",)]
    assert [parent.name for parent in tap.parents] == ["tap-b", "tap-a"]
    assert not tap.is_custom
    assert found["tap-a"].is_custom


def test_definitions_that_are_missing_or_unusable_are_marked() -> None:
    """The plugin stays, with the reason; and what inherits from it is marked as well."""
    locks = {
        "plugins/extractors/tap-b--default.lock": Refused("plugins/extractors/tap-b--default.lock", "not valid JSON"),
        "plugins/extractors/tap-d--v.lock": {"plugin_type": "extractors", "name": "tap-d", "namespace": "d"},
    }
    found = resolved(
        [
            {"name": "tap-a"},
            {"name": "tap-b"},
            {"name": "child", "inherit_from": "tap-a"},
            {"name": "one", "inherit_from": "two"},
            {"name": "two", "inherit_from": "one"},
            {"name": "tap-d", "variant": "v"},
        ],
        locks,
    )
    sources = {name: plugin.source for name, plugin in found.items()}
    assert sources == {
        "tap-a": "hub",
        "tap-b": "broken",
        "child": "hub",
        "one": "broken",
        "two": "broken",
        "tap-d": "broken",
    }
    assert all(plugin.problem for plugin in found.values())


def test_configuration_is_not_shown() -> None:
    """A plugin that lands in a log or a traceback takes no secret along."""
    plugin = resolved([{"name": "tap-a", "namespace": "a", "config": {"password": "hunter2"}}])["tap-a"]
    assert "hunter2" not in f"{plugin!r} {plugin} {plugin.settings}"
