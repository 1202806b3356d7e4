"""Every error of the product, once.

Strategy: an error is a value that knows its code, where it comes from, and whether a retry is safe. The table
`CODES` is the only place that maps a code to an HTTP status and a gRPC status, `STATUSES` the way back from a status
that came without a code; both ends of the wire use them.
`gateway.responses` is the only place that turns an error into an HTTP response, and the documentation page is
generated from the table.

Rules:
- `detail` is a sentence for people. It never repeats input and never holds a secret, a path of this machine or a
  stack.
- An error that crosses the wire is an `ErrorBody`; `FlxError.from_body` is its inverse.

The tree:

    FlxError
    ├── InvalidRequest            400 invalid_request, invalid_json, json_too_deep, ...
    ├── ValidationFailed          422 validation_failed, with one FieldError per field
    ├── Unauthenticated           401 missing_token
    │   └── TokenRejected         401 invalid_token (the reason stays in metrics and logs)
    ├── Forbidden                 403 forbidden
    ├── NotFound                  404 not_found, unknown_command (with the nearest names)
    ├── Conflict                  409 already_running, managed_by_project, already_exists, ...; 424 not_attempted
    ├── RateLimited               429 rate_limited, with retry_after_s
    ├── ProjectInvalid            422 project_invalid: meltano.yml cannot be read, field by field
    ├── Unavailable               503 upstream_unavailable, shutting_down
    ├── DeadlineExceeded          504 deadline_exceeded
    ├── Internal                  500 internal
    └── StartupError              never on the wire: one line naming a setting, exit code 2
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar, Final, NamedTuple, Self

import msgspec

NOT_NOW: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that say "not now" to a client: of the service, or of a proxy before it."""


class Code(NamedTuple):
    """What an error code means on both wires.

    `http` and `grpc` are status numbers; `source` is client, gateway or daemon; `retryable` says that sending the
    same request again may succeed and cannot do harm.
    """

    http: int
    grpc: int
    source: str
    retryable: bool
    title: str


class Status(NamedTuple):
    """A gRPC status: its name, and the code that it stands for when it comes without one of ours."""

    name: str
    code: str


STATUSES: dict[int, Status] = {
    1: Status("CANCELLED", "cancelled"),
    2: Status("UNKNOWN", "internal"),
    3: Status("INVALID_ARGUMENT", "invalid_request"),
    4: Status("DEADLINE_EXCEEDED", "deadline_exceeded"),
    5: Status("NOT_FOUND", "not_found"),
    6: Status("ALREADY_EXISTS", "already_exists"),
    7: Status("PERMISSION_DENIED", "forbidden"),
    8: Status("RESOURCE_EXHAUSTED", "payload_too_large"),
    9: Status("FAILED_PRECONDITION", "conflict"),
    10: Status("ABORTED", "conflict"),
    11: Status("OUT_OF_RANGE", "invalid_request"),
    12: Status("UNIMPLEMENTED", "unknown_command"),
    13: Status("INTERNAL", "internal"),
    14: Status("UNAVAILABLE", "upstream_unavailable"),
    15: Status("DATA_LOSS", "internal"),
    16: Status("UNAUTHENTICATED", "missing_token"),
}
"""All gRPC statuses (https://grpc.github.io/grpc/core/md_doc_statuscodes.html) but OK."""

_CANCELLED = 1
_INVALID_ARGUMENT, _DEADLINE, _NOT_FOUND, _ALREADY_EXISTS, _PERMISSION = 3, 4, 5, 6, 7
_EXHAUSTED, _PRECONDITION, _UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE, _UNAUTHENTICATED = 8, 9, 12, 13, 14, 16

CODES: dict[str, Code] = {
    "invalid_request": Code(400, _INVALID_ARGUMENT, "client", retryable=False, title="The request is malformed"),
    "invalid_json": Code(400, _INVALID_ARGUMENT, "client", retryable=False, title="The body is not valid JSON"),
    "json_too_deep": Code(400, _INVALID_ARGUMENT, "client", retryable=False, title="The body is nested too deeply"),
    "invalid_host": Code(400, _INVALID_ARGUMENT, "client", retryable=False, title="The Host header is not acceptable"),
    "missing_token": Code(401, _UNAUTHENTICATED, "client", retryable=False, title="A bearer token is required"),
    "invalid_token": Code(401, _UNAUTHENTICATED, "client", retryable=False, title="The bearer token is not acceptable"),
    "invalid_credentials": Code(
        401, _UNAUTHENTICATED, "client", retryable=False, title="The user name or the password is wrong"
    ),
    "forbidden": Code(403, _PERMISSION, "client", retryable=False, title="The token does not permit this"),
    "origin_not_allowed": Code(403, _PERMISSION, "client", retryable=False, title="The origin is not allowed"),
    "not_found": Code(404, _NOT_FOUND, "client", retryable=False, title="There is no such thing"),
    "unknown_command": Code(404, _UNIMPLEMENTED, "client", retryable=False, title="There is no such command"),
    "method_not_allowed": Code(405, _UNIMPLEMENTED, "client", retryable=False, title="The method is not allowed here"),
    "request_timeout": Code(408, _DEADLINE, "client", retryable=True, title="The body did not arrive in time"),
    "already_exists": Code(409, _ALREADY_EXISTS, "client", retryable=False, title="The name is taken"),
    "already_running": Code(409, _PRECONDITION, "client", retryable=True, title="The pipeline is running"),
    "managed_by_project": Code(
        409, _PRECONDITION, "client", retryable=False, title="meltano.yml owns this; the API cannot change it"
    ),
    "conflict": Code(409, _PRECONDITION, "client", retryable=False, title="The present state does not allow this"),
    "client_id_taken": Code(409, _PRECONDITION, "client", retryable=True, title="Another subject holds this client id"),
    "idempotency_in_progress": Code(
        409, _PRECONDITION, "client", retryable=True, title="The first request of this key is not done yet"
    ),
    "precondition_failed": Code(412, _PRECONDITION, "client", retryable=False, title="The revision has changed"),
    "payload_too_large": Code(413, _EXHAUSTED, "client", retryable=False, title="The body is too large"),
    "unsupported_media_type": Code(
        415, _INVALID_ARGUMENT, "client", retryable=False, title="The body must be application/json"
    ),
    "unsupported_encoding": Code(
        415, _INVALID_ARGUMENT, "client", retryable=False, title="Compressed bodies are not accepted"
    ),
    "validation_failed": Code(
        422, _INVALID_ARGUMENT, "client", retryable=False, title="One or more fields are not acceptable"
    ),
    "idempotency_key_reuse": Code(
        422, _PRECONDITION, "client", retryable=False, title="The idempotency key was used with another body"
    ),
    "not_attempted": Code(
        424, _PRECONDITION, "gateway", retryable=True, title="The batch ended before this operation was begun"
    ),
    "project_invalid": Code(422, _PRECONDITION, "daemon", retryable=False, title="The Meltano project cannot be read"),
    "rate_limited": Code(429, _EXHAUSTED, "gateway", retryable=True, title="Too many requests"),
    "cancelled": Code(499, _CANCELLED, "client", retryable=False, title="The client gave the command up"),
    "internal": Code(500, _INTERNAL, "daemon", retryable=False, title="Something broke on our side"),
    "upstream_unavailable": Code(503, _UNAVAILABLE, "gateway", retryable=True, title="The daemon cannot be reached"),
    "overloaded": Code(503, _UNAVAILABLE, "gateway", retryable=True, title="There is too much to do"),
    "shutting_down": Code(503, _UNAVAILABLE, "gateway", retryable=True, title="The service is shutting down"),
    "storage_unavailable": Code(
        503, _UNAVAILABLE, "daemon", retryable=True, title="The database cannot be reached or written"
    ),
    "bus_unavailable": Code(
        503,
        _UNAVAILABLE,
        "gateway",
        retryable=True,
        title="The bus between gateways cannot be reached",
    ),
    "deadline_exceeded": Code(504, _DEADLINE, "gateway", retryable=True, title="The deadline has passed"),
    "insufficient_storage": Code(507, _EXHAUSTED, "daemon", retryable=True, title="The disk is full"),
}


GIVEN_UP = "cancelled"
"""The code of a command that nobody waits for any more."""


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field that is not acceptable: `field` is a path such as `args.name`, `reason` a sentence."""

    field: str
    reason: str
    code: str = "invalid"


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it crosses the gRPC wire (JSON in `ReplyFrame.problem`)."""

    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    retry_after_s: float | None = None
    suggestions: tuple[str, ...] = ()


class FlxError(Exception):
    """The root of all errors that have a code.

    Args:
        detail: a sentence for people, free of input and secrets.
        code: a key of `CODES`; each class has its usual one.
        errors: the fields at fault.
        retry_after_s: seconds after which a retry makes sense.
        suggestions: names near to the one that was not found.
    """

    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        errors: tuple[FieldError, ...] | list[FieldError] = (),
        retry_after_s: float | None = None,
        suggestions: tuple[str, ...] | list[str] = (),
    ) -> None:
        self.code = code or self.default_code
        self.detail = detail or CODES[self.code].title
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        self.suggestions = tuple(suggestions)
        super().__init__(self.detail)

    @property
    def spec(self) -> Code:
        """What the code means on both wires."""
        return CODES[self.code]

    @property
    def body(self) -> ErrorBody:
        """The error as it crosses the gRPC wire."""
        return ErrorBody(self.code, self.detail, self.errors, self.retry_after_s, self.suggestions)

    @staticmethod
    def from_body(body: ErrorBody) -> FlxError:
        """The error a body stands for; an unknown code (a newer daemon) becomes `internal`."""
        kind = _CLASS_OF.get(body.code, FlxError)
        error = kind.__new__(kind)
        FlxError.__init__(
            error,
            body.detail,
            code=body.code if body.code in CODES else "internal",
            errors=body.errors,
            retry_after_s=body.retry_after_s,
            suggestions=body.suggestions,
        )
        return error

    @staticmethod
    def from_status(status: int, detail: str = "") -> FlxError:
        """The error that a bare gRPC status stands for; an unknown one becomes `internal`."""
        known = STATUSES.get(status)
        return FlxError.from_body(ErrorBody("internal" if known is None else known.code, detail))

    @classmethod
    def field(cls, field: str, reason: str, detail: str = "") -> Self:
        """An error about one field."""
        return cls(detail or f"{field}: {reason}", errors=(FieldError(field, reason),))


class InvalidRequest(FlxError):
    """The request cannot be understood; nothing was done."""

    default_code = "invalid_request"


class ValidationFailed(FlxError):
    """The request is understood but one or more fields are not acceptable; nothing was done."""

    default_code = "validation_failed"


class Unauthenticated(FlxError):
    """No token where one is needed, or wrong credentials."""

    default_code = "missing_token"


class TokenRejected(Unauthenticated):
    """A token that is not acceptable. `reason` is for metrics and logs; the client sees one and the same body."""

    default_code = "invalid_token"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__()


class Forbidden(FlxError):
    """The principal may not do this."""

    default_code = "forbidden"


class NotFound(FlxError):
    """No such thing, or none the principal may see: the answer is the same."""

    default_code = "not_found"


class Conflict(FlxError):
    """The present state does not allow this."""

    default_code = "conflict"


class RateLimited(FlxError):
    """A policy's window is used up; `retry_after_s` says when it is not."""

    default_code = "rate_limited"


class ProjectInvalid(FlxError):
    """meltano.yml cannot be read; `errors` name file, field and reason."""

    default_code = "project_invalid"


class Unavailable(FlxError):
    """A part that is needed cannot be reached or is stopping; nothing was done unless said otherwise."""

    default_code = "upstream_unavailable"


class DeadlineExceeded(FlxError):
    """The time the caller gave is over; an accepted run goes on."""

    default_code = "deadline_exceeded"


class Internal(FlxError):
    """A fault of ours."""

    default_code = "internal"


class StartupError(Exception):
    """The service cannot start. `str()` is one line naming the setting or part; the command exits with 2."""

    def __init__(self, line: str) -> None:
        # Values from outside may be quoted in it.
        super().__init__(" ".join(line.splitlines()))


_CLASS_OF: dict[str, type[FlxError]] = {
    code: next(
        (
            kind
            for kind, statuses in (
                (Unauthenticated, (401,)),
                (Forbidden, (403,)),
                (NotFound, (404, 405)),
                (Conflict, (409, 412, 424)),
                (RateLimited, (429,)),
                (Unavailable, (503, 507)),
                (DeadlineExceeded, (504,)),
                (Internal, (500,)),
            )
            if spec.http in statuses
        ),
        ProjectInvalid
        if code == "project_invalid"
        else ValidationFailed
        if spec.http == HTTPStatus.UNPROCESSABLE_ENTITY
        else InvalidRequest,
    )
    for code, spec in CODES.items()
}
