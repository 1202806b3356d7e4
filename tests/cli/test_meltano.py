"""Making Meltano's environment: what is used, what is made, what is refused."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import uv

from flx_api.cli import meltano
from flx_api.config import Settings
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path


def _say(_: str) -> None:
    pass


def _own_environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "meltano").touch()
    return folder


def test_it_is_in_the_data_folder_unless_named(tmp_path: Path) -> None:
    assert tmp_path / ".flx" / "meltano" == meltano.environment_folder(Settings(project=str(tmp_path)))
    assert tmp_path / "m" == meltano.environment_folder(Settings(meltano=str(tmp_path / "m")))


def test_an_environment_of_ones_own_is_used_as_it_is(tmp_path: Path) -> None:
    folder = _own_environment(tmp_path / "own")
    assert folder == meltano.ensure(folder, _say)
    assert ["bin"] == [entry.name for entry in folder.iterdir()]


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(StartupError, match=r"^FLX_MELTANO: .* holds no Meltano"):
        meltano.ensure(tmp_path, _say)
    assert "dear" == (tmp_path / "letter.txt").read_text()


def _fake_uv(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str = "") -> list[list[str]]:
    calls: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(argv[1:])
        return subprocess.CompletedProcess(argv, code, "", stderr)

    monkeypatch.setattr("flx_api.cli.meltano.subprocess.run", run)
    return calls


def test_it_is_made_once_with_hashes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = _fake_uv(monkeypatch, 0)
    folder = tmp_path / "m"
    meltano.ensure(folder, _say)
    meltano.ensure(folder, _say)
    assert ["venv", "pip"] == [call[0] for call in calls]
    assert "--require-hashes" in calls[1]
    assert meltano.is_ready(folder)


def test_one_whose_making_was_cut_off_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = _own_environment(tmp_path / "m")
    (folder / ".flx-building").touch()
    assert not meltano.is_ready(folder)
    _fake_uv(monkeypatch, 0)
    meltano.ensure(folder, _say)
    assert not (folder / ".flx-building").exists()
    assert meltano.is_ready(folder)


def test_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_uv(monkeypatch, 1, "  No solution found\n  ╰─▶ nothing there\n")
    with pytest.raises(StartupError) as caught:
        meltano.ensure(tmp_path / "m", _say)
    assert "FLX_MELTANO: uv venv failed: nothing there" == str(caught.value)
    assert not meltano.is_ready(tmp_path / "m")


def test_without_uv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(uv, "find_uv_bin", missing)
    with pytest.raises(StartupError, match=r"pip install uv"):
        meltano.ensure(tmp_path / "m", _say)


def test_versions_are_read_from_metadata(tmp_path: Path) -> None:
    assert meltano.version_of(tmp_path) is None
    (tmp_path / "lib" / "python3.11" / "site-packages" / "meltano-4.4.1.dist-info").mkdir(parents=True)
    assert "4.4.1" == meltano.version_of(tmp_path)
