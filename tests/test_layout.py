"""The repository's habits, held: paired tests, no drawer modules, no long files, no traces of one machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.service import ROOT

PACKAGE = ROOT / "python" / "flx_api"
MAX_LINES = 600

_DECLARATIONS = "structs without behaviour: the commands' own tests pass them through JSON"
# Modules without a test module of their own, and why.
UNPAIRED = {
    "cli/daemon_client.py": "speaks to a real daemon only: e2e/test_serve.py adds a user through it",
    "cli/daemon_process.py": "an entry point: e2e/test_serve.py starts it",
    "cli/demo.py": "a story from end to end: e2e/test_demo.py",
    "cli/gateway_process.py": "an entry point: e2e/test_serve.py starts it",
    "cli/supervisor.py": "processes and signals: e2e/test_serve.py",
    "daemon/principal.py": "one struct: daemon/test_trust.py makes and judges principals",
    "daemon/zygote.py": "runs in Meltano's own environment only: e2e/test_local_executor.py",
    "models/auth.py": _DECLARATIONS,
    "models/event.py": _DECLARATIONS,
    "models/execution.py": _DECLARATIONS,
    "models/message.py": "structs without behaviour: routes/test_asyncapi.py holds frames against them",
    "models/monitoring.py": _DECLARATIONS,
    "models/plan.py": _DECLARATIONS,
    "models/presence.py": _DECLARATIONS,
    "models/project.py": _DECLARATIONS,
    "models/schedule.py": _DECLARATIONS,
}
# Longer than others, and why.
WHOLE = {"python/flx_api/_core.pyi": "the native module is one, and its stub is its documentation"}
DRAWERS = {"utils", "util", "helpers", "helper", "common", "base", "misc"}


def _tracked() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    return [ROOT / name.decode() for name in names if name and (ROOT / name.decode()).is_file()]


TRACKED = _tracked()


def _is_generated(file: Path) -> bool:
    return "proto/flx/" in file.as_posix() or "/migrations/versions/" in file.as_posix()


def test_every_module_has_a_test_module() -> None:
    named = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    missing = []
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE).as_posix()
        if _is_generated(file) or file.name in {"__init__.py", "__main__.py", "env.py"} or where in UNPAIRED:
            continue
        words = Path(where).with_suffix("").parts
        # daemon/journal/writer.py: test_writer or test_journal_writer, or (for a package's parts) test_journal.
        acceptable = {f"test_{'_'.join(words[start:])}" for start in range(len(words))}
        acceptable |= {f"test_{word}" for word in words[1:-1]}
        if not acceptable & named:
            missing.append(where)
    assert [] == missing


def test_slow_folders_can_be_left_out() -> None:
    """CONTRIBUTING says how: by marks."""
    slow = [file for folder in ("e2e", "faults") for file in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    marked = re.compile(r"^pytestmark = .*pytest\.mark\.(?:e2e|slow)\b", re.MULTILINE)
    assert [] == [file.name for file in slow if not marked.search(file.read_text("utf-8"))]


def test_exceptions_are_not_stale() -> None:
    assert [] == [where for where in UNPAIRED if not (PACKAGE / where).exists()]


def test_no_module_is_a_drawer() -> None:
    assert [] == [str(file) for file in TRACKED if file.suffix in {".py", ".rs"} and file.stem in DRAWERS]


def test_no_file_is_long() -> None:
    code = [file for file in TRACKED if file.suffix in {".py", ".rs", ".pyi"} and not _is_generated(file)]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text("utf-8").splitlines()) for file in code}
    assert {} == {file: lines for file, lines in lengths.items() if lines > MAX_LINES and file not in WHOLE}


def test_every_module_says_what_it_is() -> None:
    code = [file for file in PACKAGE.rglob("*.py") if not _is_generated(file)]
    assert [] == [str(file) for file in code if not file.read_text("utf-8").startswith(('"""', 'r"""'))]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a package index", r"--(?:extra-)?index-url|--find-links|index-url\s*=|\[\[tool\.uv\.index\]\]"),
        ("a registry in a lock file", r'registry\+https?://(?!github\.com/rust-lang/crates\.io-index")'),
        ("a machine's path", r"(?<![\w.])/(?:root|home/\w+|work/(?:main|shared)|tmp/exp)/"),
    ],
)
def test_no_file_names(what: str, pattern: str) -> None:
    found = []
    for file in TRACKED:
        if file == Path(__file__) or file.suffix in {".csv", ".png"} or file.name == "lock":
            continue
        text = file.read_text("utf-8", errors="replace")
        found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in re.finditer(pattern, text)]
    assert [] == found, what
