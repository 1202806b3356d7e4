"""The background fetch of a key set, against a real server on loopback. Time and jitter are arguments."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from tests.gateway_app import running, settings

from flx_api.auth.jwks import DEFAULT_AGE_S, MAX_AGE_S, MIN_AGE_S, UNKNOWN_KEY_PAUSE_S, Jwks, client
from flx_api.auth.keys import verifier
from flx_api.config import MAX_KEY_SET_BYTES
from flx_api.errors import TokenRejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flx_api._core import TokenVerifier


class Address:
    """A server that answers every request with what the test says, and counts."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""
        self.requests: asyncio.Queue[str] = asyncio.Queue()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {"Content-Length": str(len(self.body)), "Connection": "close", **self.headers}
        lines = [f"HTTP/1.1 {self.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        self.requests.put_nowait(head)
        with contextlib.suppress(ConnectionError):
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + self.body)
            await writer.drain()
        writer.close()


class Case:
    """A server, a fetcher, and what the fetcher put in force."""

    def __init__(self, address: Address, http: httpx.AsyncClient) -> None:
        self.address = address
        self.now = 1000.0
        self.taken: list[bytes] = []
        self.swaps: asyncio.Queue[bytes] = asyncio.Queue()
        self.verifier: TokenVerifier | None = None
        self.settings = settings(jwt_jwks=address.url, jwt_jwks_issuer="them")
        self.jwks = Jwks(address.url, self.take, http=http, monotonic=lambda: self.now, jitter=lambda: 0.0)

    def take(self, keys: bytes) -> None:
        made = verifier(self.settings, keys)
        self.verifier = made
        self.taken.append(keys)
        self.swaps.put_nowait(keys)


@contextlib.asynccontextmanager
async def case() -> AsyncIterator[Case]:
    address = Address()
    server = await asyncio.start_server(address.serve, "127.0.0.1", 0)
    address.port = server.sockets[0].getsockname()[1]
    async with server, client() as http:
        made = Case(address, http)
        try:
            yield made
        finally:
            await made.jwks.close()


KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key: ec.EllipticCurvePrivateKey, **members: object) -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), **members}


def key_set(*keys: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"keys": keys})


GOOD = key_set(jwk(KEY, kid="k1"))
OCT = {"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlBQkNERUY"}


def run(story: Any) -> None:
    async def told() -> None:
        async with asyncio.timeout(20), case() as made:
            await story(made)

    asyncio.run(told())


def token(issuer: str = "them", exp: int = 1000) -> bytes:
    claims = {"iss": issuer, "aud": "flx-api", "sub": "anna", "exp": exp}
    return jwt.encode(claims, KEY, algorithm="ES256", headers={"kid": "k1"}).encode()


def test_fetched_keys_verify_the_other_issuers_tokens_and_nobody_elses() -> None:
    async def story(case: Case) -> None:
        assert case.jwks.reason == "has no keys yet"
        case.address.body = GOOD
        await case.jwks.refresh()
        assert case.jwks.reason == ""
        assert case.taken == [GOOD]
        assert case.verifier is not None
        # The other issuer's clock may be off by 30 s, and its key does not sign for us.
        assert case.verifier.verify_full(token(), 1029.0) == (jwt.decode(token(), options=UNVERIFIED), "k1")
        with pytest.raises(TokenRejected):
            case.verifier.verify(token(), 1030.0)
        with pytest.raises(TokenRejected):
            case.verifier.verify(token("flx"), 900.0)
        await case.jwks.refresh()
        assert case.taken == [GOOD]

    run(story)


UNVERIFIED: Any = {"verify_signature": False}


@pytest.mark.parametrize(
    ("status", "headers", "body", "why"),
    [
        (500, {}, GOOD, "status 500"),
        (302, {"Location": "http://127.0.0.1:1/other"}, b"", "status 302"),
        (200, {}, b"<html>", "not strict JSON"),
        (200, {}, b'{"keys":[]}', "no key"),
        (200, {}, key_set({"kty": "RSA", "use": "enc"}), "no key"),
        (200, {}, key_set(OCT), "secret"),
        (200, {}, key_set(OCT | {"use": "enc"}, jwk(KEY)), "secret"),
        (200, {}, key_set(jwk(KEY, kid="a"), jwk(KEY, kid="a")), "twice"),
        (200, {}, key_set(jwk(KEY, d="AAAA")), "private"),
        (200, {}, b" " * (MAX_KEY_SET_BYTES + 1), "256 KiB"),
        (200, {"Content-Encoding": "gzip"}, GOOD, "content coding"),
        (200, {"Content-Length": "999999"}, GOOD, "RemoteProtocolError"),
    ],
)
def test_the_last_good_set_is_kept(status: int, headers: dict[str, str], body: bytes, why: str) -> None:
    async def story(case: Case) -> None:
        address = case.address
        address.status, address.headers, address.body = status, headers, body
        await case.jwks.refresh()
        assert case.taken == []
        assert why in case.jwks.reason
        address.status, address.headers, address.body = 200, {}, GOOD
        await case.jwks.refresh()
        address.status, address.headers, address.body = status, headers, body
        await case.jwks.refresh()
        assert case.taken == [GOOD]
        assert case.jwks.reason == ""
        assert case.address.requests.qsize() == 3

    run(story)


def test_a_server_that_is_not_there_is_asked_again_less_and_less_often() -> None:
    async def story(case: Case) -> None:
        case.jwks = Jwks(
            "http://127.0.0.1:1/keys", case.take, http=httpx.AsyncClient(), monotonic=lambda: 0.0, jitter=lambda: 0.0
        )
        waits = []
        for _ in range(8):
            await case.jwks.refresh()
            waits.append(case.jwks.wait_s)
        assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
        assert case.jwks.reason == "has no keys yet (ConnectError)"

    run(story)


@pytest.mark.parametrize(
    ("cache_control", "wait_s"),
    [
        ("", DEFAULT_AGE_S),
        ("max-age=300", 300.0),
        ("public, max-age=300, must-revalidate", 300.0),
        ("max-age=0", MIN_AGE_S),
        ("Max-Age=999999", MAX_AGE_S),
        ("s-max-age=300", DEFAULT_AGE_S),
        ("max-age=-1", DEFAULT_AGE_S),
        ("max-age=x", DEFAULT_AGE_S),
    ],
)
def test_an_answer_is_kept_as_long_as_it_says_within_bounds(cache_control: str, wait_s: float) -> None:
    async def story(case: Case) -> None:
        case.address.body, case.address.headers = GOOD, {"Cache-Control": cache_control}
        await case.jwks.refresh()
        assert case.jwks.wait_s == wait_s

    run(story)


def test_an_unknown_key_causes_one_fetch_in_half_a_minute() -> None:
    async def story(case: Case) -> None:
        case.address.body = GOOD
        case.jwks.start()
        await case.address.requests.get()
        for _ in range(1000):
            case.jwks.unknown_key()
        # Whether they came during the first fetch or after it: one more.
        request = await case.address.requests.get()
        assert "accept-encoding: identity" in request.lower()
        assert await case.swaps.get() == GOOD
        case.now += UNKNOWN_KEY_PAUSE_S - 1
        case.jwks.unknown_key()
        case.now += 2
        rotated = key_set(jwk(ec.generate_private_key(ec.SECP256R1()), kid="k2"))
        case.address.body = rotated
        case.jwks.unknown_key()
        await case.address.requests.get()
        assert await case.swaps.get() == rotated
        assert case.taken == [GOOD, rotated]
        assert case.address.requests.empty()

    run(story)


def test_a_gateway_takes_fetched_keys_and_forgets_what_an_old_set_has_verified() -> None:
    async def story() -> None:
        address = Address()
        server = await asyncio.start_server(address.serve, "127.0.0.1", 0)
        address.port = server.sockets[0].getsockname()[1]
        address.status = 503
        mine = {"authorization": f"Bearer {token(exp=4_000_000_000).decode()}"}
        async with server, running(jwt_jwks=address.url, jwt_jwks_issuer="them") as gateway:
            keys = gateway.parts.keys
            assert keys is not None
            await address.requests.get()
            while not keys.jwks.wait_s:  # noqa: ASYNC110 - a number, not an event
                await asyncio.sleep(0)
            assert "has no keys yet" in (await gateway.client.get("/ready")).text
            assert 401 == (await gateway.client.get("/v1/auth/whoami", headers=mine)).status_code
            address.status, address.body = 200, GOOD
            await keys.jwks.refresh()
            for _ in range(2):
                assert 200 == (await gateway.client.get("/v1/auth/whoami", headers=mine)).status_code
            assert 200 == (await gateway.client.get("/ready")).status_code
            address.body = key_set(jwk(ec.generate_private_key(ec.SECP256R1()), kid="k2"))
            await keys.jwks.refresh()
            assert 401 == (await gateway.client.get("/v1/auth/whoami", headers=mine)).status_code
            assert 2 <= gateway.parts.admission.unknown_keys

    asyncio.run(story())
