"""The manager over a real hub: who hears what, and how one that comes back catches up."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.positions import encode

from flx_api import _core
from flx_api._core import Principal
from flx_api.errors import Conflict, FlxError, RateLimited, Unavailable
from flx_api.events.follower import Past, past, told
from flx_api.events.position import Position
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import Event, EventBatch
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.connection import BACKLOG_BYTES, Connection
from flx_api.websocket.connection_manager import STUCK_S, ConnectionManager
from flx_api.websocket.protocol import MAX_SUBSCRIPTIONS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from flx_api.websocket.protocol import Dialect


async def nowhere(_message: Any) -> None:
    """A peer that takes everything."""


class Hub:
    """A manager with its hub, and a daemon's history in a list."""

    def __init__(self, topic_bytes: int = 1 << 20, max_connections: int = 100) -> None:
        self.native = _core.Hub("here", topic_bytes=topic_bytes, max_connections=max_connections)
        self.native.restart("e", 0, "start", 0)
        self.metrics = Metrics()
        self.now_s, self.wall_s = 1.0, 0.0
        self.roster = _core.Roster()
        self.manager = ConnectionManager(
            self.native, self.roster, self.metrics, lambda: self.now_s, lambda: self.wall_s
        )
        self.all: list[Event] = []
        self.last: dict[tuple[str, str], int] = {}
        self.manager.history = self.history

    def connect(
        self, client_id: str = "c", subject: str = "anna", *, dialect: Dialect = "plain", **claims: Any
    ) -> Connection:
        claims = {"tenant": None, "roles": ("viewer",), "expires_at": 100, **claims}
        connection = Connection(client_id, Principal(subject=subject, **claims), nowhere, 0.0, dialect=dialect)
        self.manager.connect(connection)
        return connection

    def publish(self, topic: str = "pipeline_events", tenant: str = "default", size: int = 1) -> None:
        self.journal(topic, tenant, size)
        self.follow()

    def journal(self, topic: str = "pipeline_events", tenant: str = "default", size: int = 1) -> None:
        """What the daemon has and this gateway has not heard yet."""
        seq, prev = len(self.all) + 1, self.last.get((tenant, topic), 0)
        self.last[tenant, topic] = seq
        self.all.append(Event(seq=seq, prev=prev, topic=topic, tenant=tenant, data=b'"' + b"x" * size + b'"'))

    def follow(self) -> None:
        self.native.append(told(self.all[self.native.seq :]), 1000)
        self.serve()

    def serve(self) -> None:
        """Until nobody is due, if everybody takes what is given at once."""
        while self.manager.serve():
            for connection in self.manager._connections:
                assert connection.written is not None
                connection.written(connection)

    async def subscribe(self, connection: Connection, pattern: str, from_: str | None = None) -> None:
        await self.manager.subscribe(connection, pattern, from_)
        self.serve()

    async def history(self, topics: list[str], position: Position) -> AsyncGenerator[Past, None]:
        """As the daemon's Watch: the first batch at once, even empty."""
        assert topics
        if position.seq > len(self.all):
            yield past(EventBatch(epoch="e", journal_seq=len(self.all), gap_reason="epoch"))
        elif position.seq == len(self.all):
            yield past(EventBatch(epoch="e", journal_seq=position.seq))
        for event in self.all[position.seq :]:
            yield past(EventBatch(epoch="e", events=[event], journal_seq=event.seq))


def frames(connection: Connection) -> list[dict[str, Any]]:
    """What is queued for a connection."""
    texts = [text for item in connection._backlog for text in (item if isinstance(item, tuple) else (item,))]
    return [msgspec.json.decode(text) for text in texts]


def seqs(connection: Connection) -> list[int]:
    return [frame["seq"] for frame in frames(connection) if frame["type"] == "event"]


def run(story: Any) -> None:
    asyncio.run(story())


def test_an_event_comes_once_to_everyone_who_may_hear_it() -> None:
    async def story() -> None:
        hub = Hub()
        both, other, deaf, star = hub.connect("1"), hub.connect("2", tenant="t2"), hub.connect("3"), hub.connect("4")
        for connection in (both, other):
            await hub.subscribe(connection, "pipeline_events")
            await hub.subscribe(connection, "*")
        await hub.subscribe(star, "execution.*")
        hub.publish()
        hub.publish(tenant="t2")
        hub.publish("execution.x.status")
        hub.publish("user.bert")
        assert (seqs(both), seqs(other), seqs(deaf), seqs(star)) == ([1, 3], [2], [], [3])
        hub.manager.unsubscribe(both, "*")
        hub.publish("execution.x.status")
        assert seqs(both) == [1, 3]
        assert hub.native.stats()["subscriptions"] == 4
        for connection in (both, other, deaf, star):
            hub.manager.disconnect(connection, CloseCode.GONE)
        assert (hub.native.stats()["subscriptions"], hub.native.stats()["connections"]) == (0, 0)

    run(story)


def test_a_client_id_belongs_to_its_subject_while_connected() -> None:
    async def story() -> None:
        hub = Hub()
        first, second = hub.connect("c", "anna"), hub.connect("c", "anna")
        with pytest.raises(Conflict):
            hub.connect("c", "bert")
        for connection in (first, second, second):
            hub.manager.disconnect(connection, CloseCode.GONE)
        hub.connect("c", "bert")
        hub.manager.send_personal_message("c", '{"type":"x"}')
        hub.manager.broadcast('{"type":"y"}')

    run(story)


def test_subjects_of_two_tenants_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.websocket.connection_manager.MAX_PER_SUBJECT", 1)

    async def story() -> None:
        hub = Hub()
        ours = hub.connect("c", "anna")
        with pytest.raises(Conflict):
            hub.connect("c", "anna", tenant="t2")
        with pytest.raises(RateLimited):
            hub.connect("d", "anna", tenant="default")
        theirs = hub.connect("d", "anna", tenant="t2")
        for connection in (ours, theirs):
            hub.manager.disconnect(connection, CloseCode.GONE)
        hub.connect("c", "anna", tenant="t2")

    run(story)


def test_a_resume_is_served_from_memory() -> None:
    async def story() -> None:
        hub = Hub()
        for _ in range(5):
            hub.publish()
        connection = hub.connect()
        await hub.subscribe(connection, "pipeline_events", encode(Position("e", 2, {})))
        hub.publish()
        assert seqs(connection) == [3, 4, 5, 6]

    run(story)


def test_a_resume_is_served_by_the_daemon_where_memory_ends_and_live_events_wait() -> None:
    async def story() -> None:
        hub = Hub(topic_bytes=3_000)
        for _ in range(60):
            hub.publish(size=50)
        connection = hub.connect()
        await hub.subscribe(connection, "execution_events")
        plain = hub.history

        async def meanwhile(topics: list[str], position: Position) -> AsyncGenerator[Past, None]:
            async for batch in plain(topics, position):
                if batch.journal_seq == 10:
                    hub.publish("execution_events")
                    hub.publish()
                yield batch

        hub.manager.history = meanwhile
        await hub.subscribe(connection, "pipeline_events", encode(Position("e", 5, {})))
        hub.publish("execution_events")
        assert sorted(seqs(connection)) == list(range(6, 64))
        topics = [(frame["event"], frame["seq"]) for frame in frames(connection) if frame["type"] == "event"]
        assert topics[-3:] == [("execution_events", 61), ("pipeline_events", 62), ("execution_events", 63)]
        assert hub.native.gaps() == {}

    run(story)


def test_what_cannot_be_told_is_a_gap() -> None:
    async def story() -> None:
        hub = Hub(topic_bytes=3_000)
        for _ in range(60):
            hub.publish(size=50)

        async def evicted(_topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
            yield past(EventBatch(epoch="e", journal_seq=60, gap_reason="evicted"))

        async def away(_topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
            nothing: tuple[Past, ...] = ()
            for batch in nothing:
                yield batch
            raise Unavailable

        for history, epoch, reason in (
            (evicted, "e", "evicted"),
            (away, "e", "upstream_unavailable"),
            (None, "old", "epoch"),
        ):
            hub.manager.history = history
            connection = hub.connect(reason)
            await hub.subscribe(connection, "*", encode(Position(epoch, 1, {})))
            gap = frames(connection)[-1]
            assert (gap["type"], gap["code"], gap["reason"]) == ("error", "gap", reason)
            hub.publish()
            assert seqs(connection) == [len(hub.all)]
        hub.native.restart("f", 0, "epoch", 1000)
        hub.serve()
        assert frames(connection)[-1]["epoch"] == "f"
        assert hub.native.gaps() == {"evicted": 1, "upstream_unavailable": 1, "epoch": 4}

    run(story)


def test_a_client_from_a_gateway_that_was_ahead_hears_nothing_twice() -> None:
    async def story() -> None:
        hub = Hub()
        hub.journal()
        hub.journal()
        connection = hub.connect()
        await hub.subscribe(connection, "*", encode(Position("e", 2, {})))
        hub.publish()
        assert seqs(connection) == [3]
        assert hub.native.gaps() == {}

    run(story)


@pytest.mark.parametrize("logs", [{}, {"x": 7}])
def test_a_position_that_the_daemon_never_reached_is_of_another_history(logs: dict[str, int]) -> None:
    """As after a database was restored: the client hears of it, and then all that is new."""

    async def story() -> None:
        hub = Hub()
        for _ in range(3):
            hub.publish()
        connection = hub.connect()
        await hub.subscribe(connection, "*", encode(Position("e", 50, logs)))
        gap = frames(connection)[-1]
        assert (gap["code"], gap["reason"], gap["pos"]) == ("gap", "epoch", encode(Position("e", 3)))
        hub.publish()
        assert seqs(connection) == [4]
        hub.native.append(told([Event(seq=1, topic="execution.x.log", data=b'"line"')]), 1000)
        hub.serve()
        assert frames(connection)[-1]["event"] == "execution.x.log"

    run(story)


def test_subscriptions_are_bounded_and_checked() -> None:
    async def story() -> None:
        hub = Hub()
        connection = hub.connect()
        for number in range(MAX_SUBSCRIPTIONS):
            await hub.subscribe(connection, f"app.{number}")
        for pattern, from_ in (("app.more", None), ("nothing", None), ("app.1", "?")):
            with pytest.raises(FlxError):
                await hub.subscribe(connection, pattern, from_)
        await hub.subscribe(connection, "app.1")
        assert hub.native.stats()["subscriptions"] == MAX_SUBSCRIPTIONS

    run(story)


def test_the_expired_the_stuck_and_the_silent_are_looked_after() -> None:
    async def story() -> None:
        hub = Hub()
        expired, stuck, silent = (hub.connect(str(end), expires_at=end) for end in (50, 200, 201))
        stuck.sending_since_s = 0.0
        hub.manager.look_after(25.0 + STUCK_S, 50.0)
        assert expired.closing.result() is CloseCode.TOKEN_ENDED
        assert stuck.closing.result() is CloseCode.TOO_SLOW
        assert frames(silent) == [{"type": "heartbeat", "ts": 50_000_000}]

    run(story)


def test_a_drain_sends_everyone_away_in_turn() -> None:
    async def story() -> None:
        hub = Hub()
        connections = [hub.connect(str(number)) for number in range(4)]
        order: list[Connection] = []
        for connection in connections:
            connection.closing.add_done_callback(partial(lambda it, _: order.append(it), connection))
        drain = asyncio.create_task(hub.manager.drain(0.2))
        assert {await connection.closing for connection in connections} == {CloseCode.RESTARTING}
        await asyncio.sleep(0)
        told = [frames(connection)[-1] for connection in order]
        assert [{"type": "reconnect", "in_ms": in_ms} for in_ms in (50, 100, 150, 200)] == told
        with pytest.raises(Unavailable):
            hub.connect("late")
        for connection in connections:
            hub.manager.disconnect(connection, CloseCode.RESTARTING)
        await drain

    run(story)


def test_a_client_is_told_that_its_token_ends_once_for_each_token() -> None:
    async def story() -> None:
        hub = Hub()
        connection = hub.connect(expires_at=400)
        for wall_s, times in ((339.0, 0), (340.0, 1), (399.0, 1)):
            hub.manager.look_after(0.0, wall_s)
            expiring = [frame for frame in frames(connection) if frame["type"] == "expiring"]
            assert times == len(expiring), wall_s
        assert [{"type": "expiring", "in_s": 60}] == expiring
        hub.wall_s = 399.0
        hub.manager.renew(connection, Principal(subject="anna", roles=("viewer",), expires_at=419))
        hub.manager.look_after(0.0, 408.0)
        hub.manager.look_after(0.0, 409.0)
        assert {"type": "expiring", "in_s": 10} == frames(connection)[-1]
        hub.manager.look_after(0.0, 419.0)
        assert connection.closing.result() is CloseCode.TOKEN_ENDED

    run(story)


def test_a_drain_tells_everyone_and_lets_nobody_in() -> None:
    async def story() -> None:
        hub = Hub()
        hub.manager.startup()
        connection = hub.connect()
        drain = asyncio.create_task(hub.manager.shutdown())
        assert await connection.closing is CloseCode.RESTARTING
        with pytest.raises(Unavailable):
            hub.connect("late")
        hub.manager.disconnect(connection, CloseCode.RESTARTING)
        await drain

    run(story)


def test_a_history_never_queues_more_than_a_reader_can_take() -> None:
    async def story() -> None:
        hub = Hub(topic_bytes=100_000)
        hub.native.restart("e", 60, "start", 0)
        for _ in range(60):
            hub.journal(size=100_000)
        connection = hub.connect()
        most = 0

        async def send(_message: Any) -> None:
            nonlocal most
            most = max(most, connection._backlog_bytes)

        connection._send = send
        writer = asyncio.create_task(connection.write(lambda: 0.0))
        await hub.manager.subscribe(connection, "pipeline_events", encode(Position("e", 0)))
        while connection._backlog:  # noqa: ASYNC110 - a queue is no event
            await asyncio.sleep(0)
        assert not connection.closing.done()
        assert 0 < most <= BACKLOG_BYTES
        assert hub.native.stats()["delivered"] == 60
        writer.cancel()

    run(story)


def test_a_history_that_ends_while_it_is_told_is_a_gap() -> None:
    async def story() -> None:
        hub = Hub()
        hub.native.restart("e", 3, "start", 0)

        async def history(_topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
            hub.native.restart("f", 0, "epoch", 1000)
            yield past(EventBatch(epoch="e", journal_seq=3))

        hub.manager.history = history
        connection = hub.connect()
        await hub.subscribe(connection, "pipeline_events", encode(Position("e", 1)))
        assert [frame.get("code") for frame in frames(connection)] == [None, "gap"]
        assert frames(connection)[-1]["epoch"] == "f"

    run(story)


def test_what_is_between_daemon_and_gateways_reaches_no_client_whatever_it_asks_for() -> None:
    async def story() -> None:
        hub = Hub()
        eve = hub.connect(roles=("admin",))
        with pytest.raises(FlxError):
            await hub.subscribe(eve, "revocation_events")
        with pytest.raises(FlxError):
            await hub.subscribe(eve, "revocation_events.*")
        await hub.subscribe(eve, "*")
        # Even if one came this far: live, from the memory, and from the daemon's history.
        hub.publish("revocation_events")
        hub.publish()
        assert seqs(eve) == [2]
        late = hub.connect("d", roles=("admin",))
        await hub.subscribe(late, "*", encode(Position("e", 0, {})))
        assert seqs(late) == [2]
        hub.native.restart("e", 2, "evicted", 1000)
        later = hub.connect("f", roles=("admin",))
        await hub.subscribe(later, "*", encode(Position("e", 0, {})))
        assert seqs(later) == [2]

    run(story)


def test_what_this_process_alone_tells_has_a_chain_and_an_epoch_of_its_own() -> None:
    async def story() -> None:
        hub = Hub()
        one, other, resumed = hub.connect("1"), hub.connect("2", tenant="t2"), hub.connect("3")
        for connection in (one, other):
            await hub.subscribe(connection, "bench.*")
        hub.publish()
        await hub.subscribe(resumed, "bench.a", encode(Position("e", 0)))
        for topic in ("bench.a", "bench.b", "bench.a"):
            hub.manager.publish("default", topic, 5, b'{"at":5}')
        hub.serve()
        events = [frame for frame in frames(one) if frame["type"] == "event"]
        chain = [(frame["event"], frame["prev"], frame["seq"]) for frame in events]
        assert chain == [("bench.a", 0, 1), ("bench.b", 0, 1), ("bench.a", 1, 2)]
        assert {frame["epoch"] for frame in events} == {"here"}
        assert events[0]["data"] == {"at": 5}
        assert seqs(other) == []
        assert seqs(resumed) == [1, 2]

    run(story)


def test_who_is_catching_up_gets_what_this_process_alone_tells_afterwards() -> None:
    async def story() -> None:
        hub = Hub()
        late = hub.connect("1")
        await hub.subscribe(late, "bench.a")
        hub.native.restart("e", 3, "start", 0)
        hub.serve()

        async def history(_topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
            hub.manager.publish("default", "bench.a", 5, b"1")
            hub.serve()
            assert seqs(late) == []
            yield past(EventBatch(epoch="e", journal_seq=3))

        hub.manager.history = history
        await hub.subscribe(late, "pipeline_events", encode(Position("e", 0)))
        assert seqs(late) == [1]

    run(story)


def test_who_selected_batches_gets_batches_and_gaps_of_their_own_kind() -> None:
    async def story() -> None:
        hub = Hub()
        connection = hub.connect(dialect="batched")
        await hub.subscribe(connection, "pipeline_events")
        for _ in range(3):
            hub.journal()
        hub.follow()
        batch = frames(connection)[-1]
        assert (batch["t"], batch["s"], batch["prev"], batch["d"]) == ("pipeline_events", [1, 3], 0, ["x"] * 3)
        await hub.subscribe(connection, "app.x", encode(Position("old", 1)))
        assert [(frame.get("type"), frame.get("reason")) for frame in frames(connection)[-2:]] == [
            ("subscribed", None),
            ("gap", "epoch"),
        ]

    run(story)


def test_one_that_does_not_write_holds_one_turn_and_the_others_go_on() -> None:
    async def story() -> None:
        hub = Hub(topic_bytes=3_000)
        slow, swift = hub.connect("1"), hub.connect("2")
        for connection in (slow, swift):
            await hub.subscribe(connection, "pipeline_events")
        for count in range(1, 101):
            hub.journal(size=50)
            hub.native.append(told(hub.all[-1:]), 1000)
            while hub.manager.serve():
                assert swift.written is not None
                swift.written(swift)
            assert len(seqs(swift)) == count
        assert seqs(slow) == [1]
        assert slow.written is not None
        slow.written(slow)
        hub.serve()
        last = frames(slow)
        assert last[2]["code"] == "gap"
        assert seqs(slow)[1:] == list(range(last[2]["before"], 101))
        assert hub.native.gaps() == {"evicted": 1}

    run(story)


def test_what_was_asked_for_is_level_before_it_is_said_so() -> None:
    async def story() -> None:
        hub = Hub()
        connection = hub.connect()
        hub.manager.startup()
        await hub.manager.subscribe(connection, "pipeline_events")
        hub.journal()
        hub.native.append(told(hub.all), 1000)
        await hub.manager.level(connection)
        assert seqs(connection) == [1]
        hub.manager.disconnect(connection, CloseCode.GONE)
        await hub.manager.level(connection)
        await hub.manager.shutdown()

    run(story)


def test_nobody_is_busy_while_one_that_does_not_write_waits_to_be_level() -> None:
    async def story() -> None:
        hub, turns = Hub(), 0
        connection, serve = hub.connect(), hub.manager.serve

        def counted() -> int:
            nonlocal turns
            turns += 1
            return serve()

        hub.manager.serve = counted  # type: ignore[method-assign]
        hub.manager.startup()
        await hub.manager.subscribe(connection, "pipeline_events")
        for _ in range(2):
            hub.journal()
            hub.native.append(told(hub.all[-1:]), 1000)
            await hub.manager.level(connection) if len(hub.all) == 1 else None
        waits, before = asyncio.create_task(hub.manager.level(connection)), turns
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waits.done()
        assert turns - before < 5
        assert connection.written is not None
        connection.written(connection)
        await waits
        assert seqs(connection) == [1, 2]
        await hub.manager.shutdown()

    run(story)


def test_a_position_of_many_logs_is_caught_up_with_in_pieces_that_a_connection_takes() -> None:
    async def story() -> None:
        hub = Hub()
        hub.native.restart("e", 250, "start", 0)
        connection = hub.connect()
        writer = asyncio.create_task(connection.write(lambda: 1.0))
        events = [Event(seq=seq, prev=seq - 1, topic="pipeline_events", data=b"1") for seq in range(1, 251)]

        async def history(_topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
            yield past(EventBatch(epoch="e", events=events, journal_seq=250))

        hub.manager.history = history
        logs = {f"{number:036}": 7 for number in range(150)}
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(msgspec.json.decode(message["text"]))

        connection._send = send
        await hub.subscribe(connection, "pipeline_events", encode(Position("e", 0, logs)))
        while len(sent) < 251 and not connection.closing.done():  # noqa: ASYNC110 - a list is no event
            await asyncio.sleep(0)
        assert [message["seq"] for message in sent[1:]] == list(range(1, 251))
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    run(story)


def test_a_full_hub_lets_nobody_in() -> None:
    async def story() -> None:
        hub = Hub(max_connections=1)
        hub.connect("1")
        with pytest.raises(RateLimited):
            hub.connect("2")
        assert hub.native.stats()["connections"] == 1

    run(story)
