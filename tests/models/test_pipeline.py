"""Names that may reach a command line are plain words."""

from __future__ import annotations

import msgspec
import pytest

from flx_api.models.pipeline import PipelineCreateArgs


@pytest.mark.parametrize(
    "name",
    ["-h", "--version", "a;id", "$(id)", "`id`", "a\nb", "a\x00", "../x", "x" * 64, "", "Upper", "a b", "é", "a\n"],
)
def test_bad_pipeline_names(name: str) -> None:
    """A pipeline's name is `[a-z0-9][a-z0-9_-]{0,62}` and nothing else."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name, "tasks": [["a", "b"]]}, PipelineCreateArgs)


@pytest.mark.parametrize(
    "block", ["--full-refresh", "-x", "a b", "a;b", "$x", "a:b:c", ":b", "a:", "../t", "a\nb", "a\n", ""]
)
def test_bad_blocks(block: str) -> None:
    """A block can never be taken for an option or a path."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "p", "tasks": [[block]]}, PipelineCreateArgs)


@pytest.mark.parametrize("block", ["tap-nyc", "dbt-duckdb:build", "tap_x", "a.b", "tap@v2", "0tap"])
def test_good_blocks(block: str) -> None:
    """What Meltano calls its plugins, mappings, jobs and commands is taken."""
    args = msgspec.convert({"name": "p", "tasks": [[block]]}, PipelineCreateArgs)
    assert ((block,),) == args.tasks


def test_unknown_fields_are_refused() -> None:
    """Nothing in a body is applied that was not declared."""
    with pytest.raises(msgspec.ValidationError, match="created_by"):
        msgspec.convert({"name": "p", "tasks": [["a"]], "created_by": "me"}, PipelineCreateArgs)
