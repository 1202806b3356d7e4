"""The routes of the gateway: which template has which methods, what each asks for, and who serves it.

A path is led to its route in the native core (`rust/core/src/admission/path.rs`), in the call that admits the request;
the route's index is its place in this table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# public: nobody is asked; probe: not even limits apply; token: a principal is needed; ticket: the same, but without a
# token the handler looks for a ticket.
Access = Literal["public", "probe", "token", "ticket", "metrics"]

_NAME: Final = re.compile(r"\{(\w+)\}")


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


class Paths:
    """All routes of the gateway, by index."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self.by_index: list[Route] = []

    def add(self, method: str, template: str, access: Access, serve: Any = None) -> None:  # noqa: ANN401 - a handler
        """Make a template known for a method."""
        route = self._routes.get(template)
        if route is None:
            route = self._routes[template] = Route(template, tuple(_NAME.findall(template)), {}, {})
            self.by_index.append(route)
        route.access[method] = access
        if serve is not None:
            route.serve[method] = serve

    def __iter__(self) -> Iterator[Route]:
        """All routes in order."""
        return iter(self.by_index)
