"""Names of a run, their blocks and state ids. (Agreement with Meltano is the contract test's part.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from flx_api.daemon.project.blocks import CommandBlock, SingerBlock, expand_variables, variables_in
from flx_api.daemon.project.model import Environment, Job, Plugin, ProjectModel
from flx_api.errors import ValidationFailed

MODEL = ProjectModel(
    root=Path("/p"),
    revision="r",
    files=(),
    plugins=(
        Plugin(type="extractors", name="tap-a"),
        Plugin(type="loaders", name="target-a"),
        Plugin(type="utilities", name="dbt"),
        Plugin(type="utilities", name="bad", source="broken", problem="p"),
        Plugin(type="mappers", name="m", mappings=("one", "two", "twice")),
        Plugin(type="mappers", name="n", mappings=("twice",)),
    ),
    jobs=(Job("nightly", (("tap-a", "one", "target-a"), ("dbt:build",))), Job("odd", (), "no tasks"), Job("bad", ())),
    environments=(Environment("dev"), Environment("prod", state_id_suffix="${WHO}-x")),
    suffix_variables={"WHO": "me"},
)


def test_a_job_becomes_its_blocks() -> None:
    assert MODEL.blocks(["nightly", "dbt"], "dev") == (
        SingerBlock("tap-a", ("one",), "target-a", "dev:tap-a-to-target-a"),
        CommandBlock("dbt", "build"),
        CommandBlock("dbt", None),
    )


@pytest.mark.parametrize(
    ("environment", "suffix", "expected"),
    [
        (None, None, ()),
        ("dev", None, ("dev:tap-a-to-target-a",)),
        ("dev", "s", ("dev:tap-a-to-target-a:s",)),
        ("prod", None, ("prod:tap-a-to-target-a:me-x",)),
        ("prod", "s", ("prod:tap-a-to-target-a:s",)),
    ],
)
def test_state_ids(environment: str | None, suffix: str | None, expected: tuple[str, ...]) -> None:
    assert expected == MODEL.state_ids(["tap-a", "target-a"], environment, suffix)


@pytest.mark.parametrize(
    ("names", "environment", "suffix", "field"),
    [
        (["tap-a"], None, None, "blocks[0]"),
        (["dbt", "target-a"], None, None, "blocks[1]"),
        (["tap-a", "dbt"], None, None, "blocks[1]"),
        (["tap-a", "m", "target-a"], None, None, "blocks[1]"),
        (["tap-a", "twice", "target-a"], None, None, "blocks[1]"),
        (["dbt", "missing"], None, None, "blocks[1]"),
        (["odd"], None, None, "blocks[0]"),
        (["dbt:a:b"], None, None, "blocks[0]"),
        (["dbt", "bad:x"], None, None, "blocks[1]"),
        (["dbt"], "nowhere", None, "environment"),
        (["tap-a", "target-a"], "dev", "a:b", "state_id_suffix"),
    ],
)
def test_refusals_name_the_place(names: list[str], environment: str | None, suffix: str | None, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        MODEL.blocks(names, environment, suffix)
    assert [error.field for error in refused.value.errors] == [field]


def test_near_names_are_suggested() -> None:
    with pytest.raises(ValidationFailed) as refused:
        MODEL.blocks(["nightli"])
    assert refused.value.suggestions == ("nightly",)


def test_variables_as_meltano_expands_them() -> None:
    """Upper case without braces, anything with them; a backslash keeps the text; what is missing is nothing."""
    assert expand_variables(r"$A ${a} $b \$A \${a} ${NO}", {"A": "1", "a": "2"}) == "1 2 $b $A ${a} "
    assert variables_in("$A-${b}") == {"A", "b"}
