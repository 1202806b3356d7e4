"""The `.env` file of a project, read as Meltano reads it.

Strategy: one scan with the grammar of python-dotenv, which Meltano uses, then the interpolation it applies. Values stay
inside the daemon: they serve to expand `${NAME}` in meltano.yml; the model shows names only.

Rules:
- Pure: text and an environment in, a mapping out.
- A line that cannot be understood is skipped, as python-dotenv does; it never makes the project invalid.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BLANK = re.compile(r"\s*")
_EXPORT = re.compile(r"(?:export[^\S\r\n]+)?")
_SINGLE_KEY = re.compile(r"'([^']+)'")
_KEY = re.compile(r"([^=\#\s]+)")
_SPACE = re.compile(r"[^\S\r\n]*")
_EQUALS = re.compile(r"=[^\S\r\n]*")
_SINGLE = re.compile(r"'((?:\\.|[^'\\])*)'", re.DOTALL)
_DOUBLE = re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL)
_BARE = re.compile(r"[^\r\n]*")
_COMMENT = re.compile(r"(?:[^\S\r\n]*#[^\r\n]*)?")
_END = re.compile(r"[^\S\r\n]*(?:\r\n|\n|\r|$)")
_REST = re.compile(r"[^\r\n]*(?:\r|\n|\r\n)?")
_DOUBLE_ESCAPE = re.compile(r"\\[\\'\"abfnrtv]")
_SINGLE_ESCAPE = re.compile(r"\\[\\']")
_VARIABLE = re.compile(r"\$\{(?P<name>[^\}:]*)(?::-(?P<default>[^\}]*))?\}")


def read_dotenv(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables a `.env` file sets, with `${NAME}` and `${NAME:-default}` resolved.

    Args:
        text: the file's content.
        environ: the process environment; the file's own earlier lines come before it.
    """
    found: dict[str, str | None] = {}
    for name, value in _bindings(text.removeprefix("\ufeff")):
        found[name] = None if value is None else _interpolate(value, found, environ)
    return {name: value for name, value in found.items() if value is not None}


def _interpolate(value: str, found: Mapping[str, str | None], environ: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name in found:
            return found[name] or ""
        return environ.get(name, match["default"] or "")

    return _VARIABLE.sub(replace, value)


class _Stuck(Exception):
    """A line cannot be understood from this place on."""

    def __init__(self, at: int) -> None:
        self.at = at


def _bindings(text: str) -> Iterator[tuple[str, str | None]]:
    at = 0
    while at < len(text):
        start = _end_of(_BLANK, text, at)
        if start >= len(text):
            return
        try:
            name, value, at = _binding(text, start)
        except _Stuck as stuck:
            # Only the rest of that line is lost: the lines behind it, in a quoted value perhaps, are read as lines.
            at = _end_of(_REST, text, stuck.at)
            continue
        if name is not None:
            yield name, value


def _binding(text: str, at: int) -> tuple[str | None, str | None, int]:
    """One line from `at`: name, value and where the next line starts."""
    at = _end_of(_EXPORT, text, at)
    name: str | None = None
    if not text.startswith("#", at):
        key = _must(_SINGLE_KEY if text.startswith("'", at) else _KEY, text, at)
        name, at = key[1], key.end()
    at = _end_of(_SPACE, text, at)
    value: str | None = None
    if equals := _EQUALS.match(text, at):
        at = equals.end()
        value, at = ("", at) if len(equals[0]) > 1 and text.startswith("#", at) else _value(text, at)
    at = _end_of(_COMMENT, text, at)
    return name, value, _must(_END, text, at).end()


def _value(text: str, at: int) -> tuple[str, int]:
    first = text[at : at + 1]
    if first in {"'", '"'}:
        quoted, escape = (_SINGLE, _SINGLE_ESCAPE) if first == "'" else (_DOUBLE, _DOUBLE_ESCAPE)
        match = _must(quoted, text, at)
        return escape.sub(lambda seen: codecs.decode(seen[0], "unicode-escape"), match[1]), match.end()
    if first in {"", "\n", "\r"}:
        return "", at
    end = _end_of(_BARE, text, at)
    return re.sub(r"\s+#.*", "", text[at:end]).rstrip(), end


def _must(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    match = pattern.match(text, at)
    if match is None:
        raise _Stuck(at)
    return match


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern that matches everywhere, possibly nothing, ends."""
    match = pattern.match(text, at)
    return match.end() if match else at
