"""Our own log, line by line."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest
import structlog

from flx_api.observability.logging import HIDDEN, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    set_up("info", stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_one_json_object_a_line_from_the_level_on(out: io.StringIO) -> None:
    log = structlog.stdlib.get_logger("x")
    log.debug("unseen")
    log.info("seen", number=1, odd=object)
    (line,) = out.getvalue().splitlines()
    assert {"event": "seen", "number": 1, "level": "info"}.items() <= json.loads(line).items()


def test_secrets_are_not_written_whoever_passes_them(out: io.StringIO) -> None:
    structlog.get_logger().warning("x", password="p1", access_token="p2", Authorization="p3", user="bob")
    assert json.loads(out.getvalue()) | {"password": HIDDEN, "access_token": HIDDEN} == json.loads(out.getvalue())
    assert not any(secret in out.getvalue() for secret in ("p1", "p2", "p3"))
    assert "bob" in out.getvalue()


def test_the_standard_library_ends_up_in_the_same_lines(out: io.StringIO) -> None:
    logging.getLogger("some.library").info("unseen")
    try:
        dict[str, str]()["why"]
    except KeyError:
        logging.getLogger("some.library").exception("it %s", "broke")
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert (found["event"], found["logger"], found["level"]) == ("it broke", "some.library", "error")
    assert "KeyError" in found["exception"]


def test_a_terminal_sees_no_locals_of_a_frame() -> None:
    stream = io.StringIO()
    set_up("info", stream=stream, as_json=False)
    try:
        token = "abcdefghi"
        try:
            dict[str, str]()["why"]
        except KeyError:
            structlog.get_logger().exception("broke")
        assert "KeyError" in stream.getvalue()
        assert token not in stream.getvalue()
    finally:
        structlog.reset_defaults()
        logging.basicConfig(handlers=[], force=True)
