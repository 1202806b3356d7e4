"""What a command would cost: the part of a plan that only the gateway knows.

Rules:
- Told from the policies as they are drawn up; no window is asked or charged. A dry run itself costs what `ASKING` costs
  where the command is known from the body (a log-in what it always does); where the path names the command, limits are
  decided before anything else of the request is read, and a dry run costs what the command costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from flx_api.errors import Internal
from flx_api.models.plan import LimitCost, Plan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flx_api.commands import Command
    from flx_api.limits.policies import NativePolicy, RouteClass, Toll, Windows

ASKING: Final = "command.describe"
"""The command whose limits a dry run passes: like this one it is a question about a command."""


def payer(command: Command, *, dry_run: bool) -> str:
    """The command whose limits apply. A dry run of a log-in is a try, and limits on tries must hold."""
    return ASKING if dry_run and not command.public else command.name


_plan = msgspec.json.Decoder(Plan)
_encode = msgspec.json.Encoder().encode


class _Way(NamedTuple):
    """How limits see a route: what its requests pass, and whether the command comes by path or later by body."""

    template: str
    tolls: list[Toll]
    is_named: bool
    is_late: bool


class Costs:
    """What commands cost by each route.

    Args:
        drawn: the policies as the core has them.
        routes: in the order of their classes; those beyond the routes themselves say which command a route stands for.
        named: the templates whose last value is a command's name.
    """

    def __init__(self, drawn: Windows, routes: Sequence[RouteClass], named: Collection[str]) -> None:
        self._policies = drawn.policies
        self._ways = [
            _Way(route.template, drawn.classes[index], route.template in named, route.late)
            for index, route in enumerate(routes)
        ]
        self._own = {(route.template, route.command): drawn.classes[index] for index, route in enumerate(routes)}
        self._commands = {
            name: (drawn.classes[whole], drawn.classes[late]) for name, (whole, late) in drawn.commands.items()
        }

    def of(self, route: int, command: str, *, of_many: bool = False) -> tuple[LimitCost, ...]:
        """What the command costs in a request of this route; as one `of_many` without the request's own share."""
        way = self._ways[route]
        whole, late = self._commands[command]
        tolls = whole if way.is_named else self._own.get((way.template, command), way.tolls)
        if way.is_late:
            tolls = late if of_many else [*tolls, *late]
        return tuple(_cost(self._policies[policy], cost) for policy, cost in tolls)

    def told(self, result: bytes, route: int, command: str, *, of_many: bool = False) -> bytes:
        """The daemon's plan with its limits.

        Raises:
            Internal: the daemon gave something else.
        """
        try:
            plan = _plan.decode(result)
        except msgspec.DecodeError as error:
            raise Internal from error
        return _encode(msgspec.structs.replace(plan, limits=self.of(route, command, of_many=of_many)))


def _cost(policy: NativePolicy, cost: int) -> LimitCost:
    name, by, limit, window_ms, _, shadow = policy
    return LimitCost(policy=name, by=by, cost=cost, limit=limit, window_ms=window_ms, shadow=shadow)
