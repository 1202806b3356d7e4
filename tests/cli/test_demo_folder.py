"""The demo's work folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.service import ROOT

from flx_api.cli import demo_folder
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A prepared folder whose environments are stand-ins."""
    own = tmp_path / "meltano"
    (own / "bin").mkdir(parents=True)
    (own / "bin" / "meltano").write_text("#!/bin/sh\nmkdir -p .meltano/loaders/target/venv\necho Installed loader\n")
    (own / "bin" / "meltano").chmod(0o755)
    monkeypatch.setenv("FLX_MELTANO", str(own))
    folder = tmp_path / "demo"
    demo_folder.prepare(folder, lambda _: None, fresh=True)
    return folder


def test_the_example_is_copied_and_plugins_are_installed(prepared: Path) -> None:
    assert (ROOT / "examples/nyc-flights/meltano.yml").read_text() == (prepared / "meltano.yml").read_text()
    assert (prepared / ".meltano" / "loaders" / "target" / "venv").is_dir()


def test_a_fresh_one_forgets_runs_and_keeps_plugins(prepared: Path) -> None:
    for left in ("output/old.jsonl", ".flx/flx.db", ".meltano/meltano.db"):
        (prepared / left).parent.mkdir(exist_ok=True)
        (prepared / left).touch()
    said: list[str] = []
    demo_folder.prepare(prepared, said.append, fresh=True)
    assert [] == said, "nothing had to be installed"
    assert not any((prepared / left).exists() for left in ("output/old.jsonl", ".flx/flx.db", ".meltano/meltano.db"))
    assert (prepared / ".meltano" / "loaders" / "target" / "venv").is_dir()


def test_preparing_alone_forgets_nothing(prepared: Path) -> None:
    (prepared / ".flx").mkdir()
    demo_folder.prepare(prepared, lambda _: None, fresh=False)
    assert (prepared / ".flx").is_dir()


def test_plugins_are_installed_again_when_the_project_changes(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_folder, "_fingerprint", lambda *_: "changed")
    said: list[str] = []
    demo_folder.prepare(prepared, said.append, fresh=False)
    assert ["installing the plugins (once)", "  Installed loader"] == said


def test_a_folder_of_someones_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StartupError, match="not empty and no demo folder"):
        demo_folder.prepare(tmp_path, lambda _: None, fresh=True)


def test_a_failed_install_is_one_line(prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meltano" / "bin" / "meltano").write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    monkeypatch.setattr(demo_folder, "_fingerprint", lambda *_: "changed")
    with pytest.raises(StartupError, match=r"^demo: `meltano install` failed: no such package$"):
        demo_folder.prepare(prepared, lambda _: None, fresh=False)
