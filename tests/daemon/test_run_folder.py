"""Run folders: layout, seeding, what is kept and what is removed."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from flx_api.daemon.executors import ExitRecord, ProcessIdentity, RunSpec
from flx_api.daemon.run_folder import CATALOGUE, CATALOGUE_KEY, RunFolder, RunFolders
from flx_api.errors import Conflict

if TYPE_CHECKING:
    from pathlib import Path

SPEC = RunSpec("attempt", "execution", ("tap-x", "target-y"), extractors=("tap-x",), overrides={"TAP_X_KEY": "s3cret"})
OTHER = RunSpec("other", "execution", ("tap-x", "target-y"), extractors=("tap-x",))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A project's own system folder with plugins in it."""
    shared = tmp_path / "project" / ".meltano"
    for kind in ("extractors/tap-x/venv", "loaders", "run/tap-x"):
        (shared / kind).mkdir(parents=True)
    (shared / "meltano.db").touch()
    (shared / "analytics.json").write_text("{}")
    return shared


@pytest.fixture
def folders(tmp_path: Path, shared: Path) -> RunFolders:
    """Run folders of a new data directory."""
    return RunFolders(tmp_path / "data", shared)


def discover(folder: RunFolder, catalogue: str, key: str | None) -> Path:
    """What a tap's discovery leaves in the private folder."""
    found = folder.system / "run" / "tap-x"
    found.mkdir(parents=True, exist_ok=True)
    (found / CATALOGUE).write_text(catalogue)
    (found / "tap.1234.config.json").write_text('{"password": "s3cret"}')
    if key is not None:
        (found / CATALOGUE_KEY).write_text(key)
    return found


def test_prepare_lays_out_a_private_folder(folders: RunFolders, shared: Path) -> None:
    folder = folders.prepare(SPEC)
    for path in (folder.path, folder.system, folder.meter):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {path.name for path in folder.system.iterdir()} == {"extractors", "loaders", "analytics.json", "state"}
    assert (folder.system / "extractors").resolve() == shared / "extractors"
    assert (folder.system / "state").resolve() == shared / "state"
    assert not folder.was_released


def test_the_spec_on_disk_holds_no_value_of_an_override(folders: RunFolders) -> None:
    folder = folders.prepare(SPEC)
    assert folder.spec is not None
    assert folder.spec.override_names == ("TAP_X_KEY",)
    assert b"s3cret" not in (folder.path / "spec.json").read_bytes()


def test_prepare_may_be_repeated_until_there_is_a_process(folders: RunFolders) -> None:
    folder = folders.prepare(SPEC)
    folders.prepare(SPEC)
    folder.write_process(ProcessIdentity(1, 2), "boot")
    with pytest.raises(Conflict):
        folders.prepare(SPEC)


def test_a_process_is_of_one_boot(folders: RunFolders) -> None:
    folder = folders.prepare(SPEC)
    assert folder.identity("boot") is None
    folder.write_process(ProcessIdentity(1, 2), "boot")
    assert folder.identity("boot") == ProcessIdentity(1, 2)
    assert folder.identity("later boot") is None
    folder.write_gone("boot")
    assert folder.identity("boot") is None
    with pytest.raises(Conflict):
        folders.prepare(SPEC)


@pytest.mark.parametrize("text", ["", '{"code":', "{}"])
def test_half_an_exit_record_is_none(folders: RunFolders, text: str) -> None:
    folder = folders.prepare(SPEC)
    assert folder.exit_record is None
    (folder.path / "exit.json").write_text(text)
    assert folder.exit_record is None


def test_an_exit_record_is_read(folders: RunFolders) -> None:
    folder = folders.prepare(SPEC)
    (folder.path / "exit.json").write_text('{"code": -9, "started_us": 1, "ended_us": 2, "cpu_s": 0.5}')
    assert folder.exit_record == ExitRecord(-9, 1, 2, 0.5)


def test_a_kept_catalogue_seeds_the_next_run_of_its_environment(folders: RunFolders) -> None:
    folder = folders.prepare(SPEC)
    discover(folder, "catalogue", "key")
    folders.keep_catalogues(folder, None)
    seeded = folders.prepare(OTHER).system / "run" / "tap-x"
    assert sorted(path.name for path in seeded.iterdir()) == [CATALOGUE_KEY, CATALOGUE]
    assert (seeded / CATALOGUE).read_text() == "catalogue"
    elsewhere = RunSpec("third", "execution", ("tap-x",), environment="prod", extractors=("tap-x",))
    assert not (folders.prepare(elsewhere).system / "run").exists()


def test_a_catalogue_without_a_key_is_not_kept(folders: RunFolders) -> None:
    folder = folders.prepare(SPEC)
    discover(folder, "catalogue", None)
    folders.keep_catalogues(folder, None)
    assert not (folders.prepare(OTHER).system / "run").exists()


def test_forgotten_catalogues_seed_nothing(folders: RunFolders) -> None:
    folder = folders.prepare(SPEC)
    discover(folder, "catalogue", "key")
    folders.keep_catalogues(folder, None)
    folders.forget_catalogues("tap-x")
    assert not (folders.prepare(OTHER).system / "run").exists()


def test_removing_the_private_folder_leaves_what_its_links_mean(folders: RunFolders, shared: Path) -> None:
    folder = folders.prepare(SPEC)
    discover(folder, "catalogue", "key")
    assert folders.with_leftovers() == ["attempt"]
    folder.remove_system()
    folder.remove_system()
    assert folders.with_leftovers() == []
    assert (shared / "extractors" / "tap-x" / "venv").is_dir()
    assert folder.spec is not None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_name_is_one_segment(folders: RunFolders, name: str) -> None:
    with pytest.raises(ValueError, match="segment"):
        folders.of(name)
