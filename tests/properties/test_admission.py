"""Admission against its naive twin: any policies, any requests, and what is answered, charged and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.properties.naive_admission import EXACT, Ask, Twin, Who
from tests.small_admission import (
    BODY_LIMIT,
    CLASSES,
    COMMANDS,
    NOW,
    NOWHERE,
    WEBSOCKET,
    Headers,
    Policy,
    RsgiScope,
    Small,
    bearer,
    scope,
    token,
)

from flx_api._core import Admitted

if TYPE_CHECKING:
    from collections.abc import Sequence

FIXED = settings(derandomize=True, database=None, max_examples=150)
START = 10**15

ADDRESSES = ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
PRINCIPALS = [Who("ann", None), Who("ann", "t"), Who("bob", "t")]
GOOD = {who: bearer(*who) for who in PRINCIPALS}
_ANN = token()
TOKEN_FAULTS: Final[dict[str, tuple[Headers, str]]] = {
    "none": ([], "missing_token"),
    "basic": ([(b"authorization", b"Basic YTpi")], "missing_token"),
    "empty": ([(b"authorization", b"Bearer")], "malformed_credentials"),
    "spaces": ([(b"authorization", b"Bearer  x y")], "malformed_credentials"),
    "no parts": ([(b"authorization", b"Bearer x")], "malformed_token"),
    "long": ([(b"authorization", b"Bearer " + b"x" * 9000)], "token_too_large"),
    "forged": ([(b"authorization", b"Bearer " + _ANN[:-4] + b"AAAA")], "invalid_signature"),
    "old": (bearer(exp=NOW), "expired"),
    "revoked": (bearer(jti="gone"), "revoked"),
    "stranger": ([(b"authorization", b"Bearer " + token(header={"kid": "other"}))], "unknown_key"),
    "twice": ([(b"authorization", b"Bearer " + _ANN)] * 2, "invalid_request"),
}
# Route and values.
PATHS: Final[dict[str, tuple[int, tuple[str, ...]] | None]] = {
    "/open": (0, ()),
    "/closed": (1, ()),
    "/closed?a=/%2e": (1, ()),
    "/probe": (2, ()),
    "/things/a%20b": (3, ("a b",)),
    "/run/dear.one": (4, ("dear.one",)),
    "/run/unknown": (4, ("unknown",)),
    "/cheap.one": (5, ("cheap.one",)),
    "/": None,
    "/nodot": None,
    "/closed/": None,
    "//closed": None,
    "/CLOSED": None,
    "/things/%2e%2e": None,
    "/things": None,
}
ACCESS = [
    {"GET": "public", "POST": "public"},
    {"GET": "token", "POST": "token"},
    {"GET": "probe"},
    {"GET": "token"},
    {"POST": "token"},
    {"POST": "token"},
]
_JSON = (b"content-type", b"application/json")
# Headers, what is wrong with them, and the length.
BODIES: Final[dict[str, tuple[Headers, str | None, int | None]]] = {
    "none": ([], None, 0),
    "empty": ([(b"content-length", b"0")], None, 0),
    "json": ([(b"content-length", b"%d" % BODY_LIMIT), _JSON], None, BODY_LIMIT),
    "large": ([(b"content-length", b"%d" % (BODY_LIMIT + 1)), _JSON], "payload_too_large", None),
    "nonsense": ([(b"content-length", b"+2"), _JSON], "invalid_length", None),
    "twice": ([(b"content-length", b"2"), (b"content-length", b"2"), _JSON], "two_lengths", None),
    "both": ([(b"content-length", b"2"), (b"transfer-encoding", b"chunked"), _JSON], "two_lengths", None),
    "chunked": ([(b"transfer-encoding", b"chunked")], None, None),
    "keys": ([(b"idempotency-key", b"a"), (b"idempotency-key", b"a")], "two_keys", None),
    "zipped": ([(b"content-encoding", b"gzip"), (b"content-length", b"2"), _JSON], "unsupported_encoding", None),
    "text": ([(b"content-type", b"text/plain"), (b"content-length", b"2")], "unsupported_media_type", None),
}
HOSTS: Final[dict[str, list[bytes]]] = {
    "good": [b"Gateway:8000"],
    "strange": [b"elsewhere"],
    "none": [],
    "twice": [b"gateway", b"gateway"],
    "bad": [b"gate way"],
}
STATUS = {
    "missing_token": 401,
    "invalid_request": 400,
    "rate_limited": 429,
    "invalid_host": 400,
    "not_found": 404,
    "method_not_allowed": 405,
    "two_lengths": 400,
    "two_keys": 400,
    "invalid_length": 400,
    "payload_too_large": 413,
    "unsupported_encoding": 415,
    "unsupported_media_type": 415,
}


class Sent(NamedTuple):
    """A request as it is drawn."""

    step_ns: int
    method: str
    path: str
    address: str
    credentials: Who | str
    api_key: str | None
    host: str
    body: str

    def scope(self) -> dict[str, Any]:
        """As the server hands it over."""
        proof = GOOD[self.credentials] if isinstance(self.credentials, Who) else TOKEN_FAULTS[self.credentials][0]
        headers = [(b"host", host) for host in HOSTS[self.host]]
        headers += [*proof, *BODIES[self.body][0], (b"x-authorization", b"Bearer x")]
        if self.api_key is not None:
            headers.append((b"x-api-key", self.api_key.encode()))
        return scope(self.method, self.path, headers, host=None, client=self.address)

    @property
    def found(self) -> tuple[int, tuple[str, ...]] | None:
        """Route and values."""
        return PATHS[self.path]

    @property
    def access(self) -> str | None:
        """What is asked of it; None where the path does not have the method."""
        if self.found is None:
            return None
        if self.method == "OPTIONS":
            return "public"
        return ACCESS[self.found[0]].get("GET" if self.method == "HEAD" else self.method)

    @property
    def early_fault(self) -> str | None:
        """What is wrong before anybody asks for a token."""
        if self.host != "good":
            return "invalid_host"
        if self.found is None:
            return "not_found"
        return "method_not_allowed" if self.access is None else None

    @property
    def request_class(self) -> int:
        """The class: the route's, or that of the command in the path."""
        if self.found is None:
            return NOWHERE
        route, values = self.found
        return COMMANDS.get(values[0], (route,))[0] if route in {4, 5} else route

    def ask(self, classes: Sequence[list[tuple[int, int]]], now_ns: int) -> Ask:
        """What the twin judges."""
        judged = self.early_fault is None and self.access == "token"
        return Ask(
            tolls=[] if self.early_fault is None and self.access == "probe" else classes[self.request_class],
            address=self.address,
            api_key=self.api_key,
            who=self.credentials if judged and isinstance(self.credentials, Who) else None,
            token_fault=TOKEN_FAULTS[self.credentials][1] if judged and isinstance(self.credentials, str) else None,
            later_fault=self.early_fault or BODIES[self.body][1],
            now_ns=now_ns,
        )


@st.composite
def drawn_policies(draw: st.DrawFn) -> tuple[list[Policy], list[list[tuple[int, int]]]]:
    """Policies, several of which may be windows of one, and what each class passes."""
    policies: list[Policy] = []
    for index in range(draw(st.integers(0, 5))):
        limit = draw(st.one_of(st.integers(1, 6), st.sampled_from([EXACT, EXACT + 1, 100])))
        by = draw(st.sampled_from(["ip", "subject", "tenant", "api_key"]))
        window = draw(st.sampled_from([64, 640, 5000]))
        cost = draw(st.integers(max(1, limit // 4), max(1, limit // 2)))
        policies.append(Policy(f"p{index}", by, limit, window, cost, draw(st.booleans())))
    classes = []
    for _ in range(CLASSES):
        passed = draw(st.lists(st.sampled_from(range(len(policies))), unique=True)) if policies else []
        classes.append([(index, draw(st.sampled_from([1, policies[index].cost]))) for index in passed])
    return policies, classes


def often(usual: list[Any], rest: list[Any]) -> st.SearchStrategy[Any]:
    """Mostly the usual: a window is used up only by requests that come through."""
    return st.one_of(st.sampled_from(usual), st.sampled_from(usual), st.sampled_from(rest))


drawn_requests = st.lists(
    st.builds(
        Sent,
        step_ns=st.one_of(st.integers(0, 3), st.sampled_from([10**7, 64 * 10**6, 65 * 10**6]), st.integers(0, 10**9)),
        method=often(["GET", "POST"], ["HEAD", "DELETE", "OPTIONS", "BREW"]),
        path=often(["/closed", "/open", "/run/dear.one"], list(PATHS)),
        address=often(ADDRESSES[:2], ADDRESSES),
        credentials=often(PRINCIPALS, list(TOKEN_FAULTS)),
        api_key=st.sampled_from([None, "a", "b"]),
        host=often(["good"], list(HOSTS)),
        body=often(["none"], list(BODIES)),
    ),
    max_size=50,
)


def header(headers: Headers, name: bytes) -> bytes | None:
    """The one value of a header."""
    found = [value for key, value in headers if key == name]
    assert len(found) <= 1, name
    return found[0] if found else None


def seconds(nanoseconds: int) -> int:
    return -(-nanoseconds // 10**9)


class Pair:
    """The core under both faces, and the twin."""

    def __init__(self, policies: list[Policy], classes: list[list[tuple[int, int]]]) -> None:
        self.policies, self.classes = policies, classes
        self.asgi, self.rsgi = (Small(policies, classes, hosts=[b"gateway"]) for _ in range(2))
        self.twin = Twin(policies)
        for small in (self.asgi, self.rsgi):
            small.revocations.apply("jti", "gone", "default")

    def check(self, sent: Sent, now_ns: int) -> None:
        """Ask everybody, and compare."""
        ask = sent.ask(self.classes, now_ns)
        request = sent.scope()
        refused, shadows = self.asgi.refused, self.asgi.counters.shadows()
        seen = self.asgi.admission.admit(request, now_s=NOW, now_ns=now_ns)
        assert seen is not None
        new = list((self.asgi.refused - refused).elements())
        reason = new[0] if new else None
        assert reason in self.twin.reasons(ask), (sent, new)
        assert len(new) == (not isinstance(seen, Admitted))
        said = {i for i, (old, now) in enumerate(zip(shadows, self.asgi.counters.shadows(), strict=True)) if now > old}
        exact = all(self.policies[policy].limit <= EXACT for policy, _ in ask.tolls)
        quota = self.twin.quota(ask) if exact else None
        self.twin.take(ask, reason, said)
        if isinstance(seen, Admitted):
            headers = self._admitted(sent, ask, seen)
        else:
            start, _ = seen
            headers = start["headers"]
            assert STATUS.get(reason or "", 401) == start["status"]
            closes = reason in {"payload_too_large", "invalid_host"} or sent.body in {"twice", "both"}
            assert (b"close" if closes else None) == header(headers, b"connection")
        if exact:
            self._told(headers, quota, limited=reason == "rate_limited")
        self._same_by_rsgi(request, seen, now_ns)

    @staticmethod
    def _admitted(sent: Sent, ask: Ask, seen: Admitted) -> Headers:
        assert sent.found is not None
        length = BODIES[sent.body][2]
        bodiless = sent.method in {"GET", "HEAD", "OPTIONS"}
        assert (*sent.found, sent.address, 0 if bodiless and length is None else length) == (
            seen.route,
            seen.values,
            seen.client,
            seen.length,
        )
        who = seen.principal
        assert ask.who == (who and Who(who.subject, who.tenant))
        return seen.headers([], 0)

    def _told(self, headers: Headers, quota: tuple[int, int, int] | None, *, limited: bool) -> None:
        """What the headers say about windows, which are exact here."""
        if quota is None:
            assert None is header(headers, b"ratelimit") is header(headers, b"ratelimit-policy")
            return
        index, remaining, reset_ns = quota
        name, _, limit, window_ms, *_ = self.policies[index]
        assert f'"{name}";q={limit};w={-(-window_ms // 1000)}'.encode() == header(headers, b"ratelimit-policy")
        assert f'"{name}";r={remaining};t={seconds(reset_ns)}'.encode() == header(headers, b"ratelimit")
        if limited:
            assert str(seconds(reset_ns)).encode() == header(headers, b"retry-after")

    def _same_by_rsgi(self, request: dict[str, Any], seen: Any, now_ns: int) -> None:
        other = self.rsgi.admission.admit_rsgi(RsgiScope(request), now_s=NOW, now_ns=now_ns)
        assert other is not None
        assert self.asgi.refused == self.rsgi.refused
        assert self.asgi.counters.shadows() == self.rsgi.counters.shadows()
        if isinstance(seen, Admitted):
            admitted, as_asgi = other  # type: ignore[misc]
            assert isinstance(admitted, Admitted)
            assert as_asgi is not None
            assert (request["method"], request["path"]) == (as_asgi["method"], as_asgi["path"])
            for name in ("route", "values", "client", "length", "principal"):
                assert getattr(seen, name) == getattr(admitted, name)
            mine, others = seen.headers([], 3), admitted.headers([], 3)
        else:
            status, others, body = other  # type: ignore[misc]
            start, end = seen
            mine = start["headers"]
            ids = [dict(mine)[b"x-request-id"], dict(others)["x-request-id"].encode()]
            assert (start["status"], end["body"].replace(ids[0], b"")) == (status, body.replace(ids[1], b""))
        # On RSGI the server says how long a body is, when it has it.
        unsaid = {b"x-request-id"} if request["method"] == "HEAD" else {b"x-request-id", b"content-length"}
        plain = [pair for pair in mine if pair[0] not in unsaid]
        assert plain == [(k.encode(), v.encode()) for k, v in others if k != "x-request-id"]


@given(drawn=drawn_policies(), requests=drawn_requests)
@FIXED
def test_every_request_is_answered_by_the_rules(
    drawn: tuple[list[Policy], list[list[tuple[int, int]]]], requests: list[Sent]
) -> None:
    """Checked first and charged only together; shadows never refuse; a bad token costs the open windows alone."""
    pair, now_ns = Pair(*drawn), START
    for sent in requests:
        now_ns += sent.step_ns
        pair.check(sent, now_ns)


@given(drawn=drawn_policies(), requests=drawn_requests, names=st.lists(st.sampled_from([*COMMANDS, "unknown"])))
@settings(FIXED, max_examples=60)
def test_handshakes_and_late_commands_pass_the_same_windows(
    drawn: tuple[list[Policy], list[list[tuple[int, int]]]], requests: list[Sent], names: list[str]
) -> None:
    """A handshake is of its own class; a command in a body is decided about by its second class."""
    policies, classes = drawn
    small, twin, now_ns = Small(policies, classes), Twin(policies), START
    small.revocations.apply("jti", "gone", "default")
    for number, sent in enumerate(requests):
        now_ns += sent.step_ns
        good = isinstance(sent.credentials, Who)
        ask = Ask(
            classes[WEBSOCKET],
            sent.address,
            sent.api_key,
            sent.credentials if isinstance(sent.credentials, Who) else None,
            None if isinstance(sent.credentials, Who) else TOKEN_FAULTS[sent.credentials][1],
            None if sent.host in {"good", "strange"} else "invalid_host",
            now_ns,
        )
        request = sent.scope() | {"scheme": "wss"}
        before = small.counters.shadows()
        reason, limited, known = small.admission.admit_handshake(request, WEBSOCKET, now_s=NOW, now_ns=now_ns)
        assert reason in twin.reasons(ask), sent
        assert (reason == "rate_limited") == (limited is not None)
        twin.take(ask, reason, _grown(before, small.counters.shadows()))
        assert known.client == sent.address
        if reason is not None or not names or not good:
            continue
        name = names[number % len(names)]
        late = ask._replace(tolls=classes[COMMANDS[name][1]] if name in COMMANDS else [], later_fault=None)
        before = small.counters.shadows()
        refusal = small.admission.admit_command(known, name, now_ns)
        assert (refusal and refusal[0]) in twin.reasons(late)
        twin.take(late, refusal and refusal[0], _grown(before, small.counters.shadows()))


def _grown(before: list[int], after: list[int]) -> set[int]:
    return {index for index, (old, new) in enumerate(zip(before, after, strict=True)) if new > old}
