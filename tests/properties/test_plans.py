"""Plans against what then happens: arbitrary histories of all commands, each asked for as a dry run first.

Strategy: the judge is the database itself. Everything in it is written down before and after a dry run (nothing may
differ), and its rows before and after the command (what differs is what the plan must have said).
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import argon2
import msgspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.daemon.executions.fake_runs import Stage, until

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import permits
from flx_api.daemon.dispatch import Dispatcher
from flx_api.daemon.handlers import HANDLERS, Services
from flx_api.daemon.journal.tables import metadata
from flx_api.daemon.plans import BOOKKEEPING, VIEWS
from flx_api.daemon.revocations import Revocations
from flx_api.daemon.tokens import TokenIssuer
from flx_api.daemon.trust import Gateway
from flx_api.daemon.users import Users
from flx_api.events.ephemeral_log import EphemeralLog
from flx_api.models.plan import Change, Plan
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flx_api.daemon.executions import Executions

Rows = dict[str, dict[Any, dict[str, Any]]]

SCHEDULES = """schedules:
- {name: hourly, interval: '@hourly', job: a}
- {name: old, interval: '@daily', extractor: tap-b, loader: target-x, transform: skip, env: {A: b}}
- {name: broken, interval: never, job: nowhere}
"""

_HOUR_US = 3_600_000_000
_PIPELINES = st.sampled_from(["a", "a-again", "b", "a-and-b", "work", "broken", "own", "other", "missing"])
_SCHEDULES = st.sampled_from(["hourly", "old", "broken", "missing"])
_OWN = st.sampled_from(["own", "other", "a"])
_USERS = st.sampled_from(["ann", "bob"])
# One of those there are, by its place, or none.
_EXECUTIONS = st.integers(-1, 3).map(lambda place: {"execution": place})
_TASKS = st.sampled_from([[["tap-a", "target-x"]], [["tap-b", "target-x"]], [["nothing"]], [["tool:work"]]])
_PAGE = st.fixed_dictionaries({}, optional={"limit": st.sampled_from([1, 50, 0]), "cursor": st.just("%%%")})
_NOTHING: st.SearchStrategy[dict[str, Any]] = st.just({})
_ODD = st.sampled_from([{"unknown": 1}, {"id": 7}, {"name": None}])

ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "command.list": _NOTHING,
    "command.describe": st.sampled_from([{"name": "pipeline.run"}, {"name": "pipeline.rum"}]),
    "project.get": _NOTHING,
    "project.validate": _NOTHING,
    "plugin.list": st.sampled_from([{}, {"type": "loaders"}, {"type": "what"}]),
    "environment.list": _NOTHING,
    "pipeline.list": _PAGE,
    "pipeline.get": st.fixed_dictionaries({"id": _PIPELINES}),
    "pipeline.create": st.fixed_dictionaries(
        {"name": _OWN, "tasks": _TASKS},
        optional={
            "description": st.just("words"),
            "environment": st.sampled_from(["prod", "nowhere"]),
            "retries": st.sampled_from([0, 2, 11]),
            "retry_on": st.sampled_from([[], ["failed", "failed"], ["cancelled"]]),
        },
    ),
    "pipeline.update": st.fixed_dictionaries(
        {"id": _PIPELINES},
        optional={
            "description": st.sampled_from(["words", ""]),
            "tasks": _TASKS,
            "tags": st.sampled_from([[], ["x", "x"]]),
            "retry_backoff_s": st.sampled_from([0, 10]),
            "revision": st.integers(0, 3),
        },
    ),
    "pipeline.delete": st.fixed_dictionaries({"id": _PIPELINES}),
    "pipeline.run": st.fixed_dictionaries(
        {"id": _PIPELINES},
        optional={
            "refresh": st.sampled_from(["full", "some"]),
            "environment": st.sampled_from(["prod", "nowhere"]),
            "timeout_s": st.just(9),
        },
    ),
    "schedule.list": st.sampled_from([{}, {"coming": 1}, {"coming": -1}]),
    "schedule.get": st.fixed_dictionaries({"name": _SCHEDULES}),
    "schedule.enable": st.fixed_dictionaries({"name": _SCHEDULES}),
    "schedule.disable": st.fixed_dictionaries({"name": _SCHEDULES}),
    "schedule.run": st.fixed_dictionaries(
        {"name": _SCHEDULES}, optional={"environment": st.sampled_from(["prod", "nowhere"])}
    ),
    "execution.list": _PAGE,
    "execution.get": st.fixed_dictionaries({"id": _EXECUTIONS}),
    "execution.cancel": st.fixed_dictionaries({"id": _EXECUTIONS}, optional={"reason": st.just("enough")}),
    "execution.wait": st.fixed_dictionaries({"id": _EXECUTIONS, "timeout_ms": st.just(0)}),
    "execution.logs": st.fixed_dictionaries({"id": _EXECUTIONS}),
    "execution.attempts": st.fixed_dictionaries({"id": _EXECUTIONS}),
    "execution.retry": st.fixed_dictionaries({"id": _EXECUTIONS}),
    "execution.streams": st.fixed_dictionaries({"id": _EXECUTIONS}),
    "system.status": _NOTHING,
    "system.info": _NOTHING,
    "system.echo": st.just({"x": 1}),
    "event.publish": st.sampled_from(
        [{"topic": "app.a", "data": 1}, {"topic": "user.eve"}, {"topic": "system_events"}]
    ),
    "connection.list": _PAGE,
    "connection.slowest": _NOTHING,
    "connection.disconnect": st.sampled_from(
        [{"subject": "eve"}, {"client_id": "c"}, {"id": "0123abcd-1"}, {"id": "x"}]
    ),
    "presence.list": st.sampled_from(
        [{"topic": "app.x"}, {"topic": "app.x", "limit": 1}, {"topic": "execution_events"}]
    ),
    "auth.login": st.fixed_dictionaries({"username": _USERS, "password": st.sampled_from(["secret-1", "secret-2"])}),
    "auth.logout": st.sampled_from([{}, {"everywhere": True}]),
    "token.revoke": st.sampled_from(
        [
            {"subject": "eve"},
            {"subject": "eve", "issued_before": 5},
            {"jti": "t1", "reason": "lost"},
            {"key": "k1"},
            {"session": "s1", "expires_at": 1},
            {},
        ]
    ),
    "token.revocations": _PAGE,
    "token.restore": st.integers(-1, 2).map(lambda place: {"id": {"revocation": place}}),
    "user.add": st.fixed_dictionaries(
        {"username": _USERS, "password": st.just("secret-1"), "roles": st.sampled_from([["viewer"], ["king"]])}
    ),
    "user.update": st.fixed_dictionaries(
        {"username": _USERS},
        optional={
            "roles": st.sampled_from([["operator"], ["king"]]),
            "password": st.just("secret-2"),
            "disabled": st.booleans(),
        },
    ),
}
PRINCIPALS = (
    Principal(subject="ann", tenant="default", roles=["admin"], token_id="t0", expires_at=1_800_000_000),
    Principal(subject="ann", tenant="default", roles=["admin"]),
    Principal(subject="dev", tenant="default", roles=["none", "developer"]),
    Principal(subject="oscar", tenant="default", roles=["operator"]),
    Principal(subject="vic", tenant="default", roles=["viewer"]),
    Principal(subject="mallory", tenant="other", roles=["admin"]),
)
STEPS = st.one_of(
    *(
        st.tuples(
            st.just(command),
            st.one_of(args, args, args, _ODD),
            st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 5]),
            st.sampled_from([None, None, "k1", "k2"]),
            st.sampled_from([None, None, "prod", "nowhere"]),
        )
        for command, args in ARGUMENTS.items()
    ),
    st.just(("runs end", {}, 0, None, None)),
)
Step = tuple[str, dict[str, Any], int, str | None, str | None]


def test_every_command_and_every_table_is_thought_of() -> None:
    assert set(ARGUMENTS) == set(COMMANDS), "a new command needs arguments here"
    assert set(VIEWS) | BOOKKEEPING == set(metadata.tables), "a new table is shown in plans, or is bookkeeping"
    for name, view in VIEWS.items():
        assert {view.key, *view.columns} <= set(metadata.tables[name].columns.keys())
    shown = {column for view in VIEWS.values() for column in view.columns}
    assert not shown & {"password_hash", "idempotency_key", "ledger"}


class World:
    """A daemon without its server, and a view of its database that is not its own."""

    def __init__(self, stage: Stage, executions: Executions) -> None:
        self.stage = stage
        self.executions = executions
        # As small as argon2 allows: this is about everything around the hash.
        self.users = Users(stage.journal, stage.clock, argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        services = Services(
            journal=stage.journal,
            projects=stage.projects,
            executions=executions,
            settings=stage.settings,
            tokens=TokenIssuer(b"k" * 32, "flx", "flx-api", stage.clock),
            users=self.users,
            revocations=Revocations(stage.journal, stage.clock),
            ephemeral=EphemeralLog("ephemeral", stage.clock),
            clock=stage.clock,
            started_us=0,
        )
        self._dispatcher = Dispatcher(services, HANDLERS)

    def _connect(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self.stage.settings.database.removeprefix("sqlite:///")))

    def everything(self) -> list[str]:
        """All that is in the database, and all that is known outside it."""
        with self._connect() as connection:
            dump = list(connection.iterdump())
        journal, executor = self.stage.journal, self.stage.executor
        return [*dump, str(journal.seq), str(self.executions.counts()), str(sorted(executor.runs))]

    def rows(self) -> Rows:
        """The rows that plans show, by table and key."""
        found: Rows = {}
        with self._connect() as connection:
            connection.row_factory = sqlite3.Row
            for table, view in VIEWS.items():
                lines = [dict(line) for line in connection.execute(f"SELECT * FROM {table}")]
                # A pipeline's name is taken in each tenant by itself.
                found[table] = {(line["tenant"], line[view.key]): line for line in lines}
        return found

    def resolved(self, value: Any) -> Any:
        """The arguments with places in the place of ids replaced."""
        if not isinstance(value, dict):
            return value
        for table in ("execution", "revocation"):
            if table in value:
                ids = [key for _, key in self.rows()[f"{table}s"]]
                return ids[value[table]] if 0 <= value[table] < len(ids) else "none"
        return {name: self.resolved(inner) for name, inner in value.items()}

    async def ask(self, step: Step, args: Any, *, dry_run: bool) -> ReplyFrame:
        command, _, principal, key, environment = step
        frame = CommandFrame(
            command=command,
            args=msgspec.json.encode(args),
            principal=PRINCIPALS[principal],
            idempotency_key=key or "",
            environment=environment or "",
            dry_run=dry_run,
        )
        return await self._dispatcher.carry_out(frame, Gateway())

    async def settle(self) -> None:
        """Let what goes on come to where only a test moves it."""

        def is_settled() -> bool:
            rows = self.rows()["executions"]
            states = {key: row["status"] for (_, key), row in rows.items()}
            with self._connect() as connection:
                (committed,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            # What is in the database may be on its way to the loop.
            return committed == self.stage.journal.seq and all(
                states[key] == "running" for key in self.executions.active_logs()
            )

        await until(is_settled, "runs to run")

    async def end_runs(self) -> None:
        def ended() -> bool:
            for run in self.stage.executor.runs.values():
                if run.released and run.is_alive:
                    run.end(0)
            return self.executions.counts() == (0, 0)

        await until(ended, "runs to end")


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        stage = Stage(Path(folder))
        with (stage.settings.project_dir / "meltano.yml").open("a", encoding="utf-8") as file:
            file.write(SCHEDULES)
        async with stage.daemon() as executions:
            made = World(stage, executions)
            try:
                yield made
            finally:
                made.users.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=1, max_size=12))
@example(
    [
        ("pipeline.create", {"name": "own", "tasks": [["tap-a", "target-x"]]}, 0, "k1", None),
        ("pipeline.create", {"name": "own", "tasks": [["tap-a", "target-x"]]}, 0, "k1", None),
        ("pipeline.create", {"name": "own", "tasks": [["tap-b", "target-x"]]}, 0, "k1", None),
        ("pipeline.update", {"id": "own", "tags": ["x"], "revision": 1}, 2, None, None),
        ("pipeline.run", {"id": "own"}, 3, "k2", "prod"),
        ("pipeline.run", {"id": "own"}, 3, "k2", "prod"),
        ("pipeline.run", {"id": "a"}, 3, None, "prod"),
        ("pipeline.run", {"id": "b"}, 5, None, None),
        ("pipeline.run", {"id": "work"}, 5, None, None),
        ("pipeline.delete", {"id": "own"}, 0, None, None),
        ("execution.cancel", {"id": {"execution": 0}}, 0, None, None),
        ("execution.cancel", {"id": {"execution": 1}}, 0, None, None),
        ("pipeline.delete", {"id": "own"}, 0, None, None),
        ("runs end", {}, 0, None, None),
        ("execution.cancel", {"id": {"execution": 2}}, 5, None, None),
        ("execution.retry", {"id": {"execution": 0}}, 0, "k3", None),
        ("execution.retry", {"id": {"execution": 0}}, 0, "k3", None),
        ("execution.retry", {"id": {"execution": 0}}, 0, None, None),
    ]
)
@example(
    [
        ("user.add", {"username": "bob", "password": "secret-1", "roles": ["viewer"]}, 0, None, None),
        ("user.add", {"username": "bob", "password": "secret-1", "roles": ["viewer"]}, 5, None, None),
        ("auth.login", {"username": "bob", "password": "secret-1"}, 0, None, None),
        ("auth.login", {"username": "bob", "password": "secret-2"}, 0, None, None),
        ("token.revoke", {"subject": "eve"}, 0, None, None),
        ("token.revoke", {"subject": "eve", "issued_before": 5}, 0, None, None),
        ("auth.logout", {}, 0, None, None),
        ("auth.logout", {}, 1, None, None),
        ("token.revoke", {"key": "k1"}, 5, None, None),
        ("token.restore", {"id": {"revocation": 0}}, 5, None, None),
        ("token.restore", {"id": {"revocation": 0}}, 0, None, None),
    ]
)
def test_a_dry_run_changes_nothing_and_tells_what_the_command_then_does(steps: list[Step]) -> None:
    async def story() -> None:
        async with world() as daemon:
            for step in steps:
                if step[0] == "runs end":
                    await daemon.end_runs()
                    continue
                await daemon.settle()
                await rehearse_and_do(daemon, step)

    asyncio.run(story())


async def rehearse_and_do(daemon: World, step: Step) -> None:
    args = daemon.resolved(step[1])
    before, rows = daemon.everything(), daemon.rows()
    dry = await daemon.ask(step, args, dry_run=True)
    assert before == daemon.everything()
    assert not dry.accepted_id

    seq, slots = daemon.stage.journal.seq, daemon.executions.counts()
    real = await daemon.ask(step, args, dry_run=False)
    if step[0] == "auth.login":
        # Both were tries; too many of them are another story.
        daemon.stage.clock.now_us += _HOUR_US
    if dry.code:
        assert dry.code == real.code
        return
    plan = msgspec.json.decode(dry.result, type=Plan)
    outcome = "refused" if real.code else "accepted" if real.accepted_id else "ok"
    assert (outcome, real.code) == (plan.outcome, plan.errors[0].code if plan.errors else "")
    command = COMMANDS[step[0]]
    is_granted = command.public or command.everyone or permits(PRINCIPALS[step[2]].roles, command.name)
    assert plan.permission.allowed == is_granted
    assert real.replayed == (plan.key == "replayed")
    if plan.replays is not None:
        assert plan.replays == real.accepted_id
    if plan.run is not None:
        assert daemon.executions.counts()[plan.run.starts == "queued"] == slots[plan.run.starts == "queued"] + 1
    assert sorted(map(repr, plan.changes)) == sorted(map(repr, differences(rows, daemon.rows(), plan)))
    told = daemon.stage.journal.events_after(seq, 1000)
    for change in plan.changes:
        if change.entity == "execution" and change.action == "update" and change.after is not None:
            event = next(row for row in told if row.topic == f"execution.{change.id}.status")
            assert msgspec.json.decode(event.data)["status"] == change.after["status"]


def differences(before: Rows, after: Rows, plan: Plan) -> list[Change]:
    """What differs, as a plan shows it: every row of every table looked at."""
    found = []
    for table, view in VIEWS.items():
        for key in {**before[table], **after[table]}:
            old, new = (_plain(rows[table].get(key), view.columns) for rows in (before, after))
            if old == new:
                continue
            if old is None:
                named = None if view.makes_id else key[1]
                found.append(Change(entity=view.entity, id=named, action="create", before=None, after=new))
            elif new is None:
                found.append(Change(entity=view.entity, id=key[1], action="delete", before=old, after=None))
            else:
                names = [name for name in view.columns if old[name] != new[name]]
                of_old, of_new = ({name: row[name] for name in names} for row in (old, new))
                found.append(Change(entity=view.entity, id=key[1], action="update", before=of_old, after=of_new))
    if any(change.entity == "execution" for change in plan.changes):
        # A run goes on by itself as soon as it is accepted or cancelled; its event has told what the command did.
        found = [change for change in found if change.entity != "execution"]
        found += [change for change in plan.changes if change.entity == "execution"]
    return found


def _plain(row: dict[str, Any] | None, columns: tuple[str, ...]) -> dict[str, Any] | None:
    if row is None:
        return None
    shown = {name: row[name] for name in columns}
    for name in shown.keys() & {"disabled", "enabled"}:
        shown[name] = bool(shown[name])
    return {name: msgspec.json.decode(value) if isinstance(value, bytes) else value for name, value in shown.items()}
