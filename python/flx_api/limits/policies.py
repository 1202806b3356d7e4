"""Rate limit policies: from settings to what the native core takes, and what each request passes.

The windows themselves (true sliding ones) live in Rust. Here it is drawn up, once, which of them a request passes: that
depends on its class, which is the command that its method of a route stands for, the command that its path names, or
the route. A command that is known only from the body (`/v1/execute`, and each of a `/v1/batch`) has a second class,
with the policies that are about commands; the rest the request has passed. For a policy that names routes too, these
two routes are one.

Rules:
- A policy with several windows is one for each of them; the first bears the policy's name, the others name and window.
- What a policy names must exist: a pattern that no route or command fits is a mistake, told at the start.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flx_api.models.rate_limit import RateLimit

# name, by, limit, window_ms, the most a request costs, shadow
NativePolicy = tuple[str, str, int, int, int, bool]
# index of the policy, units
Toll = tuple[int, int]


class RouteClass(NamedTuple):
    """A route as policies see it, or a method of one.

    `command`: the one it stands for; `late`: it is known from the body only.
    """

    template: str
    command: str | None = None
    late: bool = False


class Windows(NamedTuple):
    """What `flx_api._core.Admission` takes. `commands`: the class of a command, and that of its second decision."""

    policies: list[NativePolicy]
    modes: list[Literal["fast", "strict"]]
    classes: list[list[Toll]]
    commands: dict[str, tuple[int, int]]

    @property
    def strict(self) -> bool:
        """Whether any policy may have to wait for a lease."""
        return "strict" in self.modes


def windows(
    policies: Sequence[RateLimit], routes: Sequence[RouteClass], named: Collection[str], commands: Collection[str]
) -> Windows:
    """The windows of these policies, and what each class passes.

    Args:
        policies: of the settings.
        routes: in the order of their classes; the routes of no template (what leads nowhere) among them.
        named: the templates whose last value is a command's name.
        commands: all commands.

    Raises:
        StartupError: a policy names what does not exist.
    """
    check(policies, {route.template for route in routes}, commands)
    native: list[NativePolicy] = []
    modes: list[Literal["fast", "strict"]] = []
    windows_of: list[list[int]] = []
    for policy in policies:
        dearest = max([policy.cost, *policy.costs.values()])
        windows_of.append([])
        for name, limit, window_ms in policy.each_window:
            windows_of[-1].append(len(native))
            modes.append(policy.mode)
            native.append((name, policy.by, limit, window_ms, dearest, policy.shadow))

    def tolls(templates: Collection[str], command: str | None, *, late: bool | None) -> list[Toll]:
        """`late`: None for what is known at once, False for what is so far, True for the rest."""
        passed: list[Toll] = []
        for policy, own in zip(policies, windows_of, strict=True):
            by_command = bool(policy.commands or policy.costs)
            if (late is not None and by_command != late) or not _concerns(policy, templates, command):
                continue
            cost = _cost(policy, command)
            passed += [(window, cost) for window in own]
        return passed

    classes = [tolls({route.template}, route.command, late=False if route.late else None) for route in routes]
    execute = {route.template for route in routes if route.late}
    known: dict[str, tuple[int, int]] = {}
    for command in commands:
        known[command] = len(classes), len(classes) + 1
        classes += [tolls(named, command, late=None), tolls(execute, command, late=True)]
    return Windows(native, modes, classes, known)


def check(policies: Sequence[RateLimit], templates: Collection[str], commands: Collection[str]) -> None:
    """Hold that what the policies name exists.

    Args:
        policies: of the settings.
        templates: of all routes.
        commands: all commands.

    Raises:
        StartupError: a pattern fits none of them.
    """
    for index, policy in enumerate(policies):
        named = (("routes", policy.routes, templates), ("commands", policy.commands, commands))
        for field, globs, known in (*named, ("costs", tuple(policy.costs), commands)):
            for glob in globs:
                if not any(fnmatchcase(name, glob) for name in known):
                    what = "route" if field == "routes" else "command"
                    msg = f"FLX_RATE_LIMITS: [{index}].{field}: no {what} fits one of its patterns"
                    raise StartupError(msg)


def _concerns(policy: RateLimit, templates: Collection[str], command: str | None) -> bool:
    by_route = not policy.routes or any(fnmatchcase(name, glob) for name in templates for glob in policy.routes)
    by_command = not policy.commands or (
        command is not None and any(fnmatchcase(command, glob) for glob in policy.commands)
    )
    return by_route and by_command


def _cost(policy: RateLimit, command: str | None) -> int:
    if command is not None:
        for glob, cost in policy.costs.items():
            if fnmatchcase(command, glob):
                return cost
    return policy.cost
