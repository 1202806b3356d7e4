"""What events carry as `data`, by topic. One struct a topic; the AsyncAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from flx_api.models.auth import RevocationKind
from flx_api.models.execution import Status

REVOCATION_EVENTS: Final = "revocation_events"
SUBJECT_PREFIX: Final = "user."
"""What is told to one subject alone, whose name follows."""
PUBLISHED_PREFIXES: Final = ("app.", SUBJECT_PREFIX)
"""Topics that clients publish to, by `event.publish`."""
PRESENCE_EVENTS: Final = "presence_events"
CONNECTION_EVENTS: Final = "connection_events"
SURVEY_EVENTS: Final = "survey_events"
PRIVATE_TOPICS: Final = frozenset({REVOCATION_EVENTS, PRESENCE_EVENTS, CONNECTION_EVENTS, SURVEY_EVENTS})
"""Topics between daemon and gateways: never delivered to a client, whatever it subscribed to."""


class PublishArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event of an application, to `app.*` or to one subject's own topic `user.{sub}`, of at most 64 KiB.

    It goes into the journal, unless it is `ephemeral`: then whoever hears the topic at that moment gets it, on all
    gateways, and nobody later.

    Topics `bench.*` live in the gateway that is asked, in development only. There, with `count`, so many events follow
    one another, `per_s` a second (as fast as it goes without), and the answer comes after the last. The data of each is
    `{"at","n","data"}`: when it was due in microseconds since 1970, its number within its topic from 0, and what was
    given. With `topics` they go to `topic.0`, `topic.1`, ... in turn. With `native` the events are made without Python,
    and published as all others.
    """

    topic: Annotated[
        str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_@+:-]+(\.[A-Za-z0-9_@+:-]+)+$(?!\n)")
    ]
    data: Any = None
    ephemeral: bool = False
    count: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    per_s: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    topics: Annotated[int, Meta(ge=1, le=20_000)] | None = None
    native: bool = False


class Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was published: how many events, microseconds from the first to the last, and the journal's number of it.

    Ephemeral events, and those of one gateway alone, are in no journal and have no number there.
    """

    count: int
    took_us: int
    seq: int | None = None


class PipelineEvent(msgspec.Struct, frozen=True):
    """Topic `pipeline_events`: a pipeline was created, updated or deleted."""

    type: Literal["created", "updated", "deleted"]
    pipeline: str
    by: str


class ExecutionEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Topics `execution_events` and `execution.{id}.status`: an execution has a new status.

    `attempt` is the number of the attempt that it is about, `retry_at_us` when the next one begins by itself.
    """

    execution: str
    pipeline: str
    status: Status
    previous: Status | None = None
    exit_code: int | None = None
    error: str | None = None
    verdict: str | None = None
    warnings: tuple[str, ...] = ()
    attempt: int = 1
    retry_at_us: int | None = None


class StreamCount(msgspec.Struct, frozen=True):
    """Records and bytes of one stream so far, counted in the pipe behind the plugin."""

    records: int
    bytes: int


class MetricEvent(msgspec.Struct, frozen=True):
    """Topic `execution.{id}.metric`: counts so far, by plugin and stream."""

    execution: str
    plugin: str
    role: str
    streams: dict[str, StreamCount]


class ScheduleEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Topic `schedule_events`: a schedule fired, was skipped or missed, enabled or disabled.

    `fire_us` is the time it was to fire (of missed firings the newest). Skipped: it was time, but there could be no
    run; `reason` is an error code, `detail` a sentence. Missed: nobody was there to fire it; `first_us` is the oldest
    of `firings`, of which there were even more with `more`.
    """

    type: Literal["fired", "skipped", "missed", "enabled", "disabled"]
    schedule: str
    fire_us: int | None = None
    execution: str | None = None
    reason: str | None = None
    detail: str | None = None
    firings: int | None = None
    first_us: int | None = None
    more: bool = False
    by: str | None = None


class SystemEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Topic `system_events`: the daemon started, is stopping, adopted or settled runs, removed old data."""

    type: Literal["started", "stopping", "adopted", "settled", "retention", "project_changed"]
    message: str
    execution: str | None = None


class RevocationEvent(msgspec.Struct, frozen=True):
    """Topic `revocation_events`: a revocation came into force or was taken back. The event's tenant is its tenant."""

    type: Literal["revoked", "restored"]
    kind: RevocationKind
    value: str
    issued_before: int | None = None
    expires_at: int | None = None


class ConnectionEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Topic `connection_events`: connections of the event's tenant that were there before it are to end."""

    type: Literal["disconnect"]
    id: str | None = None
    subject: str | None = None
    client_id: str | None = None


LogLine = dict[str, Any] | str
"""Topic `execution.{id}.log`: a line that is a JSON object as that object, any other as a string."""


class Topic(NamedTuple):
    """Topics that clients may hear: `{}` in the template stands for what `segment` matches, `data` is in each event."""

    name: str
    template: str
    data: Any
    sentence: str
    segment: str = "[^.]+"


TOPICS: Final[tuple[Topic, ...]] = (
    Topic("pipelineEvents", "pipeline_events", PipelineEvent, "A pipeline was created, updated or deleted."),
    Topic("executionEvents", "execution_events", ExecutionEvent, "An execution has a new status."),
    Topic("executionStatus", "execution.{}.status", ExecutionEvent, "This execution has a new status."),
    Topic("executionMetric", "execution.{}.metric", MetricEvent, "Counts of this execution so far."),
    Topic(
        "executionLog", "execution.{}.log", LogLine, "One line of this execution's log; `seq` is its number, from 1."
    ),
    Topic("scheduleEvents", "schedule_events", ScheduleEvent, "A schedule fired, was skipped or missed, or switched."),
    Topic("applicationEvents", "app.{}", Any, "An application published it, by `event.publish`.", ".+"),
    Topic("userEvents", "user.{}", Any, "Somebody published it to this subject alone, by `event.publish`.", ".+"),
    Topic("systemEvents", "system_events", SystemEvent, "The daemon started or stops, or did something by itself."),
)
