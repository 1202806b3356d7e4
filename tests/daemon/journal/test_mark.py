"""How far a journal has come, told beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flx_api.daemon.journal.mark import Mark

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_set_is_known_to_the_next_process_and_nothing_less_is(tmp_path: Path) -> None:
    first = Mark(tmp_path / "mark")
    assert not first.allows("e", 0)
    first.set("e", 100)
    first.set("e", 7)
    first.close()
    second = Mark(tmp_path / "mark")
    assert [False, True, True] == [second.allows("e", seq) for seq in (6, 7, 8)]
    assert not second.allows("f", 9)
    second.close()
    assert 0o600 == (tmp_path / "mark").stat().st_mode & 0o777


@pytest.mark.parametrize("written", [b"", b"e", b"e \n", b"e x\n", b"e 7", b"\xff 7\n", b"e 7 7\n", b"e -7\n"])
def test_what_is_no_mark_allows_nothing(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "mark").write_bytes(written)
    mark = Mark(tmp_path / "mark")
    assert not mark.allows("e", 9)
    mark.set("e", 9)
    assert mark.allows("e", 9)
    mark.close()


def test_a_mark_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    mark = Mark(tmp_path / "absent" / "mark")
    mark.set("e", 1)
    assert not mark.allows("e", 1)
    mark.close()
