from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Principal(_message.Message):
    __slots__ = ("subject", "tenant", "roles", "token_id", "session", "expires_at")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    tenant: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    token_id: str
    session: str
    expires_at: int
    def __init__(self, subject: _Optional[str] = ..., tenant: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., token_id: _Optional[str] = ..., session: _Optional[str] = ..., expires_at: _Optional[int] = ...) -> None: ...

class CommandFrame(_message.Message):
    __slots__ = ("seq", "command", "args", "principal", "idempotency_key", "deadline_unix_ms", "request_id", "traceparent", "environment", "dry_run", "wait_ms", "client_address", "cancel")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    seq: int
    command: str
    args: bytes
    principal: Principal
    idempotency_key: str
    deadline_unix_ms: int
    request_id: str
    traceparent: str
    environment: str
    dry_run: bool
    wait_ms: int
    client_address: str
    cancel: bool
    def __init__(self, seq: _Optional[int] = ..., command: _Optional[str] = ..., args: _Optional[bytes] = ..., principal: _Optional[_Union[Principal, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., deadline_unix_ms: _Optional[int] = ..., request_id: _Optional[str] = ..., traceparent: _Optional[str] = ..., environment: _Optional[str] = ..., dry_run: _Optional[bool] = ..., wait_ms: _Optional[int] = ..., client_address: _Optional[str] = ..., cancel: _Optional[bool] = ...) -> None: ...

class ReplyFrame(_message.Message):
    __slots__ = ("seq", "code", "result", "problem", "accepted_id", "replayed")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_ID_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    code: str
    result: bytes
    problem: bytes
    accepted_id: str
    replayed: bool
    def __init__(self, seq: _Optional[int] = ..., code: _Optional[str] = ..., result: _Optional[bytes] = ..., problem: _Optional[bytes] = ..., accepted_id: _Optional[str] = ..., replayed: _Optional[bool] = ...) -> None: ...

class BatchFrame(_message.Message):
    __slots__ = ("frames", "ordered", "fail_fast")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    FAIL_FAST_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[CommandFrame]
    ordered: bool
    fail_fast: bool
    def __init__(self, frames: _Optional[_Iterable[_Union[CommandFrame, _Mapping]]] = ..., ordered: _Optional[bool] = ..., fail_fast: _Optional[bool] = ...) -> None: ...

class CommandBatch(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[CommandFrame]
    def __init__(self, frames: _Optional[_Iterable[_Union[CommandFrame, _Mapping]]] = ...) -> None: ...

class ReplyBatch(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[ReplyFrame]
    def __init__(self, frames: _Optional[_Iterable[_Union[ReplyFrame, _Mapping]]] = ...) -> None: ...

class LogPosition(_message.Message):
    __slots__ = ("execution_id", "after_line")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_LINE_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    after_line: int
    def __init__(self, execution_id: _Optional[str] = ..., after_line: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("topics", "epoch", "after_seq", "logs", "ephemeral", "ephemeral_epoch", "ephemeral_after")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_AFTER_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    epoch: str
    after_seq: int
    logs: _containers.RepeatedCompositeFieldContainer[LogPosition]
    ephemeral: bool
    ephemeral_epoch: str
    ephemeral_after: int
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., epoch: _Optional[str] = ..., after_seq: _Optional[int] = ..., logs: _Optional[_Iterable[_Union[LogPosition, _Mapping]]] = ..., ephemeral: _Optional[bool] = ..., ephemeral_epoch: _Optional[str] = ..., ephemeral_after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("seq", "prev", "ts_us", "topic", "tenant", "data")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PREV_FIELD_NUMBER: _ClassVar[int]
    TS_US_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    seq: int
    prev: int
    ts_us: int
    topic: str
    tenant: str
    data: bytes
    def __init__(self, seq: _Optional[int] = ..., prev: _Optional[int] = ..., ts_us: _Optional[int] = ..., topic: _Optional[str] = ..., tenant: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("epoch", "events", "journal_seq", "gap_reason", "ephemeral", "ephemeral_epoch", "ephemeral_seq", "ephemeral_gap_reason")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_SEQ_FIELD_NUMBER: _ClassVar[int]
    GAP_REASON_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_SEQ_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_GAP_REASON_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    events: _containers.RepeatedCompositeFieldContainer[Event]
    journal_seq: int
    gap_reason: str
    ephemeral: _containers.RepeatedCompositeFieldContainer[Event]
    ephemeral_epoch: str
    ephemeral_seq: int
    ephemeral_gap_reason: str
    def __init__(self, epoch: _Optional[str] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., journal_seq: _Optional[int] = ..., gap_reason: _Optional[str] = ..., ephemeral: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., ephemeral_epoch: _Optional[str] = ..., ephemeral_seq: _Optional[int] = ..., ephemeral_gap_reason: _Optional[str] = ...) -> None: ...

class TellRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class TellReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LogRequest(_message.Message):
    __slots__ = ("execution_id", "from_line", "follow", "limit", "principal")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_LINE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    from_line: int
    follow: bool
    limit: int
    principal: Principal
    def __init__(self, execution_id: _Optional[str] = ..., from_line: _Optional[int] = ..., follow: _Optional[bool] = ..., limit: _Optional[int] = ..., principal: _Optional[_Union[Principal, _Mapping]] = ...) -> None: ...

class LogBatch(_message.Message):
    __slots__ = ("first_line", "lines")
    FIRST_LINE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    first_line: int
    lines: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first_line: _Optional[int] = ..., lines: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RevocationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Revocation(_message.Message):
    __slots__ = ("kind", "value", "tenant", "issued_before", "expires_at")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ISSUED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    value: str
    tenant: str
    issued_before: int
    expires_at: int
    def __init__(self, kind: _Optional[str] = ..., value: _Optional[str] = ..., tenant: _Optional[str] = ..., issued_before: _Optional[int] = ..., expires_at: _Optional[int] = ...) -> None: ...

class RevocationBatch(_message.Message):
    __slots__ = ("epoch", "journal_seq", "revocations")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_SEQ_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    journal_seq: int
    revocations: _containers.RepeatedCompositeFieldContainer[Revocation]
    def __init__(self, epoch: _Optional[str] = ..., journal_seq: _Optional[int] = ..., revocations: _Optional[_Iterable[_Union[Revocation, _Mapping]]] = ...) -> None: ...
