"""The key set of another issuer, fetched from its address and kept fresh in the background.

Strategy: one task fetches, hands a new set to the callback, and waits: for as long as the answer may be cached, or
until a token names a key that nobody knows. As there is one task, there is never more than one fetch.

Rules:
- The last good set stays in force whatever the address answers: an error, nothing usable, a secret, too many bytes.
- Two fetches that tokens cause are at least 30 s apart, however many tokens name unknown keys.
- No redirect is followed, no content coding is accepted, and the time and the bytes of an answer are bounded.
- The gateway starts without the keys; `reason` says so until they have come.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
import time
from typing import TYPE_CHECKING, Final

import httpx
import structlog

from flx_api.config import MAX_KEY_SET_BYTES
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_AGE_S: Final = 60.0
MAX_AGE_S: Final = 3600.0
DEFAULT_AGE_S: Final = 600.0
UNKNOWN_KEY_PAUSE_S: Final = 30.0
_FIRST_RETRY_S: Final = 1.0
_TIMEOUT_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.25
_MAX_AGE: Final = re.compile(r'(?:^|[,\s])max-age\s*=\s*"?(\d{1,9})"?(?=$|[,\s])', re.IGNORECASE)

_log = structlog.get_logger("flx.auth")


class _UnusableAnswer(Exception):
    """What was answered is no key set."""


def client() -> httpx.AsyncClient:
    """The HTTP client of a gateway: the system's certificates, no redirects, nothing from the environment."""
    return httpx.AsyncClient(verify=ssl.create_default_context(), trust_env=False, timeout=_TIMEOUT_S)


class Jwks:
    """The key set behind an address.

    Args:
        address: where it is.
        changed: takes the bytes of a new set and puts them in force; raises StartupError or ValueError when they are
            unusable. It is not called again for the same bytes.
        http: the client; whoever made it closes it.
        monotonic: seconds that never go back.
        jitter: a number in [0, 1), so that gateways do not all fetch at once.
    """

    def __init__(
        self,
        address: str,
        changed: Callable[[bytes], None],
        *,
        http: httpx.AsyncClient,
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._address = address
        self._changed = changed
        self._http = http
        self._monotonic = monotonic
        self._jitter = jitter
        self._keys: bytes | None = None
        self._wanted = asyncio.Event()
        self._wanted_from_s = monotonic()
        self._retry_s = _FIRST_RETRY_S
        self._task: asyncio.Task[None] | None = None
        self.wait_s = 0.0
        """Seconds from the end of the last fetch to the next one on schedule."""
        self.reason = "has no keys yet"
        """Why no key is known; empty as soon as one is."""

    def start(self) -> None:
        """Fetch now, and again in the background."""
        self._task = asyncio.create_task(self._run(), name="jwks")

    async def close(self) -> None:
        """Stop fetching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def unknown_key(self) -> None:
        """A token names a key that is not in the set: fetch soon, unless that was done a moment ago."""
        if self._monotonic() >= self._wanted_from_s:
            self._wanted.set()

    async def refresh(self) -> None:
        """Fetch once, and put a new set in force."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                keys, age_s = await self._fetch()
            if keys != self._keys:
                self._changed(keys)
                _log.info("jwks.changed", bytes=len(keys))
        except (TimeoutError, httpx.HTTPError, _UnusableAnswer, StartupError, ValueError) as error:
            why = str(error) if isinstance(error, (_UnusableAnswer, StartupError, ValueError)) else type(error).__name__
            if self._keys is None:
                self.reason = f"has no keys yet ({why})"
            _log.warning("jwks.failed", reason=why, kept=self._keys is not None)
            self.wait_s = self._retry_s * (1 + self._jitter() / 4)
            self._retry_s = min(self._retry_s * 2, MIN_AGE_S)
            return
        self._keys, self.reason, self._retry_s = keys, "", _FIRST_RETRY_S
        self.wait_s = age_s * (1 - self._jitter() / 10)

    async def _run(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 - said and logged; the task goes on
                # Without this task no new key would ever come, and nothing would say so.
                self.wait_s = MIN_AGE_S
                _log.exception("jwks.unexpected")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.wait_s):
                    await self._wanted.wait()
                    self._wanted_from_s = self._monotonic() + UNKNOWN_KEY_PAUSE_S
            self._wanted.clear()

    async def _fetch(self) -> tuple[bytes, float]:
        """The set's bytes, and the seconds it may be kept."""
        headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
        async with self._http.stream("GET", self._address, headers=headers, follow_redirects=False) as answer:
            if answer.status_code != httpx.codes.OK:
                raise _UnusableAnswer(f"status {answer.status_code}")
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise _UnusableAnswer("content coding")
            keys = bytearray()
            async for part in answer.aiter_raw():
                keys += part
                if len(keys) > MAX_KEY_SET_BYTES:
                    raise _UnusableAnswer("over 256 KiB")
            return bytes(keys), _age_s(answer.headers.get("Cache-Control", ""))


def _age_s(cache_control: str) -> float:
    """How long an answer may be kept: what it says, between a minute and an hour."""
    found = _MAX_AGE.search(cache_control)
    return min(max(float(found[1]) if found else DEFAULT_AGE_S, MIN_AGE_S), MAX_AGE_S)


async def watch_unknown_keys(count: Callable[[], int], jwks: Jwks) -> None:
    """Tell the key set of tokens whose key is not known.

    The core that meets such a token calls nobody; it counts. Whoever sent the token is refused meanwhile.

    Args:
        count: how many such tokens there were.
        jwks: the key set.
    """
    seen = count()
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        if (now := count()) != seen:
            seen = now
            jwks.unknown_key()


class KeyFollower:
    """The keys of another issuer, with everything that keeps them fresh.

    Args:
        address: where they are.
        changed: as for `Jwks`.
        unknown: how many tokens named a key that is not known.
    """

    def __init__(self, address: str, changed: Callable[[bytes], None], unknown: Callable[[], int]) -> None:
        self._http = client()
        self._unknown = unknown
        self._watch: asyncio.Task[None] | None = None
        self.jwks = Jwks(address, changed, http=self._http, monotonic=time.monotonic, jitter=random.random)

    def start(self) -> None:
        """Fetch and watch in the background."""
        self.jwks.start()
        self._watch = asyncio.create_task(watch_unknown_keys(self._unknown, self.jwks), name="unknown-keys")

    async def close(self) -> None:
        """Stop."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.jwks.close()
        await self._http.aclose()
