"""The documentation says what the code says."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

import pytest
from tests.service import ROOT

from flx_api.config import describe, load
from flx_api.dependencies import passed

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()


@pytest.mark.parametrize("page", list(GENERATOR.PAGES))
def test_reference_is_up_to_date(page: str) -> None:
    kept = (ROOT / "docs" / "reference" / page).read_text("utf-8")
    assert GENERATOR._NOTE + GENERATOR.PAGES[page]() == kept, "run `make docs`"


PROSE = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("architecture", "operations", "protocol", "security")),
]


@pytest.mark.parametrize("page", PROSE)
def test_settings_and_files_that_prose_names_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    known = {setting.name for setting in describe()} | {"FLX_URL", "FLX_TOKEN"}
    assert set() == set(re.findall(r"\bFLX_[A-Z_]+\b", text)) - known
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [] == [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


def test_policies_that_prose_shows_are_policies(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table, topics = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (document,) = re.findall(r"^FLX_RATE_LIMITS='(.*)'$", text, re.MULTILINE)
    file = tmp_path / "limits.toml"
    file.write_text(table, encoding="utf-8")
    for value, names in (
        (str(file), ["per-subject", "per-subject-1d", "login", "runs", "work"]),
        (document, ["per-client"]),
    ):
        _, drawn = passed(load({"FLX_RATE_LIMITS": value}))
        assert names == [name for name, *_ in drawn.policies]
    file.write_text(topics, encoding="utf-8")
    assert ["app.chat.*"] == [rule.topics for rule in load({"FLX_TOPICS": str(file)}).topics]


def test_make_targets_that_prose_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text("utf-8")))
        assert set() == named - targets, page
