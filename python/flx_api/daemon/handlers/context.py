"""What a handler is given and what it may answer.

Strategy: a handler is a function of a `Context` and the command's typed arguments. A plain function answers at once, on
the loop, and costs no task: right for what reads memory and a few rows. Anything that waits is a coroutine function.

Rules:
- A handler knows nothing of gRPC, frames or JSON (`system.echo`, which returns bytes as they came, is the exception).
- Every query names the principal's tenant and `journal.project_id`.
- Whatever changes something does so in one `journal.write`, with its events and its idempotency key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from flx_api.daemon.handlers.memo import Memo
from flx_api.daemon.principal import Principal
from flx_api.models.envelope import MADE_KEY

if TYPE_CHECKING:
    from flx_api.config import Settings
    from flx_api.daemon.executions import Executions
    from flx_api.daemon.journal import Journal
    from flx_api.daemon.project import ProjectCache
    from flx_api.daemon.revocations import Revocations
    from flx_api.daemon.tokens import TokenIssuer
    from flx_api.daemon.users import Users
    from flx_api.events.ephemeral_log import EphemeralLog


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers work with, made once by `flx_api.daemon.main`. `clock` gives microseconds since the epoch."""

    journal: Journal
    projects: ProjectCache
    executions: Executions
    settings: Settings
    tokens: TokenIssuer
    users: Users
    revocations: Revocations
    ephemeral: EphemeralLog
    clock: Callable[[], int]
    started_us: int
    meltano_version: Callable[[], str | None] = lambda: None
    stopping: Callable[[], bool] = lambda: False
    memo: Memo = field(default_factory=Memo)


class Context(msgspec.Struct, frozen=True):
    """One command on its way: who asks, what was asked besides the arguments, and the services."""

    principal: Principal
    services: Services
    idempotency_key: str | None = None
    deadline_us: int | None = None
    request_id: str = ""
    environment: str | None = None
    dry_run: bool = False
    wait_ms: int = 0
    body_hash: str = ""
    client_address: str = ""
    raw_args: bytes = b"{}"

    @property
    def client_key(self) -> str | None:
        """The idempotency key, if the client itself gave it."""
        key = self.idempotency_key
        return None if key is None or key.startswith(MADE_KEY) else key


class Accepted(msgspec.Struct, frozen=True):
    """The answer of a long command: work goes on under `execution_id`. `replayed`: an earlier request began it."""

    result: msgspec.Struct
    execution_id: str
    replayed: bool = False


class Replay(msgspec.Struct, frozen=True):
    """What the first command with this idempotency key answered, as JSON."""

    result: bytes
    execution_id: str | None = None


Outcome = msgspec.Struct | Accepted | Replay | bytes
"""`bytes` are JSON that goes out as it is."""

# Each handler takes the arguments of its own command; the table that binds them cannot say so.
Handler = Callable[[Context, Any], Outcome | Awaitable[Outcome]]
