"""The project's id, kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.config import Settings
from flx_api.daemon.identity import project_id_of

if TYPE_CHECKING:
    from pathlib import Path


def settings_in(folder: Path, project: str) -> Settings:
    (folder / "meltano.yml").write_text(project, encoding="utf-8")
    (folder / "data").mkdir(exist_ok=True)
    return Settings(project=str(folder), data_dir=str(folder / "data"))


def test_meltanos_own_id_is_taken_and_kept(tmp_path: Path) -> None:
    assert project_id_of(settings_in(tmp_path, "version: 1\nproject_id: mine\n")) == "mine"
    # Neither another id nor a broken file hides the rows there are.
    assert project_id_of(settings_in(tmp_path, "version: 1\nproject_id: other\n")) == "mine"
    assert project_id_of(settings_in(tmp_path, "{{")) == "mine"


def test_a_project_without_one_gets_one_for_good(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, "{{")
    made = project_id_of(settings)
    assert len(made) == 36
    assert project_id_of(settings) == made
