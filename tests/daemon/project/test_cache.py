"""The cache: what it notices, what it keeps, how it fails and recovers."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from flx_api.daemon.project import ProjectCache
from flx_api.daemon.project import cache as cache_module
from flx_api.daemon.project.cache import SETTLED_NS
from flx_api.errors import ProjectInvalid

PROJECT = """\
include_paths: ["conf/*.yml"]
environments: [{name: dev}]
plugins:
  extractors: [{name: tap-a, variant: v}]
jobs: [{name: one, tasks: []}]
"""
LOCK = '{"plugin_type": "extractors", "name": "tap-a", "namespace": "a", "variant": "v", "pip_url": "p"}'


class Clock:
    """A clock that is far ahead of the files' stamps, unless a test says otherwise."""

    def __init__(self) -> None:
        self.ahead = 10 * SETTLED_NS

    def __call__(self) -> int:
        return max(path.stat().st_ctime_ns for path in self.root.rglob("*")) + self.ahead

    root = Path()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with an include pattern and a lock file that is not there yet."""
    (tmp_path / "meltano.yml").write_text(PROJECT)
    (tmp_path / "conf").mkdir()
    return tmp_path


@pytest.fixture
def clock(root: Path) -> Clock:
    clock = Clock()
    clock.root = root
    return clock


@pytest.fixture
def cache(root: Path, clock: Clock) -> ProjectCache:
    return ProjectCache(root, {}, clock=clock)


def test_an_unchanged_project_is_the_same_object(cache: ProjectCache) -> None:
    assert cache.current() is cache.current()


def test_a_change_is_seen_at_once(cache: ProjectCache, root: Path) -> None:
    """In each kind of file that takes part, also one that appears or disappears."""
    revisions = [cache.current().revision]

    def changed() -> ProjectCache:
        revisions.append(cache.current().revision)
        assert len(set(revisions)) == len(revisions)
        return cache

    (root / "meltano.yml").write_text(PROJECT.replace("one", "two"))
    assert changed().current().job("two")
    (root / ".env").write_text("A=1")
    assert changed().current().dotenv_names == ("A",)
    lock = root / "plugins/extractors/tap-a--v.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(LOCK)
    assert changed().current().plugin("extractors", "tap-a").pip_url == "p"
    (root / "conf/more.yml").write_text("jobs: [{name: more, tasks: []}]")
    assert changed().current().job("more")
    (root / "conf/more.yml").write_text("jobs: [{name: less, tasks: []}]")
    assert changed().current().job("less")
    assert set(cache.current().files) == {"meltano.yml", ".env", "conf/more.yml", "plugins/extractors/tap-a--v.lock"}
    (root / "conf/more.yml").unlink()
    assert [job.name for job in cache.current().jobs] == ["two"]
    lock.unlink()
    assert cache.current().plugin("extractors", "tap-a").source == "hub"


def test_a_write_within_the_same_tick_is_seen(cache: ProjectCache, root: Path, clock: Clock) -> None:
    """A file so new that a second write may leave the same stamp is compared by content."""
    clock.ahead = 0
    path = root / "meltano.yml"
    assert cache.current().job("one")
    before = path.stat()
    path.write_text(PROJECT.replace("one", "two"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.current().job("two")


def test_touching_keeps_the_model(cache: ProjectCache, root: Path) -> None:
    """New stamps with the old content cost a comparison, not a new model."""
    model = cache.current()
    os.utime(root / "meltano.yml")
    (root / "conf/notes.txt").write_text("matched by no pattern")
    assert cache.current() is model
    assert cache.current() is model


def test_broken_yaml_names_the_place_and_recovers(cache: ProjectCache, root: Path) -> None:
    path = root / "meltano.yml"
    first = cache.current()
    path.write_text(PROJECT + "jobs: [{password: hunter2\n")
    errors = []
    for _ in range(2):
        with pytest.raises(ProjectInvalid) as refused:
            cache.current()
        errors.append(refused.value)
    assert errors[0] is not errors[1]
    assert errors[0].errors == errors[1].errors
    (error,) = errors[0].errors
    assert error.field == "meltano.yml"
    assert error.reason.startswith("line ")
    assert "hunter2" not in str(errors[0])
    assert str(root) not in str(errors[0])
    path.write_text(PROJECT)
    assert cache.current().revision == first.revision


def test_a_broken_included_file_is_named_and_recovers(cache: ProjectCache, root: Path) -> None:
    (root / "conf/x.yml").write_text("jobs: [{tasks: []}]")
    with pytest.raises(ProjectInvalid) as refused:
        cache.current()
    assert [error.field for error in refused.value.errors] == ["conf/x.yml:jobs[0]"]
    (root / "conf/x.yml").write_text("jobs: [{name: x, tasks: []}]")
    assert cache.current().job("x")


def test_a_missing_project_is_told_and_found_later(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "later"
    folder.mkdir()
    cache = ProjectCache(folder, {}, clock=clock)
    with pytest.raises(ProjectInvalid) as refused:
        cache.current()
    assert [error.field for error in refused.value.errors] == ["meltano.yml"]
    (folder / "meltano.yml").write_text("project_id: p")
    assert cache.current().project_id == "p"


# From Python 3.13 on, `**` beside other letters is a `*`.
_REFUSED = ["conf", "../*/meltano.yml", *(["conf/**x/a.yml"] if sys.version_info < (3, 13) else [])]


@pytest.mark.parametrize("pattern", _REFUSED)
def test_include_patterns_that_are_refused(cache: ProjectCache, root: Path, pattern: str) -> None:
    (root / "meltano.yml").write_text(f'include_paths: ["{pattern}"]')
    with pytest.raises(ProjectInvalid) as refused:
        cache.current()
    assert refused.value.errors[0].field == "meltano.yml:include_paths[0]"


@pytest.mark.parametrize("pattern", ["a/b/x.yml", "*/b/*.yml", "**/x.yml", "a/**/*.yml", "./a/b/?.yml"])
def test_a_file_that_appears_deep_down_is_seen(cache: ProjectCache, root: Path, pattern: str) -> None:
    """Also when its folders did not exist before."""
    (root / "meltano.yml").write_text(f'include_paths: ["{pattern}"]')
    assert not cache.current().jobs
    (root / "a/b").mkdir(parents=True)
    assert not cache.current().jobs
    (root / "a/b/x.yml").write_text("jobs: [{name: deep, tasks: []}]")
    assert cache.current().job("deep")


def test_the_environment_counts(root: Path, clock: Clock) -> None:
    cache = ProjectCache(root, {"MELTANO_ENVIRONMENT": "dev"}, clock=clock)
    assert cache.current().default_environment == "dev"


def test_our_own_variables_mean_nothing_to_the_project(root: Path, clock: Clock) -> None:
    """No run sees them, and a state id is shown to every client."""
    (root / "meltano.yml").write_text(
        "environments: [{name: dev, state_id_suffix: $FLX_KEY$MINE}]\n"
        "plugins:\n"
        "  extractors: [{name: a, namespace: a, executable: a}]\n"
        "  loaders: [{name: b, namespace: b, executable: b}]\n"
        "database_uri: sqlite:///${FLX_KEY}x\n"
    )
    (root / ".env").write_text("MINE=m${FLX_KEY}\n")
    model = ProjectCache(root, {"FLX_KEY": "secret"}, clock=clock).current()
    assert model.state_ids(("a", "b"), "dev") == ("dev:a-to-b:m",)
    assert model.database_uri == "sqlite:///x"


def test_within_one_turn_of_a_loop_one_look_serves_all(
    cache: ProjectCache, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    look = cache_module._is_unchanged

    def noted(watch: Any) -> bool:
        looks.append(look(watch))
        return looks[-1]

    monkeypatch.setattr(cache_module, "_is_unchanged", noted)
    first = cache.current()

    async def story() -> None:
        assert all(cache.current() is first for _ in range(3))
        await asyncio.sleep(0)
        assert all(cache.current() is first for _ in range(3))
        assert looks == [True, True]
        (root / "meltano.yml").write_text(PROJECT.replace("dev", "prod"), encoding="utf-8")
        await asyncio.sleep(0)
        assert cache.current().environments[0].name == "prod"

    asyncio.run(story())
    (root / "meltano.yml").write_text(PROJECT.replace("dev", "stage"), encoding="utf-8")
    assert cache.current().environments[0].name == "stage"
