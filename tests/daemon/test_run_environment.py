"""The allow-list of a run's environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.run_environment import (
    fixed_environment,
    loads_code,
    machine_environment,
    run_environment,
)

NAMES = st.one_of(
    st.sampled_from(["PATH", "LC_ALL", "TAP_X_KEY", "MELTANO_ENVIRONMENT", "LD_PRELOAD", "PYTHONPATH", "SECRET"]),
    st.from_regex(r"(FLX_|flx_|DBT_|LD_|X_)?[A-Z_]{1,12}", fullmatch=True),
)
ENVIRONMENTS = st.dictionaries(NAMES, st.text(max_size=5), max_size=12)
PATTERNS = st.lists(st.one_of(NAMES, st.sampled_from(["*", "FLX_*", "LD_*", "X_*"])), max_size=4)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "LANG", "LC_TIME", "TZ", "TMPDIR", "SSL_CERT_FILE", "HTTPS_PROXY", "no_proxy"),
        *("MELTANO_ENVIRONMENT", "TAP_NYC_FILES", "TARGET_JSONL_DESTINATION_PATH", "DBT_PROFILES_DIR"),
    ],
)
def test_what_meltano_needs_passes(name: str) -> None:
    assert run_environment({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name", ["SECRET", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "VIRTUAL_ENV", "MELTANO_RUN_FULL_REFRESH", "path"]
)
def test_what_nobody_named_does_not(name: str) -> None:
    assert run_environment({name: "x"}) == {}


def test_the_project_names_variables() -> None:
    environ = {"API_KEY": "a", "PASSWORD": "b", "OTHER": "c"}
    assert run_environment(environ, dotenv_names=["API_KEY"], settings_env_names=["PASSWORD"]) == {
        "API_KEY": "a",
        "PASSWORD": "b",
    }


def test_the_operator_names_variables_and_globs() -> None:
    environ = {"AWS_REGION": "a", "AWS_PROFILE": "b", "LD_LIBRARY_PATH": "c", "PYTHONPATH": "d", "aws_x": "e"}
    assert run_environment(environ, run_env=["AWS_*", "LD_LIBRARY_PATH"]) == {
        "AWS_REGION": "a",
        "AWS_PROFILE": "b",
        "LD_LIBRARY_PATH": "c",
    }


def test_the_project_cannot_name_what_loads_code() -> None:
    environ = {"LD_PRELOAD": "a", "PYTHONPATH": "b", "BASH_ENV": "c"}
    assert run_environment(environ, dotenv_names=list(environ), settings_env_names=list(environ)) == {}
    assert run_environment({}, overrides=environ) == {}
    assert run_environment({}, overrides=environ, run_env=["PYTHONPATH"]) == {"PYTHONPATH": "b"}


def test_overrides_are_laid_over() -> None:
    assert run_environment({"TAP_X": "a"}, overrides={"TAP_X": "b", "TAP_Y": "c"}) == {"TAP_X": "b", "TAP_Y": "c"}


@given(environ=ENVIRONMENTS, names=PATTERNS, settings=PATTERNS, run_env=PATTERNS, overrides=ENVIRONMENTS)
def test_ours_never_pass_and_code_only_by_the_operator(
    environ: dict[str, str], names: list[str], settings: list[str], run_env: list[str], overrides: dict[str, str]
) -> None:
    seen = run_environment(
        environ, dotenv_names=names, settings_env_names=settings, run_env=run_env, overrides=overrides
    )
    assert not [name for name in seen if name.startswith("FLX_")]
    assert all(seen[name] == overrides.get(name, environ.get(name)) for name in seen)
    if not run_env:
        assert not [name for name in seen if loads_code(name)]
    machine = machine_environment(environ, run_env)
    assert not [name for name in machine if name.startswith("FLX_")]
    if not run_env:
        assert not [name for name in machine if name.startswith(("TAP_", "MELTANO_", "DBT_"))]


def test_fixed_variables() -> None:
    fixed = fixed_environment(
        project_root=Path("/p"),
        system_dir=Path("/r/sys"),
        database_uri="sqlite:////p/.meltano/meltano.db",
        absent_file=Path("/p/none.yaml"),
        log_level="info",
    )
    assert fixed["MELTANO_SYS_DIR_ROOT"] == "/r/sys"
    assert fixed["MELTANO_JOB_TRIGGER"] == "flx-api"
    assert fixed["UV_PYTHON_DOWNLOADS"] == "never"
    assert not [name for name in fixed if name.startswith("FLX_")]
