"""The last sequence number of each topic, which an event names as the one before it.

Rules:
- What a group has of them holds only once it is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import bindparam, select

from flx_api.daemon.journal.rows import say
from flx_api.daemon.journal.tables import topic_heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from flx_api.daemon.journal.database import Database
    from flx_api.daemon.journal.writer import Tx

_HEADS_MAX: Final = 16_384

_head_of = select(topic_heads.c.seq).where(
    topic_heads.c.tenant == bindparam("tenant"),
    topic_heads.c.project_id == bindparam("project_id"),
    topic_heads.c.topic == bindparam("topic"),
)


class Topic(NamedTuple):
    """A topic as its readers see it: each tenant has its own."""

    tenant: str
    name: str


class Heads:
    """The last sequence number of each topic: as committed, and as the present group has it so far."""

    def __init__(self) -> None:
        self._committed: dict[Topic, int] = {}
        self.open: dict[Topic, int] = {}

    def of(self, topic: Topic, tx: Tx) -> int:
        """The topic's last sequence number, 0 when it has none."""
        found = self.open.get(topic)
        if found is None:
            found = self._committed.get(topic)
        if found is None:
            mine = {"tenant": topic.tenant, "project_id": tx.project_id, "topic": topic.name}
            found = self._committed[topic] = tx.connection.execute(_head_of, mine).scalar() or 0
        return found

    def committed(self) -> None:
        """The group is in the database."""
        for topic, seq in self.open.items():
            # Taken out and put in again: a dict keeps the order of insertion, so the first are the longest unused.
            self._committed.pop(topic, None)
            self._committed[topic] = seq
        while len(self._committed) > _HEADS_MAX:
            del self._committed[next(iter(self._committed))]
        self.open.clear()


def upsert_of(database: Database) -> Callable[[Connection, tuple[Any, ...]], None]:
    """Keeps a topic's last sequence number: tenant, project, topic and that."""
    statement = database.insert(topic_heads)
    statement = statement.on_conflict_do_update(
        index_elements=[topic_heads.c.tenant, topic_heads.c.project_id, topic_heads.c.topic],
        set_={"seq": statement.excluded.seq},
    )
    names = [column.name for column in topic_heads.columns]
    texts: list[str] = []

    def upsert(connection: Connection, values: tuple[Any, ...]) -> None:
        if not database.is_near:
            connection.execute(statement, dict(zip(names, values, strict=True)))
            return
        if not texts:
            texts.append(str(statement.compile(dialect=connection.dialect)))
        say(connection, texts[0], values)

    return upsert
