# The stub is where the native module is documented, so its docstrings stay.
# ruff: noqa: PYI021

"""The native half of FLX API (built from `rust/py`): tokens, windows, admission, metering, topics.

Rules for callers:
- Nothing here blocks or does I/O. `now_s` is seconds since 1970 (`time.time()`), for tokens; `now_ns` is a monotonic
  clock in nanoseconds (`time.monotonic_ns()`), for windows. Only `Admission` and `Admitted` read them by themselves.
  Numbers that do not fit raise `OverflowError`.
- Objects are frozen and may be used from several threads.
- Importing the module by its file path needs no other module of the package; `flx_api.errors` is imported only when a
  `TokenRejected` has to be raised.

A reason is a short fixed word for logs and metrics; it never repeats input. The words: missing_token, invalid_request,
malformed_credentials, token_too_large, malformed_token, invalid_base64, invalid_header, unsupported_header,
untrusted_key_header, unsupported_algorithm, unknown_key, algorithm_mismatch, invalid_signature, wrong_type,
invalid_payload, missing_claim, invalid_claim, expired, not_yet_valid, issued_in_future, wrong_issuer, wrong_audience,
invalid_subject, invalid_roles, invalid_tenant, invalid_session, revoked, rate_limited; of requests: invalid_host,
not_found, method_not_allowed, two_lengths, two_keys, invalid_length, payload_too_large, unsupported_encoding,
unsupported_media_type.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, final, overload

__all__ = [
    "Admission",
    "Admitted",
    "Counters",
    "Express",
    "Hall",
    "Hub",
    "Lane",
    "LaneCall",
    "LaneSocket",
    "LeaseBook",
    "Meter",
    "PlainBatch",
    "PlainCommand",
    "PlainCommands",
    "Principal",
    "RealtimeListener",
    "Revocations",
    "Ride",
    "Roster",
    "Settled",
    "SharedMemory",
    "Shortcut",
    "SlidingWindow",
    "TokenVerifier",
    "asgi_scope",
    "batch_results",
    "become_subreaper",
    "build_profile",
    "check_certificate",
    "check_json",
    "close_codes",
    "die_with_parent",
    "joined",
    "negotiate",
    "origin_allowed",
    "reasons",
    "segments",
    "verify_jws",
]

_Header: TypeAlias = tuple[bytes, bytes]
_Prepared: TypeAlias = tuple[int, Sequence[_Header], bytes, bytes]

def verify_jws(token: bytes, jwks: bytes, *, mixed: bool = False) -> bytes:
    """The payload of a compact JWS whose signature, header and key are acceptable (RFC 7515).

    `jwks` is a JWK set `{"keys": [...]}` with keys for HS256/384/512 (`oct`), RS and PS256/384/512 (`RSA`),
    ES256/384/512 (`EC`) and EdDSA (`OKP`, Ed25519). `kid`, `alg`, `use` and `key_ops` are honoured; a key without `alg`
    is bound to the first algorithm that fits it, in this order; kinds and algorithms not named here are left out. A
    token with `kid` needs a key with that `kid`; one without may be of any of at most 4 keys of its algorithm. The
    payload is not interpreted.

    Args:
        token: The compact form, at most 8 KiB.
        jwks: The key set, at most 64 keys and 256 KiB.
        mixed: Whether the set may hold secrets and public keys together.

    Raises:
        TokenRejected: The token is not acceptable; `.reason` says why.
        ValueError: The key set is unusable: not strict JSON, a `kid` twice, a secret shorter than its hash or really a
            public key, RSA that is not of 2048 to 8192 bits, a point off its curve, a private key, an `alg` that does
            not fit its key, or secrets and public keys without `mixed`.
    """

@final
class TokenVerifier:
    """Keys together with what the tokens they sign must say. Prepare it once; the keys are parsed here.

    Args:
        jwks: A JWK set, as for `verify_jws`.
        issuer: The one acceptable `iss`; None accepts any string and absence.
        audience: Must be among `aud`; with None a token that has `aud` is refused (RFC 7519 section 4.1.3).
        leeway_s: Seconds that clocks may differ, at most 300.
        required: Claims that must be present. Registered claims are checked whenever they are present.
        typ: The one acceptable header `typ` ("at+jwt", "JWT"), in any case, with or without "application/".
        algorithms: Those that may be used, in the order in which keys without `alg` are bound; None allows all.
        mixed: As for `verify_jws`.

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
        algorithms: Sequence[str] | None = None,
        mixed: bool = False,
    ) -> TokenVerifier: ...
    @staticmethod
    def of(
        realms: Sequence[tuple[bytes, str | None, str | None, int, str | None, Sequence[str] | None, bool]],
    ) -> TokenVerifier:
        """A verifier of several issuers. The key that verifies a token decides which expectations hold for it.

        Args:
            realms: `(keys, issuer, audience, leeway_s, typ, algorithms, secrets)` each, between 1 and 16. `keys` is a
                JWK set, public keys in PEM (`PUBLIC KEY`, `RSA PUBLIC KEY`), or one in DER; one in PEM or DER answers
                for every token whose `kid` no other key has. Without `secrets` a set with an `oct` key is refused.
                `exp` and `sub` are required.

        Raises:
            ValueError: A key set or an expectation is unusable, or two realms have the same `kid`.
        """

    def remembering(self, max_bytes: int) -> TokenVerifier:
        """The same verifier, which remembers the tokens it has verified until they end.

        That is for who sees one again and again and asks by `verify_full`. Whether a token was revoked is not asked
        here, before or after.

        Args:
            max_bytes: Room for what is remembered; the token that was not asked for longest makes way.

        Raises:
            ValueError: More than 16 GiB.
        """

    @property
    def key_count(self) -> int:
        """How many keys are usable."""

    def verify_full(self, token: bytes, now_s: float) -> tuple[Mapping[str, Any], str | None]:
        """The claims as from `verify`, and the `kid` of the key the token was verified with, named by it or not.

        The claims cannot be changed: mappings are read-only and arrays are tuples, so one answer may serve many.
        """

    def verify(self, token: bytes, now_s: float) -> dict[str, Any]:
        """The claims of an acceptable token, as plain JSON values.

        A token is over from `exp` on (`now_s >= exp + leeway_s`). Times are JSON numbers between 1970 and 9999; `sub`,
        `tenant`, `jti` and `sid` are non-empty strings without NUL, `roles` is an array of unique such strings.

        Raises:
            TokenRejected: The token is not acceptable; `.reason` says why.
            ValueError: `now_s` is not finite.
        """

@final
class Revocations:
    """Which tokens are no longer good although their signature and their times are.

    A revocation names a `jti`, a `session` (`sid`), a `subject` (`sub`) or a `key` (`kid`) and hits every token that
    says so and was issued (`iat`) at or before `issued_before_s`; None hits them all, and a token without `iat` is
    always hit. Names of different tenants are different names; a key belongs to no tenant. From `expires_at_s` on there
    is nothing left that the revocation could hit (None: never).
    """

    def __new__(cls) -> Revocations: ...
    def refuse(self, refuses: bool) -> None:
        """Say whether no token may be believed now, because too little is known of what is revoked: for the lane."""

    def apply(
        self,
        kind: str,
        value: str,
        tenant: str,
        issued_before_s: int | None = None,
        expires_at_s: int | None = None,
    ) -> None:
        """Put a revocation in force, in place of one of the same kind, value and tenant.

        Raises:
            ValueError: `kind` is none of `jti`, `session`, `subject`, `key`.
        """

    def remove(self, kind: str, value: str, tenant: str) -> bool:
        """Take a revocation back; whether there was one.

        Raises:
            ValueError: As for `apply`.
        """

    def replace_all(self, entries: Sequence[tuple[str, str, str, int | None, int | None]]) -> None:
        """Put exactly these in force: the arguments of `apply`, in one step.

        Raises:
            ValueError: As for `apply`; nothing has changed then.
        """

    def forget_expired(self, now_s: int) -> int:
        """Forget those whose `expires_at_s` is not after `now_s`; how many."""

    def revokes(
        self,
        *,
        subject: str,
        tenant: str | None = None,
        token_id: str | None = None,
        session: str | None = None,
        key_id: str | None = None,
        issued_at: int | None = None,
    ) -> bool:
        """Whether a token that says this is revoked.

        Args:
            subject: `sub`.
            tenant: `tenant`; None is the tenant `default`.
            token_id: `jti`.
            session: `sid`.
            key_id: `kid` of the key that verified it.
            issued_at: `iat` in whole seconds, rounded down.
        """

    @property
    def epoch(self) -> int:
        """Moves with every change: a verdict that is remembered holds as long as this stays."""

    def __len__(self) -> int: ...

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
        session: str | None = None,
        issued_at: int | None = None,
        expires_at: int = 0,
        key_id: str | None = None,
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

    @property
    def session(self) -> str | None:
        """`sid`."""

    @property
    def issued_at(self) -> int | None:
        """`iat` in whole seconds since 1970, rounded down."""

    @property
    def key_id(self) -> str | None:
        """`kid` of the key that the token stood with."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Counters:
    """Requests, durations, phases and refusals of all workers of a host, counted without locks.

    What is counted has a place by its index, given by whoever makes the counters; what has none is not counted.

    Args:
        routes: How many routes are told apart.
        refusals: How many kinds of refusal; the first are those of `reasons()`.
        policies: How many rate-limit policies.
        shared: The memory that workers share; None counts for this process alone.
    """

    def __new__(cls, *, routes: int, refusals: int, policies: int, shared: SharedMemory | None = None) -> Counters: ...
    def request(self, route: int, method: str, status: int, nanoseconds: int) -> None:
        """A request is over. `method` is that of HTTP, or WEBSOCKET."""

    def phase(self, phase: int, nanoseconds: int) -> None:
        """A phase of the request path is over."""

    def refusal(self, kind: int) -> None:
        """Something was refused."""

    def requests(self) -> list[tuple[int, str, int, int]]:
        """Route, method, class of the status (2 for 2xx) and count, where there are any."""

    def durations(self) -> list[tuple[list[int], float]]:
        """By route: cumulative counts by bound, the last of which is all, and the sum in seconds."""

    def phases(self) -> list[tuple[list[int], float]]:
        """The same by phase."""

    def refusals(self) -> list[int]:
        """By kind."""

    def shadows(self) -> list[int]:
        """By policy: what it would have refused, were it no shadow."""

    @staticmethod
    def bounds() -> tuple[list[float], list[float]]:
        """Upper bounds in seconds of durations and of phases."""

@final
class Admitted:
    """A request that may go on. Made by `Admission` only."""

    @property
    def route(self) -> int:
        """Index of its route."""

    @property
    def values(self) -> tuple[str, ...]:
        """The values in its path, decoded, in its order."""

    @property
    def request_id(self) -> str:
        """The client's own id when it is 1 to 128 letters, digits or ._-, else a new one."""

    @property
    def client(self) -> str:
        """The client's address: the peer's, or what trusted proxies say it is."""

    @property
    def length(self) -> int | None:
        """Bytes of its body; 0 when there is none, None when it ends when it ends."""

    @property
    def started_ns(self) -> int:
        """When it was received, in monotonic nanoseconds."""

    @property
    def principal(self) -> Principal | None:
        """Who asks; None when nobody had to say. The same object for each request with the same token."""

    def headers(self, own: Sequence[tuple[bytes, bytes]], length: int | None) -> list[Any]:
        """The headers of a response: its own, those that every response carries, Content-Length unless None.

        Pairs of bytes for ASGI; pairs of text when it was admitted by `admit_rsgi`, and then Content-Length only for
        HEAD: of a body that is there the server says it.
        """

    def keep(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Remember an answer that depends on nothing but the principal: the next GET of this route gets it at once."""

    def over(self, status: int, responded_since_ns: int | None = None) -> None:
        """Count the request as over; and the phase `respond`, where it is told when that began."""

@final
class Admission:
    """Paths, tokens, windows and prepared answers of one gateway: one call decides about a request.

    The windows that apply are all checked first, and charged only when all admit. A request refused for its token, its
    Host or its path is charged to the windows that need no principal, which are checked before any signature; one
    refused for its body is charged to all.

    Args:
        verifier: The keys and what their tokens must say.
        revocations: Asked about every token that is acceptable in all else.
        counters: Where everything is counted that is answered here.
        routes: Template; `(method, "public" | "probe" | "token")` each; and what its last value is: "value", "command"
            (the request's class is then the command's), or "dotted" (as "command"; without a dot the path is unknown).
        commands: The class of each command, and the one of its second decision (`admit_command`).
        policies: `(name, by, limit, window_ms, cost, shadow)` each: `by` is "ip", "api_key", "subject" or "tenant",
            `cost` the most one request costs. A shadow policy never refuses.
        classes: What the requests of a class pass, as `(policy, cost)`; the routes first, then what leads nowhere.
        own: Route, method and class each, where a method of a route has a class of its own.
        refusals: By reason: status, headers, and the body before and after the request id.
        limited: The same for each policy.
        not_allowed: The same for each route and a method it does not have.
        headers: What every response carries; what it carries unless it has its own; what it carries over TLS.
        hosts: Acceptable Host names in lower case; none accepts any.
        proxies: Networks whose word about a client's address is believed.
        proxy_header: "x-forwarded-for" or "forwarded".
        body_limit: Bytes of a body.
        token_bytes: What may be remembered of tokens.
        max_bytes: What all windows together may remember, shared equally.
        shared: The memory that workers share.
        leases: The fleet's limits in place of this host's, one policy each, in the same order.

    Raises:
        ValueError: Something given cannot be used; the message names the rule.
    """

    def __new__(
        cls,
        verifier: TokenVerifier,
        revocations: Revocations,
        counters: Counters,
        *,
        routes: Sequence[tuple[str, Sequence[tuple[str, str]], str]],
        commands: Mapping[str, tuple[int, int]],
        policies: Sequence[tuple[str, str, int, int, int, bool]],
        classes: Sequence[Sequence[tuple[int, int]]],
        refusals: Mapping[str, _Prepared],
        limited: Sequence[_Prepared],
        not_allowed: Sequence[_Prepared],
        headers: tuple[Sequence[_Header], _Header, _Header],
        hosts: Sequence[bytes],
        proxies: Sequence[str],
        proxy_header: str,
        body_limit: int,
        token_bytes: int = 33554432,
        max_bytes: int = 67108864,
        shared: SharedMemory | None = None,
        leases: LeaseBook | None = None,
        own: Sequence[tuple[int, str, int]] = ...,
    ) -> Admission: ...
    def admit(
        self,
        scope: dict[str, Any],
        pages: bool = True,
        last: bool = True,
        now_s: float | None = None,
        now_ns: int | None = None,
    ) -> Admitted | tuple[dict[str, Any], dict[str, Any]] | None:
        """Decide about an HTTP request by its ASGI scope: what was admitted, or the two messages of a whole answer.

        Without `pages` nothing is answered with what a principal was given before. Without `last` there may be no
        answer yet (None): a strict policy waits for the next sync of its leases. The clocks are read unless given.

        Raises:
            TypeError: The scope or a header is not what ASGI says.
        """

    def admit_rsgi(
        self,
        scope: Any,  # noqa: ANN401 - RSGI
        pages: bool = True,
        last: bool = True,
        bare: int | None = None,
        many: int | None = None,
        now_s: float | None = None,
        now_ns: int | None = None,
    ) -> tuple[int, list[tuple[str, str]], bytes] | tuple[Admitted, dict[str, Any] | None] | None:
        """The same by an RSGI scope: status, headers and body, or what was admitted and its scope as ASGI has it.

        There is no scope for requests of the routes `bare` and `many` that have a body of known length.
        """

    def admit_handshake(
        self,
        scope: dict[str, Any],
        route: int,
        token: bytes | None = None,
        needs_token: bool = True,
        now_s: float | None = None,
        now_ns: int | None = None,
    ) -> tuple[str | None, tuple[int, int] | None, Admitted]:
        """Decide about a WebSocket handshake of the class `route`.

        Gives why it is refused (None when it is not), the policy and the seconds to wait when a window is used up, and
        what is known of it in any case. `token` came another way than by `Authorization`.
        """

    def admit_command(self, admitted: Admitted, command: str, now_ns: int | None = None) -> tuple[str, int, int] | None:
        """Decide about a command that became known in the body: why it is refused, the policy, the seconds to wait."""

    def check_token(self, token: bytes, now_s: float | None = None) -> tuple[str | None, Principal | None]:
        """Who a token speaks for that came in a message: why it is not acceptable, or the principal.

        No window is asked.
        """

    def replace_keys(self, verifier: TokenVerifier) -> None:
        """Put other keys in the place of the present ones; what the old ones have verified is forgotten at once."""

    def tokens(self) -> tuple[int, int, int, int]:
        """What is remembered: tokens answered from memory, tokens verified, bytes, tokens in memory."""

    @property
    def unknown_keys(self) -> int:
        """How many tokens named a key that is not known."""

    @property
    def key_count(self) -> int:
        """How many keys verify tokens."""

@final
class PlainCommand:
    """A command that asks for nothing special, ready to travel. Made by `PlainCommands` only.

    Its names are those of a `CommandFrame`.
    """

    seq: int

    @property
    def wait_ms(self) -> int:
        """0: it waits for nothing by nature."""

    @property
    def command(self) -> str:
        """Its name."""

    @property
    def args(self) -> bytes:
        """Its arguments, as they came."""

    @property
    def idempotency_key(self) -> str:
        """The client's key, or one that was made for it; empty where a key means nothing."""

    @property
    def environment(self) -> str | None:
        """The environment that it names."""

    @property
    def deadline_s(self) -> float:
        """Seconds that it may take."""

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""

    @property
    def shared(self) -> bool:
        """Whether its answer may be that of another one who asked the same."""

    @property
    def vital(self) -> bool:
        """Whether it passes where others are refused."""

    @property
    def mark_ns(self) -> int:
        """When its last phase ended, in monotonic nanoseconds."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """As a `CommandFrame`."""

    def answer(self, result: bytes, replayed: bool, own: Sequence[tuple[bytes, bytes]]) -> tuple[Any, ...]:
        """The whole answer: the two messages of ASGI, or the three arguments of RSGI.

        Args:
            result: JSON; empty stands for null.
            replayed: Whether it is that of an earlier request with the same key.
            own: Headers beside those that every response carries.
        """

    def over(self, status: int) -> None:
        """Count the request as over."""

@final
class PlainBatch:
    """A batch that asks for nothing special, with the frames of its operations. Made by `Hall` only.

    Nothing of it is charged before `pay`.
    """

    def __len__(self) -> int: ...
    def pay(self) -> bool:
        """Charge what limits its commands, in their order, up to the first that is refused; whether none is."""

    @property
    def paid(self) -> int | None:
        """How many operations, the first ones, are paid for; None before `pay`."""

    @property
    def body(self) -> bytes:
        """The body, as it came."""

    @property
    def deadline_s(self) -> float:
        """How long the most urgent of its operations may take, in seconds."""

    @property
    def first(self) -> int:
        """The number of the first operation; 0 before they have left."""

    @property
    def mark_ns(self) -> int:
        """When its last phase ended, in monotonic nanoseconds."""

    @property
    def group(self) -> Any:  # noqa: ANN401 - whatever `hand_over` was given
        """Who waits for its results in its place; None: nobody does."""

    def commands(self) -> list[tuple[int, PlainCommand]]:
        """The operations as plain commands, each with its place; numbered, if they have left."""

    def hand_over(self, group: Any) -> tuple[list[tuple[int, bytes, bool]], int]:  # noqa: ANN401 - given back
        """Let somebody else wait for what is missing: the results until now as `Settled.results` has them, and how many
        are missing.
        """

    def over(self, status: int) -> None:
        """Count the request as over."""

@final
class PlainCommands:
    """The commands that may be plain, with the limits of one gateway: one call reads a body and makes its frame.

    Args:
        admission: Decides about their limits.
        commands: Name, `idempotency`, whether answers may be shared, whether it is vital, and the roles that may call
            it.
        deadline_ms: Of a command that names none.
        made_key: How a key begins that is made for a request without one.

    Raises:
        ValueError: An `idempotency` is unknown.
    """

    def __new__(
        cls,
        admission: Admission,
        commands: Sequence[tuple[str, str, bool, bool, Sequence[str]]],
        *,
        deadline_ms: int,
        made_key: str,
    ) -> PlainCommands: ...
    def read(
        self, admitted: Admitted, body: bytes, since_ns: int, *, now_s: float | None = None
    ) -> PlainCommand | None:
        """Read the body of an admitted request, decide about its command and make its frame.

        None, and nothing charged, when it is to go the general way: it asks for more, may not, or is wrong. `since_ns`
        is when the phase before this one ended.
        """

    def read_batch(self, admitted: Admitted, body: bytes, since_ns: int) -> PlainBatch | None:
        """The same with the body of a batch, of which nothing is charged; None also for one that is too large."""

    def operations(
        self,
        admitted: Admitted,
        operations: list[Any],
        first: int,
        count: int,
        paid: int = 0,
    ) -> list[tuple[int, PlainCommand]]:
        """The same for operations of a request, which are read already; each with its place. No phase is counted.

        Args:
            admitted: What admission has found out about the request.
            operations: All of its `ExecuteRequest`.
            first: Where to begin.
            count: How many at most; it ends before the first that is to go the general way.
            paid: How many, the first of all, were charged before.
        """

@final
class Hall:
    """Where rides begin: plain commands on their way from the server's thread to the loop, without a task.

    Args:
        plain: Reads bodies and decides about their commands, in the thread that brings them.
        wake: Called when something has boarded and nothing had before.
        context: What the callbacks of bodies run in.
        timeout_s: How long a body may take.
        many: The index of the route whose bodies are batches.
    """

    def __new__(
        cls,
        plain: PlainCommands,
        wake: Callable[[], Any],
        context: Any,  # noqa: ANN401 - contextvars.Context
        timeout_s: float,
        many: int | None = None,
    ) -> Hall: ...
    def board(self, caller: Any, protocol: Any, admitted: Admitted) -> None:  # noqa: ANN401 - ASGI or RSGI
        """Ask for the body of an admitted request of ASGI or RSGI; what follows are callbacks.

        Args:
            caller: Has its `scope`, and is told what is raised (`err`), in whatever thread.
            protocol: Its protocol, which gets the answer.
            admitted: What admission has found out.
        """

    def join(
        self,
        command: PlainCommand,
        admitted: Admitted,
        done: Any,  # noqa: ANN401 - a future
    ) -> tuple[Ride, bool]:
        """Let a command board whose body was read elsewhere: its ride, and whether it is the first.

        `done` gets the result and whether that is an earlier one's.
        """

    def boarded(
        self, watch: bool
    ) -> tuple[list[Ride], list[Ride], list[Ride], list[tuple[Ride, bytes | dict[str, Any] | None]]]:
        """All that have boarded since the last time and are still there.

        The plain ones; those to be looked at (shared or vital); plain batches; and those that are not plain, with their
        bodies (a message of ASGI: it is not all of it; None: it was broken). With `watch` the loop looks by itself from
        now on, if there is any of the first two kinds.
        """

    def look(self) -> bool | None:
        """Whether something has boarded that nobody was called for.

        None: nothing has for a while, and from now on the loop is called at once.
        """

    def late(self, now_ns: int | None = None) -> list[Ride]:
        """Those whose body did not come in time; they board no more."""

    @property
    def boarding(self) -> int:
        """How many wait for their body."""

    @property
    def asked(self) -> int:
        """How many bodies are remembered as asked for just now: as many as came within a millisecond."""

@final
class Ride:
    """One command without a task, and the callback of its body. Made by `Hall` and `Express` only."""

    def __call__(self, body: Any, /) -> None:  # noqa: ANN401 - Granian's future
        """The body has come, or never will. Raises nothing."""

    def call(self) -> LaneCall | None:
        """On the lane: the request, to be answered another way; None when it is not there, or not there any more."""

    @property
    def is_of_lane(self) -> bool:
        """Whether it is one of the lane, not answered yet."""

    @property
    def number(self) -> int:
        """On the lane: the number of its call; else 0."""

    def ask_for_end(self) -> bool:
        """On the lane: ask to be told when the client is gone; False when it is already."""

    def leave(self) -> None:
        """Nobody waits for it any more: if it has not left yet, it does not."""

    @property
    def caller(self) -> Any:  # noqa: ANN401 - whatever `Hall.board` was given
        """What it was boarded with; None for one that joined, and on the lane."""

    @property
    def protocol(self) -> Any:  # noqa: ANN401 - ASGI or RSGI
        """What it was boarded with; None for one that joined."""

    @property
    def done(self) -> Any:  # noqa: ANN401 - a future
        """Who waits for its end; None: nobody."""

    @property
    def group(self) -> Any:  # noqa: ANN401 - whatever `depart_many` was given
        """Who waits for it and for others of one request; None: it is alone."""

    @property
    def place(self) -> int:
        """Its place among those."""

    @property
    def admitted(self) -> Any:  # noqa: ANN401 - Admitted, but for one of a group
        """What admission has found out."""

    @property
    def command(self) -> PlainCommand | None:
        """Its command; None as long as none was read."""

    @property
    def batch(self) -> PlainBatch | None:
        """Its batch; None: it is none, or none was read."""

    @property
    def of(self) -> Any:  # noqa: ANN401 - Ride, whose batch is there
        """The ride of the batch that it is an operation of; None: it is none."""

    @property
    def until_s(self) -> float:
        """When nobody waits any more, by the loop's clock; 0 before it has left."""

@final
class Shortcut:
    """A loop's `call_soon_threadsafe` that does at once, in the thread that calls, what needs no loop.

    A ride boards where its body came; a request that Granian would begin as a task may be taken.

    Args:
        ordinary: What everything else is for.
        take: Told what a task would be about, after how it is made and its coroutine; true when it needs none.
    """

    def __new__(cls, ordinary: Callable[..., Any], take: Callable[[Any], bool]) -> Shortcut: ...
    def __call__(self, *args: Any, context: Any = None) -> Any:  # noqa: ANN401 - asyncio's
        """Call soon."""

@final
class Express:
    """What is outstanding of plain commands that have no task, and who gets which reply."""

    def __new__(cls) -> Express: ...
    def __len__(self) -> int: ...
    @property
    def waited_for(self) -> int:
        """How many are waited for; others are not over yet."""

    def depart(
        self, rides: list[Ride], first: int, *, stream: int, life: int, now_s: float, grace_s: float
    ) -> list[PlainCommand]:
        """Let rides leave; their commands, which have their numbers now.

        Args:
            rides: Each has a command.
            first: The number of the first one.
            stream: Names where they leave.
            life: Of the breaker.
            now_s: The moment, by the loop's clock.
            grace_s: How much later than its deadline a command is over.

        Raises:
            ValueError: A ride has no command.
        """

    def depart_many(
        self,
        group: Any,  # noqa: ANN401 - given back
        members: list[tuple[int, PlainCommand]],
        first: int,
        *,
        stream: int,
        life: int,
        now_s: float,
        grace_s: float,
    ) -> list[PlainCommand]:
        """The same for commands of one request, each with its place in it."""

    def depart_batch(
        self, ride: Ride, first: int, *, stream: int, life: int, now_s: float, grace_s: float
    ) -> list[PlainBatch]:
        """The same for all operations of a batch: the batch, which stands for all of them in `joined`.

        Raises:
            ValueError: The ride has no batch.
        """

    def settle(
        self,
        message: bytes,
        *,
        stream: int,
        life: int,
        now_s: float,
        since_s: float,
        own: Callable[[Any], list[tuple[bytes, bytes]]] | None = None,
    ) -> Settled:
        """Take what came on a stream: answer those who wait for it, and tell the rest.

        Args:
            message: A `ReplyBatch`.
            stream: Where it came.
            life: Of the breaker.
            now_s: The moment.
            since_s: What left before is not in `took`.
            own: The headers of an answer to this scope beside those of every response.

        Raises:
            ValueError: It is no message.
        """

    def abandon(self, seq: int) -> int | None:
        """Nobody waits for a reply any more: the stream where it would come; None when nobody did before."""

    def sweep(self, now_s: float, long_s: float) -> tuple[list[tuple[Ride, int, float, int, bool, bool]], list[Ride]]:
        """What has no time left, and is over now; and rides that left before `long_s` and were not told here yet.

        Of the former: stream, when it left, life, whether it was waited for, whether it is one of a group.
        """

    def lost(self, stream: int) -> tuple[list[Ride], int, int]:
        """A stream has ended: those on it that were waited for; how many were alone, and how many of groups."""

@final
class Settled:
    """What one message meant. Made by `Express` only."""

    @property
    def answered(self) -> int:
        """Commands that were waited for."""

    @property
    def of_life(self) -> int:
        """Of these, those of the life that was asked for."""

    @property
    def of_many(self) -> int:
        """Of these, those of groups."""

    @property
    def forgotten(self) -> tuple[int, int]:
        """Commands that nobody waited for any more, and how many of these are of groups."""

    @property
    def foreign(self) -> int:
        """Replies on a stream where nobody had asked."""

    @property
    def took(self) -> list[tuple[str, int, float]]:
        """The name of each command, how many came to their end, and how long they took together."""

    @property
    def marked(self) -> list[Ride]:
        """Rides that are over, and that were shared or told here as long."""

    @property
    def others(self) -> list[tuple[Ride, bytes]]:
        """Those whose reply is no plain result, with its frame."""

    @property
    def results(self) -> list[tuple[Any, list[tuple[int, bytes, bool]]]]:
        """Groups with the results for them: place, result, and whether it is an earlier one's."""

    @property
    def counted(self) -> list[tuple[str, int]]:
        """Of batches that were answered: the name of each command, and how many there were."""

    @property
    def rest(self) -> bytes | None:
        """Frames of what is not here, as a `ReplyBatch`; None: there are none."""

def batch_results(
    results: list[tuple[int, bytes, bool]], operations: list[Any], request_id: str, meta: bytes, replayed_meta: bytes
) -> tuple[list[tuple[int, bytes]], list[tuple[str, int]]]:
    """The results of operations as JSON (`BatchResult`), each with its place; and how many there were of each command.

    Args:
        results: The place of each, its result, and whether that is an earlier one's.
        operations: All `ExecuteRequest` of the batch.
        request_id: Of the batch.
        meta: What is said beside a result of now, as JSON.
        replayed_meta: And beside an earlier one's.
    """

@overload
def joined(frames: list[Any]) -> bytes: ...
@overload
def joined(frames: list[Any], most: int) -> bytes | None:
    """Frames as a `CommandBatch`: plain commands, plain batches, and whatever has a `SerializeToString`.

    None: there are more than `most`.
    """

def reasons() -> list[str]:
    """The words of all refusals, in the order in which `Counters` counts them."""

def segments(path: bytes) -> list[str] | None:
    """The segments of a path, decoded; None when there is something to suspect about it."""

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

_Told: TypeAlias = tuple[str, str, int, int, int, bytes]
_Place: TypeAlias = tuple[str, int, dict[str, int]]

@final
class Hub:
    """All events and connections of one process: who hears what, and what each connection has still to get.

    Connections that are made here are those of the ASGI face; `take` serves them alone. A `RealtimeListener` has its
    own in the same hub, and its threads wake by themselves when something is due for them.

    Events are `(tenant, topic, seq, prev, ts_us, data)`: `seq` is the journal's number, or the line of a log; `data` is
    JSON. Places are `(epoch, seq, last line by execution)`. Connections are handles. Times are milliseconds of a clock
    that never goes back.

    Args:
        local_epoch: the history of topics of this process alone (`bench.`), another one in each process.
        topic_bytes: what is remembered of one topic, 4 MiB.
        total_bytes: what is remembered in all, 48 MiB.
        max_subscriptions: patterns of one connection, 256.
        max_connections: 20,000.
        rules: For topics of applications, in the order in which they count: a pattern; the member of `data` of which a
            slow client gets only the newest event of each value; and what is remembered of one topic: bytes, events,
            milliseconds. None: nothing of the kind.
    """

    def __new__(
        cls,
        local_epoch: str,
        *,
        topic_bytes: int | None = None,
        total_bytes: int | None = None,
        max_subscriptions: int | None = None,
        max_connections: int | None = None,
        rules: Sequence[tuple[str, str | None, int | None, int | None, int | None]] | None = None,
    ) -> Hub: ...
    @property
    def seq(self) -> int:
        """How far the journal was heard."""

    @property
    def epoch(self) -> str:
        """The present history; empty before the first."""

    @property
    def order(self) -> int:
        """The number of the latest event in the order in which this process heard them."""

    def position(self) -> _Place:
        """How far this process has come with all topics of all tenants."""

    def restart(self, epoch: str, seq: int, reason: str, now_ms: int) -> None:
        """Begin anew in a history, after this number of its journal. Who subscribed is told, unless it is the first."""

    def append(self, events: list[_Told], now_ms: int) -> int:
        """Remember events; how many of them had not been heard before."""

    def advance(self, seq: int) -> None:
        """Everything of the journal up to here was considered."""

    def over(self, tenant: str, execution: str) -> None:
        """An execution is over: its log leaves positions after a while."""

    def publish(self, tenant: str, topic: str, ts_us: int, data: bytes, now_ms: int) -> int:
        """Tell an event that is in no journal, of `app.*`, `user.*`, `presence.*` or `bench.*`; the number it got.

        Raises:
            ValueError: it is another topic, or the data is not UTF-8.
        """

    def publish_all(self, events: Sequence[tuple[str, str, int, bytes]], now_ms: int) -> None:
        """The same for many events, `(tenant, topic, ts_us, data)`, all of them or none; what is not UTF-8 is U+FFFD.

        Raises:
            ValueError: one is of another topic.
        """

    def numbers_of(self, tenant: str, topics: Sequence[str]) -> list[int]:
        """The number of the latest event of each of these topics of this process alone (`bench.*`); 0: none."""

    def publish_series(
        self,
        tenant: str,
        topic: str,
        topics: int | None,
        data: bytes,
        places: tuple[int, int],
        *,
        from_us: int,
        step_us: float,
        now_ms: int,
    ) -> None:
        """Make and tell events of a series on topics of this process alone, from one place of it up to another.

        The data of each is `{"at","n","data"}`: when it was due, how many its topic had before, and `data`.

        Args:
            tenant: whose topics they are.
            topic: of all of them; with `topics` they go to `topic.0`, `topic.1`, … in turn, so many.
            topics: how many.
            data: JSON.
            places: the first, and the one behind the last; the first of the series is 0.
            from_us: when that was due.
            step_us: so long after it the next one is.
            now_ms: the hub's time.

        Raises:
            ValueError: it is another topic, or the data is not UTF-8.
        """

    def note_presence_of(self, patterns: list[str]) -> None:
        """Note from now on who hears the topics of these patterns, of both faces."""

    def presence_changes(self) -> list[tuple[str, str, str, bool]]:
        """Tenant, topic and subject of each connection that began (True) or ceased to hear such a topic, in order."""

    def lose(self, reason: str, now_ms: int) -> None:
        """Ephemeral events were lost on their way here: whoever may miss one is told, and they begin a new epoch."""

    def connect(self, tenant: str, subject: str, classes: list[str], dialect: str) -> int | None:
        """Let a connection in that may hear these classes of topics; None when there are too many.

        Behind the classes there may be rules for topics of applications, of which the first that fits counts: a pattern
        behind `+` (open) or `-` (closed).

        Args:
            tenant: whose topics are heard.
            subject: who hears them.
            classes: what the permissions open.
            dialect: `plain`, `batched` or `stream` (`text/event-stream`).

        Raises:
            ValueError: there is no such class or dialect.
        """

    def disconnect(self, conn: int) -> None:
        """Forget a connection."""

    def laggards(self, most: int) -> list[tuple[int, int]]:
        """The connections that are furthest behind, the furthest first, and how many events were heard since."""

    def set_rights(self, conn: int, subject: str, classes: list[str], now_ms: int) -> list[str]:
        """Give a connection other rights; the patterns that it has no longer."""

    def subscriptions(self, conn: int) -> list[str]:
        """The patterns of a connection, in order."""

    def subscribe(
        self, conn: int, patterns: Sequence[str], from_: str | None, now_ms: int
    ) -> tuple[str | None, list[str], _Place | None]:
        """Let a connection hear topics or patterns, all or none of them, from now or from a position on.

        Returns:
            Why not, or None; frames to send at once; and where the daemon's history is needed from, which goes to
            `backfill`. Until it is complete or given up, the connection gets nothing.
        """

    def unsubscribe(self, conn: int, pattern: str, now_ms: int) -> bool:
        """Let a connection no longer hear a topic or a pattern; whether it did."""

    def backfill(
        self, conn: int, epoch: str, events: list[_Told], journal_seq: int, is_last: bool, now_ms: int
    ) -> tuple[list[str], bool] | None:
        """Give a connection what the daemon tells: frames to send, and whether it goes on from memory now.

        None when it is not catching up any more, or with another history: then `give_up`.
        """

    def give_up(self, conn: int, reason: str, now_ms: int) -> str | None:
        """End the catching up of a connection: the gap to send, if it was."""

    def take(self, now_ms: int, room: int) -> list[tuple[int, tuple[str | bytes, ...]]]:
        """At most `room` connections that are due, each with its frames. They get no more until they are `writable`.

        Frames are text, those of streams bytes.
        """

    def writable(self, conn: int, now_ms: int) -> None:
        """A connection has written what it was given."""

    def has_passed(self, conn: int, order: int) -> bool:
        """Whether a connection was given everything up to this order."""

    def wakes_at(self) -> int | None:
        """When `take` has something next; None when it waits for events."""

    def spent(self, frames: int, busy_us: int) -> None:
        """Writing so many frames took so long: the more it is, the more events travel together."""

    def sweep(self, now_ms: int) -> None:
        """Drop what is too old."""

    def stats(self) -> dict[str, int]:
        """What was counted, and what there is now, by name, for both faces."""

    def gaps(self) -> dict[str, int]:
        """Gaps that connections were told, by reason."""

    def ages(self) -> tuple[list[int], float]:
        """Frames by how long their oldest event was here before they were given to a connection.

        Cumulative counts by `age_bounds` (the last is all of them), and the sum in seconds. What a connection gets of
        the past that it asked for is not in it; a frame that it did not take counts again when it is given again.
        """

    @staticmethod
    def age_bounds() -> list[float]:
        """The upper bounds, in seconds."""

def check_certificate(chain: bytes, key: bytes) -> None:
    """Hold that a certificate chain and its key, in PEM, can be used by the native listeners.

    Raises:
        ValueError: They cannot, and why.
    """

@final
class Lane:
    """An HTTP server of our own, with a thread of its own: HTTP/1.1, HTTP/2 and WebSockets, over TLS where configured.

    It decides about each request as `Admission.admit` does, and answers what that answers: refusals and kept pages.
    What else there is lies on a desk until it is taken.

    Args:
        admission: Paths, tokens and windows.
        listening: The descriptor of a socket that listens; it is copied.
        bare: The index of the route whose plain commands board in a hall.
        many: The index of the route whose plain batches do.
        never_waits: Whether no policy ever waits for a lease.
        body_timeout_s: How long a body may take.
        cors: What is said beside the headers of every response to a page that may not ask, to each that may by its
            origin, and to any other where all may.
        tls: Certificate chain and key in PEM.

    Raises:
        ValueError: Certificate or key cannot be used.
        OSError: There is no thread, or no way to wait for sockets.
    """

    def __new__(
        cls,
        admission: Admission,
        listening: int,
        *,
        bare: int | None = None,
        many: int | None = None,
        never_waits: bool = True,
        body_timeout_s: float = 25.0,
        cors: tuple[list[tuple[bytes, bytes]], dict[bytes, list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]] | None]
        | None = None,
        tls: tuple[bytes, bytes] | None = None,
    ) -> Lane: ...
    def fileno(self) -> int:
        """The descriptor that is readable when something lies on the desk."""

    def take(self, hall: Hall | None) -> tuple[list[LaneCall], list[LaneSocket], list[tuple[int, Any]]]:
        """Take what lies there.

        Commands that may be plain board in the hall; without one they are calls as others are. Then there are calls,
        sockets, and what calls and sockets are told by their numbers: True, there is room; None, the client is gone; a
        text or bytes that a socket has said, or the code that it has ended with.
        """

    def stop(self, within_s: float) -> None:
        """Take no more connections, let what is under way end within this time, and end. It blocks."""

@final
class LaneCall:
    """A request of the lane, to be answered once. Dropped without an answer, it ends its connection."""

    @property
    def number(self) -> int:
        """What it is told by."""

    @property
    def admitted(self) -> Admitted | None:
        """What admission has found out; None where it has to wait for a lease."""

    @property
    def body(self) -> bytes | Literal["too_large", "late", "broken"]:
        """The whole body, or what is wrong with it."""

    def scope(self) -> dict[str, Any]:
        """The request as ASGI has it."""

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Answer with a whole body; False when nobody waits any more.

        Raises:
            ValueError: A header or the status cannot be sent.
            RuntimeError: It has been answered.
        """

    def stream(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin an answer whose body comes in parts; raises as `answer` does."""

    def part(self, body: bytes) -> bool | None:
        """Send a part: True when it is on its way, False when there is no room yet, None when the client is gone.

        Where there is no room it is told of it when there is.
        """

    def end(self) -> None:
        """That was the last part."""

    def cut(self) -> None:
        """Give the answer up: a connection with none, or with half of one, is cut."""

    def ask_for_end(self) -> bool:
        """Ask to be told when the client is gone; False when it is already."""

@final
class LaneSocket:
    """A WebSocket of the lane. Dropped, it is closed."""

    @property
    def number(self) -> int:
        """What it is told by."""

    def scope(self) -> dict[str, Any]:
        """The handshake as ASGI has it."""

    def accept(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Let it in, with these headers beside those of every handshake.

        Raises:
            ValueError: A header cannot be sent.
            RuntimeError: It has been decided about.
        """

    def refuse(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send it away; raises as `accept` does."""

    def text(self, text: str) -> bool | None:
        """Send text: as `LaneCall.part`."""

    def binary(self, body: bytes) -> bool | None:
        """Send bytes: as `LaneCall.part`."""

    def close(self, code: int, reason: str) -> bool | None:
        """End it: as `LaneCall.part`."""

    def took(self) -> None:
        """A message of the client was taken; the next one may come."""

    def drop(self) -> None:
        """Nobody serves it any more."""

@final
class LeaseBook:
    """A node's leases: what it may spend of limits that all nodes of a fleet share (docs/decisions/0005).

    The admission core spends from it; `flx_api.limits.redis` keeps it in touch with Redis: `collect` packs a call,
    `apply` takes the answer, `lost` says that there is none. One call is under way at a time.

    Args:
        policies: `(name, limit, window_ms, "fast" | "strict")`, in the order of their indices.
        max_bytes: Bounds everything the book remembers.
        grace_ms: How long a fleet that begins anew grants nothing, so that every node can tell first what it spent.
        node: The node's random number, and
        seed: the random seed of keys it proposes to an empty fleet; None draws them.

    Raises:
        ValueError: A limit, window or mode is out of range, or `max_bytes` holds no 16 keys.
    """

    def __new__(
        cls,
        policies: Sequence[tuple[str, int, int, str]],
        *,
        max_bytes: int = 67108864,
        grace_ms: int = 1000,
        node: int | None = None,
        seed: tuple[int, int] | None = None,
    ) -> LeaseBook: ...
    def hit(self, policy: int, key: bytes, now_ns: int, cost: int = 1) -> tuple[int, int, int]:
        """Check and, when admitted, count: `(verdict, remaining, reset_ns)`.

        The verdicts: 0 admitted, 1 refused, 2 unknown (strict: wait for the next sync and ask again), 3 unavailable
        (strict, and Redis is away).

        Raises:
            ValueError: `cost` is 0.
        """

    def due_in(self, now_ns: int) -> int | None:
        """Nanoseconds until a call is worthwhile; None while one is under way."""

    def collect(self, now_ns: int, most: int, sha: bytes) -> bytes | None:
        """A call with up to `most` reports, as a RESP command (EVALSHA of this hex digest); None if nothing is due."""

    def apply(self, answer: bytes, now_ns: int) -> None:
        """Take the answer to the call under way.

        Raises:
            ValueError: It is none; the call counts as lost.
        """

    def lost(self, now_ns: int, away: bool) -> None:
        """No answer came. `away`: from now on the node goes on without Redis, until an answer comes."""

    def close(self) -> bool:
        """From now on the calls return everything. True when nothing is left to return."""

    def ready(self, now_ns: int) -> bool:
        """Whether leases can be had."""

    @property
    def away(self) -> bool:
        """Whether the node goes on without Redis."""

    @property
    def nodes(self) -> int:
        """Nodes of the fleet as last told."""

    @property
    def keys(self) -> int:
        """Keys remembered."""

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Since the start: calls answered, units leased, owed, spent without Redis; checks that had to wait."""

@final
class Roster:
    """The open connections of a gateway process, on either face, and whose tokens let them in.

    A connection has a number here, which is never used again, and a handle by which its face knows it.
    """

    def __new__(cls) -> Roster: ...
    def enter(self, principal: Principal, client_id: str, handle: int, since_us: int) -> int:
        """A connection of the main port comes; its number. Those of the native listener enter by `accept`."""

    def leave(self, number: int) -> None:
        """It leaves."""

    def renew(self, number: int, principal: Principal) -> bool:
        """Another token is in force for a connection; False when it has left."""

    def principal(self, number: int) -> Principal | None:
        """Whose token is in force for a connection; None when it has left."""

    def revoked(self, revocations: Revocations) -> list[tuple[bool, int]]:
        """Those whose tokens were revoked: whether the native listener has it, and its handle. Detached meanwhile."""

    def find(
        self,
        tenant: str,
        *,
        number: int | None = None,
        subject: str | None = None,
        client_id: str | None = None,
        until_us: int,
    ) -> list[tuple[bool, int]]:
        """A tenant's connections that came no later than `until_us` and of which all that is given is true."""

    def page(
        self, tenant: str, subject: str | None, after: tuple[int, int], limit: int
    ) -> list[tuple[int, str, str, bool, int, int]]:
        """A tenant's connections (of a subject) behind a moment and a number, in the order of both.

        Number, client id, subject, whether the native listener has it, since when (microseconds), `exp` of its token.
        """

    def known_as(self, tenant: str, handles: set[int]) -> list[tuple[int, tuple[int, str, str, bool, int, int]]]:
        """A tenant's connections that the hub knows by these handles: each with its handle, as `page` tells it."""

    def all(self) -> list[tuple[bool, int]]:
        """All of them, in the same form."""

    def __len__(self) -> int: ...

@final
class RealtimeListener:
    """The native listener of a gateway, for WebSockets and event streams: threads of its own on the process's hub.

    The threads never enter Python. What they ask for is fetched with `questions` when `fileno` is readable; a
    connection or its key in the hub is a number that means nothing else.

    Args:
        hub: What its connections hear.
        host: The IP address to listen on.
        port: The port; 0 takes any free one.
        threads: How many there are; connections are spread evenly over them.
        clock: Monotonic seconds: the clock whose milliseconds the hub is told.
        roster: Who is here; its connections enter it and leave it.
        refusals: Whole HTTP answers to what is no handshake, by fault; sixteen zeros in one become a request id.
        connections: WebSockets at most.
        per_subject: WebSockets of one subject (of its tenant) at most.
        ping_ms: Milliseconds between two signs of life.
        tls: Certificate chain and private key, PEM; None listens without TLS.
        deflate: Whether messages are compressed for clients that offer it (RFC 7692).
        io_uring: Whether frames to many clients leave by one system call, where the kernel permits it.

    Raises:
        OSError: The address cannot be listened on.
        ValueError: The host is no IP address, an answer is missing, or certificate and key cannot be used.
    """

    @property
    def port(self) -> int:
        """Where it listens."""

    def __new__(
        cls,
        hub: Hub,
        host: str,
        port: int,
        *,
        threads: int,
        clock: Callable[[], float],
        roster: Roster,
        refusals: dict[str, bytes],
        connections: int,
        per_subject: int,
        ping_ms: int = 25_000,
        tls: tuple[bytes, bytes] | None = None,
        deflate: bool = False,
        io_uring: bool = True,
    ) -> RealtimeListener: ...
    def fileno(self) -> int:
        """The descriptor that is readable when there are questions."""

    def questions(self) -> list[tuple[Any, ...]]:
        """What was asked since the last call.

        `("handshake", conn, method, (address, port), path, query, headers)`: may it come in? `accept` or `refuse`
        answers; with a method it is a request for a stream, and `accept_stream` or `refuse` does.
        `("history", conn, key, patterns, (epoch, seq, last line by execution))`: what does the daemon have of patterns
        since there? `backfill` answers, or `give_up`. `("room", conn)`: a connection has taken what `backfill` gave it.
        `("refresh", conn, key, number in the roster, token)`: may it go on with this token? `renew` and `say` answer.
        """

    def accept(
        self,
        conn: int,
        client_id: str,
        *,
        principal: Principal,
        classes: Sequence[str],
        subprotocol: str | None,
        dialect: str,
        ends_in_s: float,
        since_us: int,
    ) -> str | None:
        """Let a handshake in; why not, when not: `taken` (the client id, by somebody else), `full`, or `gone`.

        `subprotocol` is what the answer says, `dialect` how events are written (as for `Hub.connect`).

        Raises:
            ValueError: There is no such class of topics, no such subprotocol, or no such dialect.
        """

    def accept_stream(
        self,
        conn: int,
        head: bytes,
        *,
        principal: Principal,
        classes: Sequence[str],
        topics: Sequence[str],
        from_: str | None,
        ends_in_s: float,
        since_us: int,
    ) -> str | None:
        """Let in who only listens, to these topics from a position on; `head` begins the answer, whose body is chunked.

        Returns:
            Why not, when not: `full` or `gone`, or as `Hub.subscribe`.

        Raises:
            ValueError: There is no such class of topics.
        """

    def refuse(self, conn: int, answer: bytes) -> None:
        """Send a handshake away with a whole HTTP answer."""

    def renew(self, conn: int, key: int, subject: str, classes: Sequence[str], ends_in_s: float) -> list[str]:
        """Give a connection the rights and the end of another token; the patterns that it has no longer.

        Raises:
            ValueError: There is no such class of topics.
        """

    def say(self, conn: int, messages: Sequence[str], *, is_complaint: bool = False) -> None:
        """Send messages to a connection; a complaint counts against it."""

    def close(self, conns: Sequence[int], code: int, reason: str) -> None:
        """Close connections with a code and a reason of 123 bytes at most."""

    def is_free(self, client_id: str, tenant: str, subject: str) -> bool:
        """Whether nobody else holds this client id."""

    def backfill(
        self,
        conn: int,
        key: int,
        epoch: str,
        events: Sequence[tuple[str, str, int, int, int, bytes]],
        journal_seq: int,
        *,
        is_last: bool,
    ) -> bool | None:
        """Give a connection a batch of what the daemon tells: whether that was all; None when the history has ended."""

    def give_up(self, conn: int, key: int, reason: str) -> None:
        """Tell a connection that the history it waits for cannot be had."""

    def closed(self) -> dict[int, int]:
        """Connections that have ended, by close code: 1005 when the client left, whatever it said."""

    def deflated(self) -> tuple[int, int, int]:
        """Frames that were compressed, their bytes times connections that got them so, and what these were sent."""

    def rings(self) -> int:
        """How many threads send by io_uring; those whom the kernel refused it send one by one."""

    def is_alive(self) -> bool:
        """Whether all its threads are at work; one ends early only by a bug, or with `stop`."""

    def drain(self, within_ms: int) -> None:
        """Send everybody away, spread over some time, and refuse who comes."""

    def stop(self) -> None:
        """Close what is open and end the thread; takes a few seconds at most."""

    def __len__(self) -> int:
        """How many connections there are."""

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

def asgi_scope(scope: Any) -> dict[str, Any]:  # noqa: ANN401 - RSGI
    """What ASGI calls a scope, made of one of RSGI: `headers`, `raw_path` and the rest, but no `client`.

    RSGI has no raw path and leaves out headers that are not ASCII: what cannot have stood in a path is escaped again,
    and such a header is there with a value that nothing accepts.
    """

def check_json(text: bytes, max_depth: int) -> Literal["malformed", "too_deep", "name_twice"] | None:
    """What is wrong with a text as one strict JSON value (RFC 8259); None when it is one.

    Refused beyond the RFC: a name twice in one object (`name_twice`, when nothing else is wrong), more than `max_depth`
    brackets open at once (`too_deep`, wherever they stand and whatever else is wrong), integers of more than 4,300
    characters, numbers beyond a double, lone surrogates and a byte order mark. Linear in the length of the text.

    Args:
        text: The whole text.
        max_depth: Objects and arrays inside one another, the outermost counted; 0 to 255.
    """

def negotiate(protocol_header: str | None) -> tuple[Literal["flx.v1"] | None, bytes | None]:
    """What `Sec-WebSocket-Protocol` offers: the subprotocol to answer with, and the token of a `bearer.<token>` entry.

    Several header lines are to be joined with a comma. The `bearer.` entry is never to be echoed.

    Raises:
        ValueError: The list is malformed (empty entries, an entry twice, two tokens, over 16 entries or 9 KiB).
    """

def close_codes() -> dict[int, str]:
    """The close codes of the native listener, and what its Close frames say."""

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
