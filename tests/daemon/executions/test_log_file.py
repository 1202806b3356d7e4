"""A log by line number, against the naive reading of the whole file."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.channel import _MAX_RESULT
from flx_api.daemon.executions import log_file
from flx_api.daemon.executions.log_file import LogFile


def naive(content: bytes, *, complete: bool) -> list[bytes]:
    *lines, rest = content.split(b"\n")
    return [*lines, rest] if rest and complete else lines


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_pages_are_those_of_the_whole_file(pieces: list[bytes], start: int, limit: int, newlines: bool) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_file, "MARK_LINES", 3)
        patch.setattr(log_file, "CHUNK_BYTES", 7)
        path = Path(folder) / "log"
        found = LogFile(path, tenant="t")
        content = b""
        for piece in pieces:
            content += piece + (b"\n" if newlines else b"")
            path.write_bytes(content)
            found.advance()
            whole = naive(content, complete=False)
            assert found.last_line == len(whole)
            assert found.lines(start, limit) == whole[start - 1 : start - 1 + limit]
        found.finish()
        for opened in (found, LogFile(path, tenant="t", complete=True)):
            whole = naive(content, complete=True)
            assert opened.lines(start, limit) == whole[start - 1 : start - 1 + limit]
            assert opened.last_line == len(whole)


def test_a_long_log_is_read_through_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [b'{"line": %d}' % number for number in range(1, 20_001)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = LogFile(path, tenant="t", complete=True)
    assert found.last_line == 20_000
    for start in (1, 255, 256, 257, 511, 512, 513, 12_345, 19_999, 20_000):
        assert found.lines(start, 3) == lines[start - 1 : start + 2]
    assert found.lines(20_001, 3) == []
    assert len(found._marks) == 20_000 // 256 + 1


def test_a_page_is_bounded_by_bytes_but_has_at_least_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 1000 + b"\n" + b"y" * 10 + b"\n" + b"z\n")
    found = LogFile(path, tenant="t", complete=True)
    assert found.lines(1, 10, max_bytes=100) == [b"x" * 1000]
    assert found.lines(2, 10, max_bytes=100) == [b"y" * 10, b"z"]


@given(
    st.lists(st.one_of(st.binary(max_size=12), st.text("aä€😀", max_size=40).map(str.encode)), max_size=8),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 60),
)
def test_long_lines_are_cut_and_keep_their_numbers(pieces: list[bytes], start: int, limit: int, room: int) -> None:
    """Like the naive cut of each line; what was asked for before does not change what is found."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in (("MARK_LINES", 3), ("CHUNK_BYTES", 7), ("LINE_BYTES", 10)):
            patch.setattr(log_file, name, value)
        path = Path(folder) / "log"
        path.write_bytes(b"\n".join(pieces) + b"\n")
        whole = [naive_cut(line, 10) for line in naive(path.read_bytes(), complete=True)]
        opened = LogFile(path, tenant="t", complete=True)
        assert opened.last_line == len(whole)
        assert opened.lines(start, limit) == whole[start - 1 : start - 1 + limit]
        line, seen = 1, list[bytes]()
        while page := opened.lines(line, limit, room):
            assert len(page) == 1 or sum(min(len(one), 10) for one in page[:-1]) <= room
            seen += page
            line += len(page)
        assert seen == whole


def naive_cut(line: bytes, most: int) -> bytes:
    if len(line) <= most:
        return line
    return line[:most] + f" [cut: the line has {len(line)} bytes]".encode()


def test_a_page_and_a_line_fit_into_a_message_as_json() -> None:
    """Whatever they are made of: a byte of JSON's own takes six."""
    assert len(msgspec.json.encode("\0" * log_file.PAGE_BYTES)) < _MAX_RESULT
    assert log_file.PAGE_BYTES > 2 * log_file.LINE_BYTES


def test_the_tail_holds_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    found = LogFile(path, tenant="t", complete=True)
    assert found.tail(9) == [b"three"]
    assert found.tail(1000) == [b"one", b"two", b"three"]


def test_a_log_that_is_gone_has_no_lines(tmp_path: Path) -> None:
    found = LogFile(tmp_path / "absent", tenant="t", complete=True)
    assert found.last_line == 0
    assert found.lines(1, 10) == []
    assert found.tail(10) == []
    assert found.complete


def test_watchers_wake_at_a_line_and_at_the_end(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "log"
        found = LogFile(path, tenant="t")
        first = asyncio.create_task(found.changed(0))
        path.write_bytes(b"no end")
        assert not found.advance()
        await asyncio.sleep(0)
        assert not first.done()
        path.write_bytes(b"no end yet\nmore")
        found.advance()
        await first
        second = asyncio.create_task(found.changed(1))
        await asyncio.sleep(0)
        assert not second.done()
        found.finish()
        await second
        assert found.lines(1, 9) == [b"no end yet", b"more"]
        await found.changed(99)

    asyncio.run(story())


def test_a_second_reader_waits_for_the_index_that_a_first_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\n")
    found = LogFile(tmp_path / "log", tenant="t", complete=True)
    reading, go_on = threading.Event(), threading.Event()
    index = LogFile._index

    def slow(self: LogFile, until: int) -> None:
        reading.set()
        go_on.wait(5)
        index(self, until)

    monkeypatch.setattr(LogFile, "_index", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(found.load)
        reading.wait(5)
        second = pool.submit(lambda: found.last_line)
        assert not second.done()
        go_on.set()
        assert second.result(5) == 2
        first.result(5)


@given(st.lists(st.lists(st.binary(max_size=20), max_size=6), min_size=1, max_size=4), st.integers(1, 20))
def test_attempts_are_one_log(attempts: list[list[bytes]], start: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_file, "MARK_LINES", 3)
        paths = [Path(folder) / str(number) for number in range(len(attempts))]
        found = LogFile(paths[0], tenant="t")
        whole: list[bytes] = []
        for number, pieces in enumerate(attempts):
            if number:
                found.continue_in(paths[number])
            assert found.earlier_lines == found.last_line == len(whole)
            paths[number].write_bytes(b"\n".join(pieces))
            found.take_rest()
            whole += naive(b"\n".join(pieces), complete=True)
            assert not found.complete
        found.finish()
        *earlier, last = paths
        for log in (found, LogFile(last, tenant="t", complete=True, earlier=earlier)):
            assert log.is_whole
            assert log.last_line == len(whole)
            # A page never goes beyond its attempt, and the pages together are everything.
            read, line = whole[: start - 1], min(start, len(whole) + 1)
            while page := log.lines(line, 5):
                read += page
                line += len(page)
            assert read == whole
        paths[0].unlink()
        assert not found.is_whole


def test_who_follows_an_attempt_hears_of_the_next_one(tmp_path: Path) -> None:
    async def story() -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        first.write_bytes(b"a\n")
        found = LogFile(first, tenant="t")
        found.take_rest()
        following = asyncio.create_task(found.changed(2))
        found.continue_in(second)
        second.write_bytes(b"b\nc\n")
        found.advance()
        async with asyncio.timeout(10):
            await following
        assert found.lines(2, 10) == [b"b", b"c"]

    asyncio.run(story())


def test_who_follows_goes_on_where_the_page_before_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, offsets, pread = tmp_path / "log", [], os.pread
    found = LogFile(path, tenant="t")

    def reading(file: int, size: int, offset: int) -> bytes:
        offsets.append(offset)
        return pread(file, size, offset)

    for number in range(1, 5):
        with path.open("ab") as file:
            file.write(b"line %d\n" % number)
        found.advance()
        monkeypatch.setattr(os, "pread", reading)
        assert found.lines(number, 9) == [b"line %d" % number]
        monkeypatch.undo()
    assert offsets == [0, 7, 14, 21]
    assert found.lines(2, 2) == [b"line 2", b"line 3"]
