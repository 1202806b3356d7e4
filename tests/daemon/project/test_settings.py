"""Settings: declarations, kinds, and the names of their variables."""

from __future__ import annotations

import pytest

from flx_api.daemon.project.document import Refused
from flx_api.daemon.project.settings import Setting, env_name, env_names, flatten, missing, read_settings


def test_names_of_variables() -> None:
    """Every prefix with name and aliases, then the declaration's own names."""
    setting = Setting("a.b", env="OWN", aliases=("c",), env_aliases=("OLD", "!NOT"))
    prefixes = ("tap-x", "ns", None)
    assert env_names(setting, prefixes, own_names=True) == (
        "TAP_X_A_B",
        "NS_A_B",
        "TAP_X_C",
        "NS_C",
        "OLD",
        "NOT",
        "OWN",
    )
    assert "OLD" not in env_names(setting, prefixes, own_names=False)
    assert env_name("tap-x", "_select") == "TAP_X__SELECT"


@pytest.mark.parametrize(
    ("raw", "kind", "sensitive"),
    [
        ({}, None, False),
        ({"kind": "password"}, "password", True),
        ({"kind": "oauth", "sensitive": True}, "string", True),
        ({"kind": "hidden"}, "hidden", False),
        ({"kind": "hidden", "hidden": True}, "string", False),
        ({"sensitive": True}, None, True),
    ],
)
def test_kinds_of_old(raw: dict[str, object], kind: str | None, sensitive: bool) -> None:
    (setting,) = read_settings([{"name": "s", **raw}], "f")
    assert (setting.kind, setting.sensitive) == (kind, sensitive)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("x", "f"),
        (["x"], "f[0]"),
        ([{"name": "a"}, {}], "f[1].name"),
        ([{"name": "a", "kind": "nope"}], "f[0].kind"),
        ([{"name": "a", "aliases": "b"}], "f[0].aliases"),
    ],
)
def test_refusals(raw: object, field: str) -> None:
    with pytest.raises(Refused) as refused:
        read_settings(raw, "f")
    assert refused.value.field == field


def test_undeclared_keys_become_settings() -> None:
    """Nested keys are joined; an empty mapping is a value of its own."""
    config = {"known": 1, "a": {"b": 1.5, "c": {"d": True}}, "e": {}, "l": [], "s": "x"}
    found = missing([Setting("known")], config)
    assert [(item.name, item.kind) for item in found] == [
        ("a.b", "decimal"),
        ("a.c.d", "boolean"),
        ("e", "object"),
        ("l", "array"),
        ("s", None),
    ]
    assert list(flatten({})) == []
