"""Paths: refused or understood once, at the edge, before anybody decides anything by them.

Strategy: the table of routes is a dict of exact paths and a tree of segments; a path leads to a template, and the
template to its methods. Names are matched as they stand, byte by byte: there is one spelling of each path.

Rules:
- `//`, `.` and `..`, encoded slashes, backslashes, dots and NULs, anything that is not ASCII, and escapes that are not
  UTF-8 lead nowhere. Segments that are values are decoded once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from flx_api.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

# public: nobody is asked; probe: not even limits apply; token: a principal is needed.
Access = Literal["public", "probe", "token", "metrics"]

_PLAIN: Final = re.compile(rb"(?:/[A-Za-z0-9_.~!$&'()*+,=:@-]+)+|/")
_ESCAPED: Final = re.compile(rb"(?:/(?:[A-Za-z0-9_.~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+)+|/")
# Control characters, dot, slash, backslash: what could make a path another one.
_TREACHEROUS: Final = re.compile(rb"%(?:[01][0-9a-f]|7f|2e|2f|5c|25)", re.IGNORECASE)
_NAME: Final = re.compile(r"\{(\w+)\}")
_MAX_SEGMENTS: Final = 12


class Route(NamedTuple):
    """One path template, the names of its values, and what may be done with it.

    `access` is by method, and `serve` too; a method that is not in `serve` is the framework's.
    """

    template: str
    names: tuple[str, ...]
    access: dict[str, Access]
    serve: dict[str, Any]

    @property
    def allow(self) -> str:
        """The value of the Allow header."""
        methods = {*self.access, "OPTIONS", *(("HEAD",) if "GET" in self.access else ())}
        return ", ".join(sorted(methods))


class Node:
    """One segment of the tree."""

    __slots__ = ("literal", "route", "value")

    def __init__(self) -> None:
        self.literal: dict[str, Node] = {}
        self.value: Node | None = None
        self.route: Route | None = None


class Paths:
    """All paths of the gateway."""

    def __init__(self) -> None:
        self._root = Node()
        self._exact: dict[str, Route] = {}

    def add(self, method: str, template: str, access: Access, serve: Any = None) -> None:  # noqa: ANN401 - a handler
        """Make a template known for a method."""
        node = self._root
        for segment in template.strip("/").split("/"):
            if segment.startswith("{"):
                if node.value is None:
                    node.value = Node()
                node = node.value
            else:
                node = node.literal.setdefault(segment, Node())
        if node.route is None:
            node.route = Route(template, tuple(_NAME.findall(template)), {}, {})
        node.route.access[method] = access
        if serve is not None:
            node.route.serve[method] = serve
        if "{" not in template:
            self._exact[template] = node.route

    def templates(self) -> Iterable[Route]:
        """All routes."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node.route is not None:
                yield node.route
            stack.extend(node.literal.values())
            if node.value is not None:
                stack.append(node.value)

    def find(self, raw: bytes) -> tuple[str, Route, dict[str, str]]:
        """The path as text, its route and the values in it.

        Raises:
            NotFound: the path is refused or unknown.
        """
        path = normalise(raw)
        exact = self._exact.get(path)
        if exact is not None:
            return path, exact, {}
        node: Node | None = self._root
        values: list[str] = []
        for segment in path[1:].split("/"):
            if node is None:
                break
            following = node.literal.get(segment)
            if following is None and node.value is not None:
                following = node.value
                values.append(decode_segment(segment))
            node = following
        if node is None or node.route is None:
            raise NotFound
        return path, node.route, dict(zip(node.route.names, values, strict=True))


def normalise(raw: bytes) -> str:
    """A path as text, when there is nothing to suspect about it.

    Raises:
        NotFound: there is.
    """
    if not _PLAIN.fullmatch(raw) and (not _ESCAPED.fullmatch(raw) or _TREACHEROUS.search(raw)):
        raise NotFound
    segments = raw.split(b"/")
    if len(segments) > _MAX_SEGMENTS or b"." in segments or b".." in segments:
        raise NotFound
    return raw.decode("ascii")


def decode_segment(segment: str) -> str:
    """A value in a path, decoded once.

    Raises:
        NotFound: its escapes are not UTF-8.
    """
    if "%" not in segment:
        return segment
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise NotFound from None
