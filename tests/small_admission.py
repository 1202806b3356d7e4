"""A native `Admission` by itself, for tests: a handful of routes, any policies, and what it has counted.

The words of its refusals are the product's own; nothing else of the gateway is built.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

import jwt

from flx_api._core import Admission, Counters, Revocations, TokenVerifier, reasons
from flx_api.gateway.responses import PolicyRefusals, common_headers, not_allowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flx_api._core import SharedMemory

SECRET: Final = b"0123456789abcdef0123456789ABCDEF"
_K: Final = base64.urlsafe_b64encode(SECRET).rstrip(b"=").decode()
JWKS: Final = json.dumps({"keys": [{"kty": "oct", "k": _K}]}).encode()
NOW: Final = 1_700_000_000
BODY_LIMIT: Final = 100

ROUTES: Final = [
    ("/open", [("GET", "public"), ("POST", "public")], "value"),
    ("/closed", [("GET", "token"), ("POST", "token")], "value"),
    ("/probe", [("GET", "probe")], "value"),
    ("/things/{id}", [("GET", "token")], "value"),
    ("/run/{name}", [("POST", "token")], "command"),
    ("/{name}", [("POST", "token")], "dotted"),
]
NOWHERE: Final = len(ROUTES)
WEBSOCKET: Final = NOWHERE + 1
COMMANDS: Final = {"cheap.one": (WEBSOCKET + 1, WEBSOCKET + 2), "dear.one": (WEBSOCKET + 3, WEBSOCKET + 4)}
CLASSES: Final = WEBSOCKET + 5

Headers = list[tuple[bytes, bytes]]


class Policy(NamedTuple):
    """As the core takes it."""

    name: str
    by: str
    limit: int
    window_ms: int = 60_000
    cost: int = 1
    shadow: bool = False


def token(subject: str = "ann", tenant: str | None = None, header: dict[str, str] | None = None, **more: Any) -> bytes:
    """A token that is acceptable at `NOW` unless it says otherwise."""
    claims: dict[str, object] = {"sub": subject, "exp": NOW + 60, "iss": "flx", "aud": "flx-api", "roles": ["viewer"]}
    if tenant is not None:
        claims["tenant"] = tenant
    return jwt.encode({**claims, **more}, SECRET, "HS256", header).encode()


def bearer(subject: str = "ann", tenant: str | None = None, **more: Any) -> Headers:
    """The header with such a token."""
    return [(b"authorization", b"Bearer " + token(subject, tenant, **more))]


def scope(
    method: str = "GET",
    path: str = "/closed",
    headers: Headers | None = None,
    *,
    host: bytes | None = b"gateway",
    client: str | None = "10.0.0.1",
    http_version: str = "1.1",
    scheme: str = "http",
) -> dict[str, Any]:
    """The scope of an HTTP request as ASGI has it."""
    return {
        "type": "http",
        "http_version": http_version,
        "scheme": scheme,
        "method": method,
        "path": unquote(path.split("?", maxsplit=1)[0]),
        "raw_path": path.encode(),
        "headers": [*([] if host is None else [(b"host", host)]), *(headers or [])],
        "client": None if client is None else (client, 50_000),
    }


class _RsgiHeaders:
    """Those of one name follow one another."""

    def __init__(self, pairs: Headers) -> None:
        self._pairs = sorted(((name.decode().lower(), value.decode()) for name, value in pairs), key=lambda it: it[0])

    def get(self, name: str) -> str | None:
        """The first value of a name."""
        return next((value for known, value in self.items() if known == name), None)

    def get_all(self, name: str) -> list[str]:
        """All values of a name."""
        return [value for known, value in self.items() if known == name]

    def items(self) -> list[tuple[str, str]]:
        return self._pairs

    def keys(self) -> list[str]:
        return list(dict(self._pairs))

    def __len__(self) -> int:
        return len(self.keys())


class RsgiScope:
    """The same request as RSGI has it."""

    def __init__(self, asgi: dict[str, Any]) -> None:
        self.proto, self.http_version, self.scheme, self.method = (
            "http",
            asgi["http_version"],
            asgi["scheme"],
            asgi["method"],
        )
        self.path, self.query_string = asgi["path"], ""
        self.headers, self.authority = _RsgiHeaders(asgi["headers"]), None
        address = asgi["client"][0]
        self.client = f"[{address}]:5" if ":" in address else f"{address}:5"
        self.server = "127.0.0.1:1"


class Small:
    """An admission and its surroundings.

    Args:
        policies: all of them.
        classes: what each class passes; every policy at its cost when not given.
        shared: the memory that several of them share.
    """

    def __init__(
        self,
        policies: Sequence[Policy] = (),
        classes: Sequence[Sequence[tuple[int, int]]] | None = None,
        *,
        hosts: Sequence[bytes] = (),
        proxies: Sequence[str] = (),
        proxy_header: str = "x-forwarded-for",
        shared: SharedMemory | None = None,
    ) -> None:
        if classes is None:
            classes = [[(index, policy.cost) for index, policy in enumerate(policies)]] * CLASSES
        self.policies = policies
        self.counters = Counters(routes=NOWHERE + 1, refusals=len(reasons()), policies=len(policies), shared=shared)
        self.revocations = Revocations()
        words = PolicyRefusals([(*policy,) for policy in policies])
        self.admission = Admission(
            TokenVerifier(JWKS, issuer="flx", audience="flx-api"),
            self.revocations,
            self.counters,
            routes=ROUTES,
            commands=COMMANDS,
            policies=policies,
            classes=classes,
            refusals=words.prepared_by_reason(),
            limited=words.prepared(),
            not_allowed=[not_allowed(", ".join(method for method, _ in methods)) for _, methods, _ in ROUTES],
            headers=common_headers(),
            hosts=hosts,
            proxies=proxies,
            proxy_header=proxy_header,
            body_limit=BODY_LIMIT,
            max_bytes=2**20,
            shared=shared,
        )

    @property
    def refused(self) -> Counter[str]:
        """Refusals by reason, where there are any."""
        counts = Counter(dict(zip(reasons(), self.counters.refusals(), strict=True)))
        return +counts
