"""Look-ups in the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flx_api.daemon.project.model import Environment, Job, Override, Plugin, ProjectModel, Schedule, SettingModel
from flx_api.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = ProjectModel(
    root=Path("/p"),
    revision="r",
    files=("meltano.yml",),
    plugins=(
        Plugin(
            type="extractors",
            name="tap-a",
            namespace="ns",
            settings=(SettingModel("url", None, ("TAP_A_URL", "NS_URL", "THE_URL"), sensitive=False),),
        ),
        Plugin(type="extractors", name="tap-a", namespace="second"),
        Plugin(
            type="mappers",
            name="m",
            mappings=("one",),
            extras={"mappings": [{"name": "one", "config": {"deep": {"key": 1}}}]},
        ),
    ),
    jobs=(Job("nightly", (("tap-a", "target-a"),)), Job("nightly", ())),
    schedules=(Schedule("s", "@daily", "0 0 * * *", job="nightly"),),
    environments=(Environment("dev", (Override("extractors", "tap-a", ("orphan", "_select")),)),),
)


def test_the_first_of_a_name_counts() -> None:
    assert MODEL.plugin("extractors", "tap-a").namespace == "ns"
    assert MODEL.job("nightly").tasks
    assert MODEL.schedule("s").cron == "0 0 * * *"
    assert MODEL.environment("dev").override("extractors", "tap-a")
    assert MODEL.environment("dev").override("loaders", "tap-a") is None


@pytest.mark.parametrize(
    ("ask", "suggestions"),
    [
        (lambda: MODEL.plugin("extractors", "tap-b"), ("tap-a",)),
        (lambda: MODEL.plugin("loaders", "tap-a"), ()),
        (lambda: MODEL.job("nightlie"), ("nightly",)),
        (lambda: MODEL.schedule("x"), ()),
        (lambda: MODEL.environment("de"), ("dev",)),
    ],
)
def test_what_is_not_there(ask: Callable[[], object], suggestions: tuple[str, ...]) -> None:
    with pytest.raises(NotFound) as missing:
        ask()
    assert missing.value.suggestions == suggestions


def test_variables_of_settings() -> None:
    """Declared ones, those only an environment names, and those of a mapping's configuration."""
    assert MODEL.settings_env_names() == {
        "TAP_A_URL",
        "NS_URL",
        "THE_URL",
        "TAP_A_ORPHAN",
        "NS_ORPHAN",
        "SECOND_ORPHAN",
        "TAP_A__SELECT",
        "NS__SELECT",
        "SECOND__SELECT",
        "M_DEEP_KEY",
        "M__MAPPING",
    }


def test_nothing_of_the_content_is_shown() -> None:
    model = ProjectModel(root=Path("/p"), revision="r", files=(), database_uri="postgresql://u:hunter2@db")
    assert "hunter2" not in repr(model)
    assert "hunter2" not in repr(Override("loaders", "t", ("password",), config={"password": "hunter2"}))
