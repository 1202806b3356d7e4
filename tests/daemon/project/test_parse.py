"""From contents to the model: what is refused, where, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.project.parse import Document, Values, build, declare, include_patterns
from flx_api.errors import ProjectInvalid

if TYPE_CHECKING:
    from flx_api.daemon.project.model import ProjectModel


def model_of(content: object, environ: dict[str, str] | None = None, **dotenv: str) -> ProjectModel:
    """The model of a project without lock files."""
    declared = declare(content)
    values = Values(environ or {}, dotenv)
    return build(declared, root=Path("/p"), revision="r", files=("meltano.yml",), locks={}, values=values)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (None, "meltano.yml"),
        ([], "meltano.yml"),
        ({"plugins": {"nope": [{"name": "x"}]}}, "meltano.yml:plugins.nope"),
        ({"plugins": {"loaders": None}}, "meltano.yml:plugins.loaders"),
        ({"plugins": {"loaders": [{"name": "a"}, {"name": "b:c"}]}}, "meltano.yml:plugins.loaders[1].name"),
        ({"jobs": [{"name": "j"}]}, "meltano.yml:jobs[0].tasks"),
        ({"jobs": [None]}, "meltano.yml:jobs[0]"),
        ({"schedules": [{"name": "s", "job": "j"}]}, "meltano.yml:schedules[0].interval"),
        ({"environments": [{"name": "d", "x": 1}]}, "meltano.yml:environments[0].x"),
        ({"environments": [{"name": "d", "state_id_suffix": 1}]}, "meltano.yml:environments[0].state_id_suffix"),
        ({"env": []}, None),
        ({"env": [1]}, "meltano.yml:env"),
        ({1: 2}, "meltano.yml"),
    ],
)
def test_refusals_name_the_field(content: object, field: str | None) -> None:
    if field is None:
        declare(content)
        return
    with pytest.raises(ProjectInvalid) as refused:
        declare(content)
    assert [error.field for error in refused.value.errors] == [field]


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ProjectInvalid) as refused:
        declare({"jobs": [{}, {"name": "ok", "tasks": []}, {"name": "j"}], "environments": [{"name": 1}]})
    assert [error.field for error in refused.value.errors] == [
        "meltano.yml:jobs[0].name",
        "meltano.yml:jobs[2].tasks",
        "meltano.yml:environments[0].name",
    ]
    assert refused.value.detail.endswith("(2 more)")


def test_faults_are_named_in_their_own_file() -> None:
    """An entry counts from the beginning of the file it stands in."""
    main = {"jobs": [{"name": "a", "tasks": []}], "plugins": {"loaders": [{"name": "x"}]}}
    more = {"jobs": [{"name": "b", "tasks": []}, {"name": "c"}], "plugins": {"loaders": [{"name": "y:"}]}}
    with pytest.raises(ProjectInvalid) as refused:
        declare(main, [Document("sub/x.yml", more)])
    assert [error.field for error in refused.value.errors] == [
        "sub/x.yml:plugins.loaders[0].name",
        "sub/x.yml:jobs[1].tasks",
    ]


def test_included_files_may_not_repeat_a_name() -> None:
    jobs = {"jobs": [{"name": "j", "tasks": []}]}
    declare(jobs, [Document("a.yml", jobs)])
    with pytest.raises(ProjectInvalid) as refused:
        declare(jobs, [Document("a.yml", jobs), Document("b.yml", jobs)])
    assert refused.value.errors[0].field == "b.yml:jobs[0].name"


@pytest.mark.parametrize("value", ["x.yml", None, [""], ["/etc/*"], [1], ["."]])
def test_include_paths_must_be_relative_patterns(value: object) -> None:
    with pytest.raises(ProjectInvalid):
        include_patterns({"include_paths": value})


@pytest.mark.parametrize(
    ("environ", "dotenv", "expected"),
    [
        ({}, {}, "dev"),
        ({"MELTANO_ENVIRONMENT": "prod"}, {"MELTANO_ENVIRONMENT": "x"}, "prod"),
        ({}, {"MELTANO_ENVIRONMENT": "x"}, "x"),
        ({"MELTANO_ENVIRONMENT": "NULL"}, {}, None),
        ({"MELTANO_ENVIRONMENT": ""}, {"MELTANO_ENVIRONMENT": "x"}, "dev"),
        ({}, {"MELTANO_DEFAULT_ENVIRONMENT": "y"}, "y"),
    ],
)
def test_default_environment(environ: dict[str, str], dotenv: dict[str, str], expected: str | None) -> None:
    """The process, then `.env`, then the setting."""
    assert model_of({"default_environment": "dev"}, environ, **dotenv).default_environment == expected


def test_database_uri_is_resolved() -> None:
    content = {"database_uri": "postgresql://${PGUSER}@db/${PGDATABASE}", "env": {"PGDATABASE": "m"}}
    assert model_of(content, {"PGUSER": "u"}).database_uri == "postgresql://u@db/m"
    assert model_of(content, {"MELTANO_DATABASE_URI": "sqlite://"}).database_uri == "sqlite://"
    assert model_of({}).database_uri is None


def test_the_state_backend_is_known_from_every_place_that_names_it() -> None:
    assert model_of({}).state_backend_uri is None
    for content in ({"state_backend": {"uri": "s3://b"}}, {"state_backend.uri": "s3://b"}):
        assert model_of(content).state_backend_uri == "s3://b"
    assert model_of({}, {"MELTANO_STATE_BACKEND_URI": "s3://e"}).state_backend_uri == "s3://e"


def test_tasks_that_cannot_be_split_are_marked() -> None:
    """Meltano loads them and fails in a run; the other jobs stay usable."""
    model = model_of({"jobs": [{"name": "a", "tasks": None}, {"name": "b", "tasks": ["x y", ["z"]]}]})
    assert model.job("a").problem
    assert model.job("b").tasks == (("x", "y"), ("z",))
    assert model.job("b").blocks == ("x", "y", "z")


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "name", "a:b", "@daily", "x y"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "tasks",
                    "job",
                    "interval",
                    "extractors",
                    "mappers",
                    "mappings",
                    "config",
                    "plugins",
                    "settings",
                    "variants",
                    "commands",
                    "env",
                    "namespace",
                    "inherit_from",
                    "requires",
                    "select",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["plugins", "jobs", "schedules", "environments", "env", "x"]), ANYTHING))
def test_any_content_is_a_model_or_a_refusal(content: dict[str, Any]) -> None:
    """No shape of file gets past with another error, and every refusal names a field."""
    try:
        model = model_of(content)
    except ProjectInvalid as refused:
        places = [error.field.startswith("meltano.yml") for error in refused.errors]
    else:
        places = [True]
        assert model.settings_env_names() is not None
        assert model.runnable is not None
    assert all(places)
