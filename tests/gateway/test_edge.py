"""The edge as the real ASGI callable, in this process."""

from __future__ import annotations

import asyncio

import msgspec
from tests.gateway_app import Running, Wire, running, scope
from tests.gateway_process import bearer, token

from flx_api._core import Principal
from flx_api.observability.metrics import PHASES

ECHO = {"command": "system.echo", "args": {}}


def test_a_fault_of_ours_is_500_without_a_word_about_it() -> None:
    async def story() -> None:
        async with running() as gateway:

            async def broken(_exchange: object) -> None:
                message = "the secret is 42"
                raise RuntimeError(message)

            health = next(route for route in gateway.parts.paths if route.template == "/health")
            health.serve["GET"] = broken
            response = await gateway.client.get("/health")
            assert response.status_code == 500
            assert response.json()["code"] == "internal"
            assert "secret" not in response.text

    asyncio.run(story())


def test_every_request_is_recorded_by_template() -> None:
    async def story() -> None:
        async with running() as gateway:
            await gateway.client.get("/v1/executions/abc", headers=bearer())
            await gateway.client.get("/nothing/at/all")
            await gateway.client.request("BREW", "/health")
            counted = gateway.parts.metrics.requests
            assert counted["/v1/executions/{id}", "GET", "2xx"] == 1
            assert counted["unmatched", "GET", "4xx"] == 1
            assert counted["/health", "other", "4xx"] == 1
            assert gateway.parts.metrics.counters.phases()[PHASES.index("upstream")][1] > 0
            assert gateway.parts.metrics.refusals == {"not_found": 1, "method_not_allowed": 1}

    asyncio.run(story())


def test_a_revoked_token_is_refused_like_any_other_that_is_not_acceptable() -> None:
    async def story() -> None:
        async with running() as gateway:
            mine = {"authorization": f"Bearer {token(jti='a', sid='s')}"}
            assert (await gateway.client.post("/v1/execute", headers=mine, json=ECHO)).status_code == 200
            bad = await gateway.client.post("/v1/execute", headers={"authorization": "Bearer x"}, json=ECHO)
            for kind, value in (("jti", "a"), ("session", "s"), ("subject", "anna")):
                told = {"type": "revoked", "kind": kind, "value": value}
                await gateway.daemon.publish("revocation_events", told)
                native = gateway.parts.revoked
                while len(native) == 0:  # noqa: ASYNC110 - a number, not an event
                    await asyncio.sleep(0)
                refused = await gateway.client.post("/v1/execute", headers=mine, json=ECHO)
                assert refused.status_code == 401
                one, other = refused.json(), bad.json()
                assert one.pop("request_id") != other.pop("request_id")
                assert one == other
                ticket = gateway.parts.tickets.issue(Principal(subject="anna", token_id="a", session="s"), 0)
                assert gateway.parts.tickets.redeem(ticket, 0) is None
                await gateway.daemon.publish("revocation_events", {**told, "type": "restored"})
                while len(native) == 1:  # noqa: ASYNC110 - a number, not an event
                    await asyncio.sleep(0)
                assert (await gateway.client.post("/v1/execute", headers=mine, json=ECHO)).status_code == 200
            assert gateway.parts.metrics.refusals["revoked"] == 3

    asyncio.run(story())


def test_beyond_the_staleness_tokens_are_refused_by_setting_and_nothing_else_is() -> None:
    async def story() -> None:
        for when_stale, status in (("serve", 200), ("refuse", 503)):
            async with running(when_stale=when_stale) as gateway:
                gateway.parts.revocations.look(asyncio.get_running_loop().time() + 60)
                assert (await gateway.client.get("/ready")).status_code == 503
                answer = await gateway.client.post("/v1/execute", headers=bearer(), json=ECHO)
                assert answer.status_code == status
                if status == 503:
                    assert answer.json()["code"] == "upstream_unavailable"
                    assert answer.headers["retry-after"] == "1"
                assert (await gateway.client.get("/")).status_code == 200

    asyncio.run(story())


def test_a_commands_frame_names_token_and_session_and_their_end() -> None:
    async def story() -> None:
        async with running() as gateway:
            mine = {"authorization": f"Bearer {token(jti='a', sid='s', exp=4_000_000_000)}"}
            await gateway.client.post("/auth/logout", headers=mine)
            (frame,) = gateway.daemon.commands()
            who = frame.principal
            assert (frame.command, who.subject) == ("auth.logout", "anna")
            assert (who.token_id, who.session, who.expires_at) == ("a", "s", 4_000_000_000)

    asyncio.run(story())


def test_two_host_headers_are_none() -> None:
    async def story(gateway: Running) -> None:
        for hosts in ([], [b"a", b"b"], [b"a", b"a"], [b"a@b"], [b""]):
            wire = Wire()
            request = scope(path="/health")
            request["headers"] = [(b"host", host) for host in hosts]
            await gateway.app(request, wire.receive, wire.send)
            assert wire.sent[0]["status"] == 400
            assert msgspec.json.decode(wire.sent[1]["body"])["code"] == "invalid_host"

    async def told() -> None:
        async with running() as gateway:
            await story(gateway)

    asyncio.run(told())


def test_a_body_of_two_lengths_is_refused_and_nothing_more_is_read_from_its_connection() -> None:
    async def story() -> None:
        async with running() as gateway:
            headers = {"content-length": "2", "transfer-encoding": "chunked", "content-type": "application/json"}
            # Whatever else is wrong with the request: what follows it must not be read as another one.
            for path, more, status in (
                ("/system.echo", bearer(), 400),
                ("/nothing", {}, 404),
                ("/system.echo", {}, 401),
            ):
                wire = Wire({"type": "http.request", "body": b"{}", "more_body": False})
                await gateway.app(scope("POST", path, {**headers, **_lower(more)}), wire.receive, wire.send)
                assert wire.sent[0]["status"] == status
                assert (b"connection", b"close") in wire.sent[0]["headers"]
            assert gateway.daemon.commands() == []

    asyncio.run(story())


def _lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_probes_are_never_limited() -> None:
    async def story() -> None:
        limits = [{"name": "one", "by": "ip", "limit": 1, "window": "60s"}]
        async with running(rate_limits=limits) as gateway:
            assert {(await gateway.client.get("/health")).status_code for _ in range(5)} == {200}
            assert [(await gateway.client.get("/")).status_code for _ in range(2)] == [200, 429]
            # Nonsense is limited like anything else.
            assert (await gateway.client.get("/nothing")).status_code == 429

    asyncio.run(story())


def test_metrics_may_be_hidden() -> None:
    async def story(who: str) -> list[int]:
        async with running(metrics=who) as gateway:
            answers = [await gateway.client.get("/metrics"), await gateway.client.get("/metrics", headers=bearer())]
            return [answer.status_code for answer in answers]

    assert [asyncio.run(story(who)) for who in ("public", "token", "off")] == [[200, 200], [401, 200], [404, 404]]


def test_the_root_is_nobodys_but_commands() -> None:
    async def story() -> None:
        async with running() as gateway:
            for method in ("GET", "POST"):
                assert (await gateway.client.request(method, "/favicon")).json()["code"] == "not_found"
            assert (await gateway.client.get("/system.echo")).status_code == 405

    asyncio.run(story())
