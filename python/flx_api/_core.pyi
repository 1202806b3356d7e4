# The stub is where the native module is documented, so its docstrings stay.
# ruff: noqa: PYI021

"""The native half of FLX API (built from `rust/py`): tokens, windows, admission, metering, topics.

Rules for callers:
- Nothing here blocks, reads a clock or does I/O. `now_s` is seconds since 1970 (`time.time()`), for tokens; `now_ns` is
  a monotonic clock in nanoseconds (`time.monotonic_ns()`), for windows. Numbers that do not fit raise `OverflowError`.
- Objects are frozen and may be used from several threads.
- Importing the module by its file path needs no other module of the package; `flx_api.errors` is imported only when a
  `TokenRejected` has to be raised.

A reason is a short fixed word for logs and metrics; it never repeats input. The words: missing_token, invalid_request,
malformed_credentials, token_too_large, malformed_token, invalid_base64, invalid_header, unsupported_header,
untrusted_key_header, unsupported_algorithm, unknown_key, algorithm_mismatch, invalid_signature, wrong_type,
invalid_payload, missing_claim, invalid_claim, expired, not_yet_valid, issued_in_future, wrong_issuer, wrong_audience,
invalid_subject, invalid_roles, invalid_tenant, invalid_session, revoked, rate_limited.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict, final

__all__ = [
    "Admission",
    "Decision",
    "Meter",
    "Principal",
    "SharedMemory",
    "SlidingWindow",
    "TokenVerifier",
    "become_subreaper",
    "build_profile",
    "die_with_parent",
    "negotiate",
    "origin_allowed",
    "topic_matches",
    "verify_jws",
]

def verify_jws(token: bytes, jwks: bytes) -> bytes:
    """The payload of a compact JWS whose signature, header and key are acceptable (RFC 7515).

    `jwks` is a JWK set `{"keys": [...]}`. Keys of kind `oct` for HS256 are used (`kid`, `alg`, `use` and `key_ops` are
    honoured; without `alg` an `oct` key is for HS256), other kinds are left out. The payload is not interpreted.

    Raises:
        TokenRejected: The token is not acceptable; `.reason` says why.
        ValueError: The key set is unusable: not strict JSON, a `kid` twice, a secret under 32 bytes or a public key
            given as a secret.
    """

@final
class TokenVerifier:
    """A key set together with what its tokens must say. Prepare it once; the keys are parsed here.

    Args:
        jwks: A JWK set, as for `verify_jws`.
        issuer: The one acceptable `iss`; None accepts any string and absence.
        audience: Must be among `aud`; with None a token that has `aud` is refused (RFC 7519 section 4.1.3).
        leeway_s: Seconds that clocks may differ, at most 300.
        required: Claims that must be present. Registered claims are checked whenever they are present.
        typ: The one acceptable header `typ` ("at+jwt", "JWT"), in any case, with or without "application/".

    Raises:
        ValueError: The key set is unusable, or an expectation is empty or out of range.
    """

    def __new__(
        cls,
        jwks: bytes,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        leeway_s: int = 0,
        required: Sequence[str] = ("exp", "sub"),
        typ: str | None = None,
    ) -> TokenVerifier: ...
    def verify(self, token: bytes, now_s: float) -> dict[str, Any]:
        """The claims of an acceptable token, as plain JSON values.

        A token is over from `exp` on (`now_s >= exp + leeway_s`). Times are JSON numbers between 1970 and 9999; `sub`,
        `tenant` and `jti` are non-empty strings without NUL, `roles` is an array of unique such strings.

        Raises:
            TokenRejected: The token is not acceptable; `.reason` says why.
            ValueError: `now_s` is not finite.
        """

@final
class SharedMemory:
    """A mapping that all workers of one host share: the words under windows and counters, and one seed for all hashes.

    It stays mapped while it, or a window over it, lives; the descriptor may be closed. Its size is the file's.

    Args:
        fd: an open memory file.
        layout: a number that says what lies where; all who open the memory must name the same.
        create: whether to mark fresh, zeroed memory, or to open what another has marked.

    Raises:
        OSError: it cannot be mapped.
        ValueError: the memory is too small, marked already, or laid out in another way.
    """

    def __new__(cls, fd: int, *, layout: int = 0, create: bool = False) -> SharedMemory: ...
    @property
    def bytes(self) -> int:
        """Bytes that can be lent out."""

@final
class SlidingWindow:
    """At most `limit` units per key in any window of `window_ms`, whatever the arrival pattern, in bounded memory.

    A refusal means that the limit was used within the last 65/64 of a window (exactly one window for limits up to 64).
    Refused requests are not counted. When `max_bytes` are used up, entries of idle keys are reused; if there are none,
    new keys share entries, so that they may be refused for what others did, but nobody ever gets quota back.

    Args:
        limit: units per window, at most a thousand million.
        window_ms: length of the window.
        max_bytes: bounds everything the window remembers.
        memory: where it remembers, when several workers are to admit together what one would: they must use the same
            clock. It may hold one window. By default the memory is the window's own.

    Raises:
        ValueError: `limit` or `window_ms` is 0 or too large, `max_bytes` holds no 16 keys, or `memory` holds another
            window.
    """

    def __new__(
        cls, limit: int, window_ms: int, *, max_bytes: int = 67108864, memory: SharedMemory | None = None
    ) -> SlidingWindow: ...
    def hit(self, key: bytes, now_ns: int, cost: int = 1) -> tuple[bool, int, int]:
        """Check and, when admitted, count: `(admitted, remaining, reset_ns)`.

        `remaining` are the units left afterwards. `reset_ns`, when admitted: until the oldest counted unit leaves and
        quota grows; when refused: until the same cost fits if nothing else is admitted before (a cost above the limit
        never fits). A `now_ns` smaller than one seen with this key before counts as that one.

        Raises:
            ValueError: `cost` is 0.
        """

@final
class Principal:
    """Who a verified token speaks for. Frozen; equal when all attributes are equal."""

    def __new__(
        cls,
        *,
        subject: str,
        tenant: str | None = None,
        roles: Sequence[str] = (),
        token_id: str | None = None,
        expires_at: int = 0,
    ) -> Principal: ...
    @property
    def subject(self) -> str:
        """`sub`."""

    @property
    def tenant(self) -> str | None:
        """`tenant`."""

    @property
    def roles(self) -> tuple[str, ...]:
        """`roles`, in the token's order."""

    @property
    def token_id(self) -> str | None:
        """`jti`."""

    @property
    def expires_at(self) -> int:
        """`exp` in whole seconds since 1970, rounded down."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Decision:
    """The answer to one request. Made by `Admission` only."""

    @property
    def status(self) -> Literal[200, 400, 401, 429]:
        """200: go on. 400: several `Authorization` headers. 401: no acceptable token. 429: a window is used up."""

    @property
    def reason(self) -> str | None:
        """Why it was refused (one of the module's words), None when admitted."""

    @property
    def principal(self) -> Principal | None:
        """Who asks; None when refused or when no token was needed."""

    @property
    def policy(self) -> str | None:
        """The policy the numbers speak of: the one with the least left or, when refused, with the longest wait.

        None when no policy applied; the numbers are 0 then.
        """

    @property
    def limit(self) -> int:
        """Units per window of that policy."""

    @property
    def remaining(self) -> int:
        """Units left in it."""

    @property
    def window_s(self) -> int:
        """Its window in seconds, rounded up."""

    @property
    def reset_s(self) -> int:
        """Seconds, rounded up, until quota grows; when refused, until this request would fit."""

    @property
    def retry_after_s(self) -> int:
        """With 429 the same, at least 1; else 0."""

    @property
    def shadow(self) -> tuple[str, ...]:
        """Shadow policies that would have refused."""

@final
class Admission:
    """Key set, expectations and rate-limit windows of one gateway: one call decides about a request.

    Args:
        jwks: A JWK set, as for `verify_jws`.
        issuer: As for `TokenVerifier`.
        audience: As for `TokenVerifier`.
        leeway_s: As for `TokenVerifier`.
        typ: As for `TokenVerifier`.
        policies: `(name, by, limit, window_ms, cost, shadow)` each; `by` is "ip" (IPv4 whole, IPv6 by /64, mapped
            addresses unwrapped) or "subject" (within its tenant; verified tokens only). A shadow policy never refuses.
        max_bytes: What all windows together may remember, shared equally by the policies.

    Raises:
        ValueError: The key set or a policy is unusable (names unique, 1 <= cost <= limit).
    """

    def __new__(
        cls,
        jwks: bytes,
        *,
        issuer: str | None,
        audience: str | None,
        leeway_s: int = 0,
        typ: str | None = None,
        policies: Sequence[tuple[str, str, int, int, int, bool]],
        max_bytes: int = 67108864,
    ) -> Admission: ...
    def admit(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        client_ip: str,
        needs_token: bool,
        now_s: float,
        now_ns: int,
    ) -> Decision:
        """Decide about a request by its header list (a list is fastest).

        All windows that apply are checked first, and charged only when all admit. A request refused for its token is
        charged to the windows by address alone; address windows are checked before any signature. Where no token is
        needed, `Authorization` is not looked at.

        Raises:
            TypeError: A header is not a tuple of two bytes objects.
            ValueError: `now_s` is not finite.
        """

    def admit_token(self, token: bytes | None, client_ip: str, now_s: float, now_ns: int) -> Decision:
        """The same for a token that came another way (WebSocket subprotocol); None is a missing one."""

class _Stream(TypedDict):
    records: int
    bytes: int
    schema: bool
    key_properties: list[str]
    distinct_keys: int | None
    records_after_state: int
    activate_versions: int

class _Snapshot(TypedDict):
    lines: int
    bytes: int
    malformed: int
    other: int
    partial_bytes: int
    states: int
    last_state: str | None
    streams: dict[str, _Stream]

@final
class Meter:
    """Counts Singer messages as they pass, in any chunking.

    Args:
        max_keys: Distinct keys kept over all streams. When they are exceeded, the stream with the most loses its count
            (`distinct_keys` is None from then on) and its queue.
    """

    def __new__(cls, *, max_keys: int = 2000000) -> Meter: ...
    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes (`bytes` without a copy; `bytearray` and `memoryview` with one).

        Raises:
            TypeError: Not an object with a buffer of bytes.
        """

    def finish(self) -> None:
        """Say that no more bytes come; what is left without a line end becomes `partial_bytes`."""

    def snapshot(self) -> _Snapshot:
        """All counts, as values that JSON can carry.

        - `lines`: complete lines; `bytes`: all bytes fed; `malformed`: lines that are no Singer message as far as they
          had to be read (in no other count); `other`: messages of another type (BATCH); `partial_bytes`: after
          `finish()`, bytes of an unterminated last line, which is in no other count.
        - `states`: STATE messages; `last_state`: the whole text of the last one.
        - `streams`, by name, in the order of their first message: `records`; `bytes` of their lines, line ends
          included; `schema`: whether a SCHEMA was seen; `key_properties` of the newest; `distinct_keys`: different keys
          among the records, None without key properties or when not exactly known (they changed, records came before
          the SCHEMA, or `max_keys` was exceeded); `records_after_state`: records since the last STATE;
          `activate_versions`. From the 10,001st name on, streams are counted together under `*`.
        """

    def drain_keys(self) -> list[tuple[str, bytes]]:
        r"""The distinct keys that are new since the last call: `(stream, lines)`.

        Each line is the JSON array of a record's key values, as written, in the order of `key_properties`, and ends
        with `\n`. A key property that a record lacks is `null`. Fetch after every few chunks: beyond 64 MiB of lines
        not fetched the largest stream is given up as with `max_keys`.
        """

def topic_matches(pattern: str, topic: str) -> bool:
    """Whether a subscription to `pattern` includes `topic`: an exact name, `*`, or a prefix with a trailing `.*`."""

def negotiate(protocol_header: str | None) -> tuple[Literal["flx.v1"] | None, bytes | None]:
    """What `Sec-WebSocket-Protocol` offers: the subprotocol to answer with, and the token of a `bearer.<token>` entry.

    Several header lines are to be joined with a comma. The `bearer.` entry is never to be echoed.

    Raises:
        ValueError: The list is malformed (empty entries, an entry twice, two tokens, over 16 entries or 9 KiB).
    """

def origin_allowed(origin: str | None, host: str | None, allowed: Sequence[str]) -> bool:
    """Whether a WebSocket handshake from `origin`, sent to `host` (the Host header), may go on.

    Scheme, host and port are compared exactly (default ports filled in, letters in any case) with each of `allowed`,
    and with `host` itself under either scheme. Absence is allowed; `null`, and what is no plain http(s) origin, never.
    A `*` in `allowed` matches nothing: who wants no check does not ask.
    """

def die_with_parent(parent_pid: int | None = None) -> bool:
    """Ask the kernel to kill this process when its parent ends (Linux; elsewhere nothing is done and True returned).

    False means that the parent is no longer `parent_pid`, so no signal will come: leave. Without an argument the parent
    at the moment of the call is meant, and one that ended before goes unnoticed. Applies to the calling process only,
    survives `exec` and is not inherited by children.

    Raises:
        OSError: The kernel refused.
    """

def become_subreaper() -> bool:
    """Make orphans among this process' descendants its children (Linux); False elsewhere.

    Raises:
        OSError: The kernel refused.
    """

def build_profile() -> Literal["release", "debug"]:
    """How the module was built; benchmarks refuse "debug"."""
