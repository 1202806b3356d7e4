"""Single calls: a token, a window, a whole admission, each through Python and beside those who do the same.

Rules:
- Tokens that are to be verified anew are many and different, so that nothing is remembered; a remembered one is the
  same each time.
- What the native module offers is called in one place, `Binding`, so that a changed signature is changed once.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from benches.callers import Call, Elsewhere, in_turn, local, ready
from benches.load import SECRET
from benches.peer_tools import ROOT
from benches.pure import Gate
from benches.pure import verify as pure_verify
from flx_api import _core
from flx_api.config import load
from flx_api.dependencies import Parts
from flx_api.errors import TokenRejected
from flx_api.models.rate_limit import duration_ms
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benches.peer_tools import Peers
    from benches.record import Suite

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
HS256_US = 1.8
FLOOR_RATIO = 1.25
CACHED_NS = 250
WINDOW_RUST_NS = 60
WINDOW_NS = 200
ADMIT_US = 0.3

_DIFFERENT = 4_000
_CLIENTS = 10_000
_DRAWS = 100_000
_BARE = "bare aws-lc-rs check"
_STEP_NS = 100_000
_WINDOWS = (("ip", "60s"), ("subject", "60s"), ("subject", "1d"))
_ROOMY = 1_000_000_000


class Binding:
    """Admission as the gateway builds it, and the one statement that is timed.

    Args:
        folder: what stands for a project.
        windows: policies, `(by, window)` each.
    """

    ADMIT = "admit(scope)"

    def __init__(self, folder: Path, windows: Sequence[tuple[str, str]]) -> None:
        limits = [
            {"name": f"{by}-{window}", "by": by, "limit": _ROOMY, "window": window, "mode": "fast"}
            for by, window in windows
        ]
        settings = load(
            {
                "FLX_PROJECT": str(folder),
                "FLX_JWT_SECRET_KEY": SECRET.decode(),
                "FLX_RATE_LIMITS": json.dumps(limits),
            }
        )
        # Parts are typed as the gateway uses them; that a stub lags behind does not stop a benchmark.
        self._admission: Any = Parts(settings, Endpoint(path=str(folder / "nobody.sock"))).admission

    def call(self, headers: list[tuple[bytes, bytes]], times: int) -> Call:
        """The timed call, held to admit.

        Raises:
            SystemExit: it refuses.
        """
        scope = {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "method": "GET",
            "path": "/v1/pipelines",
            "raw_path": b"/v1/pipelines",
            "query_string": b"",
            "client": ("10.0.0.1", "40000"),
            "headers": headers,
        }
        if isinstance(self._admission.admit(scope), tuple):
            raise SystemExit("our admission refuses")
        return local("ours", self.ADMIT, {"admit": self._admission.admit, "scope": scope}, times)


def measure(suite: Suite, peers: Peers, folder: Path, rounds: int) -> None:
    """All rows of single calls."""
    signed = _Signed()
    (folder / "tokens.json").write_text(json.dumps(signed.for_rivals()), encoding="ascii")
    rivals = Elsewhere([peers.python, str(ROOT / "benches" / "peers" / "calls.py"), str(folder / "tokens.json")])
    with rivals, Elsewhere([_floors()]) as floors:
        for algorithm in ALGORITHMS:
            _verify(suite, signed, algorithm, (rivals, floors), rounds)
        _remembered(suite, signed, folder, rounds)
        _window(suite, rivals, floors, rounds)
    _admit(suite, signed, folder, rounds)


def _verify(suite: Suite, signed: _Signed, algorithm: str, others: tuple[Elsewhere, Elsewhere], rounds: int) -> None:
    rivals, floors = others
    metric, name = "through Python, claims checked", f"verify {algorithm}, uncached"
    target = f"value <= {HS256_US} us" if algorithm == "HS256" else f"ratio <= {FLOOR_RATIO} to the bare check"
    try:
        verifier = _core.TokenVerifier(signed.jwks(algorithm), issuer="flx", audience="flx-api")
        verifier.verify(signed.tokens[algorithm][0], 2e9)
    except (ValueError, TokenRejected) as error:
        suite.unjudged(name, metric, "us", target=target, reason=f"the native module does not verify it: {error}")
        return
    times = 4_000 if algorithm == "HS256" else 500
    names: dict[str, Any] = {"verify": verifier.verify, "following": itertools.cycle(signed.tokens[algorithm]).__next__}
    calls = [
        local("ours", "verify(following(), 2e9)", names, times),
        floors.call(algorithm, times, label=_BARE),
        rivals.call(f"pyjwt:{algorithm}", times // 4, label="PyJWT"),
        rivals.call(f"oxyjwt:{algorithm}", times // 2, label="OxyJWT"),
    ]
    if algorithm == "HS256":
        names = {**names, "verify": pure_verify, "secret": SECRET}
        calls.append(local("stdlib hmac + json", "verify(following(), secret, 2e9)", names, times // 2))
    ours, *columns = ([value / 1000 for value in column] for column in in_turn(calls, rounds))
    for call, values in zip(calls[1:], columns, strict=True):
        suite.compare(
            name,
            metric,
            "us",
            ours,
            rival=call.name,
            rival_values=values,
            target_value=HS256_US if algorithm == "HS256" and call.name == "PyJWT" else None,
            target_ratio=FLOOR_RATIO if algorithm != "HS256" and call.name == _BARE else None,
        )


def _remembered(suite: Suite, signed: _Signed, folder: Path, rounds: int) -> None:
    """A remembered token, as the daemon asks for it; and with nothing else to decide: two headers, no window."""
    token = signed.tokens["HS256"][0]
    verifier = _core.TokenVerifier(signed.jwks("HS256"), issuer="flx", audience="flx-api").remembering(1 << 20)
    headers = [(b"host", b"api.example.org"), (b"authorization", b"Bearer " + token)]
    calls = [
        local("ours", "verify(token, 2e9)", {"verify": verifier.verify_full, "token": token}, 20_000),
        Binding(folder, ()).call(headers, 20_000),
    ]
    alone, admitted = in_turn(calls, rounds)
    name = "verify from cache"
    suite.measure(name, "through Python, claims and kid", "ns", alone, target_value=CACHED_NS)
    suite.measure(name, "through Python, as a whole admission of two headers", "ns", admitted)


def _window(suite: Suite, rivals: Elsewhere, floors: Elsewhere, rounds: int) -> None:
    """Clients by Zipf's law, as for the servers; one alone; all in turn, which no cache holds, beside the rivals."""
    turns = range(_CLIENTS)
    drawn = random.Random(20260101).choices(turns, [1 / (rank + 1) for rank in turns], k=_DRAWS)
    calls = [
        floors.call("window drawn", 200_000),
        _hits(drawn),
        floors.call("window of one", 200_000),
        _hits([0]),
        floors.call("window", 200_000),
        _hits(turns),
        rivals.call("limits", 4_000, label="limits, moving window"),
        rivals.call("cpex", 4_000, label="cpex-rate-limiter, sliding window"),
    ]
    columns = in_turn(calls, rounds)
    targets = (WINDOW_RUST_NS, WINDOW_NS)
    for name, pair, judged in (
        ("one window hit, 10,000 clients by Zipf's law", columns[:2], targets),
        ("one window hit, one client", columns[2:4], (None, None)),
    ):
        for metric, values, target in zip(("Rust", "through Python"), pair, judged, strict=True):
            suite.measure(name, metric, "ns", values, target_value=target)
    name = "one window hit, 10,000 clients in turn"
    suite.measure(name, "Rust", "ns", columns[4])
    for call, values in zip(calls[6:8], columns[6:], strict=True):
        suite.compare(name, "through Python", "ns", columns[5], rival=call.name, rival_values=values)


def _hits(clients: Sequence[int]) -> Call:
    """One hit of these clients, again and again; none of them gets near the limit."""
    hit = _core.SlidingWindow(1_000_000, 60_000).hit
    following, now_ns = itertools.cycle(clients).__next__, itertools.count(0, _STEP_NS).__next__

    def pairs(count: int) -> list[tuple[bytes, int]]:
        return [(f"subject-{following():05}".encode(), now_ns()) for _ in range(count)]

    return ready("ours", hit, pairs, 20_000)


def _admit(suite: Suite, signed: _Signed, folder: Path, rounds: int) -> None:
    """Twelve headers, a remembered token, three windows."""
    headers = _headers(signed.tokens["HS256"][0])
    gate = Gate(SECRET, [(by, _ROOMY, duration_ms(window)) for by, window in _WINDOWS])
    if gate.admit(headers, "10.0.0.1", time.time(), time.monotonic_ns())[0] != 200:
        raise SystemExit("the twin in pure Python refuses")
    names = {"admit": gate.admit, "headers": headers, "wall": time.time, "now_ns": time.monotonic_ns}
    calls = [
        Binding(folder, _WINDOWS).call(headers, 20_000),
        local("pure Python", "admit(headers, '10.0.0.1', wall(), now_ns())", names, 5_000),
    ]
    ours, pure = ([value / 1000 for value in column] for column in in_turn(calls, rounds))
    suite.compare(
        "whole admit, 12 headers, cached token, 3 windows",
        "from Python, clocks included",
        "us",
        ours,
        rival="pure Python",
        rival_values=pure,
        target_value=ADMIT_US,
    )


def _headers(token: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"host", b"api.example.org"),
        (
            b"user-agent",
            b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140 Safari/537",
        ),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"accept-language", b"en-GB,en;q=0.9"),
        (b"authorization", b"Bearer " + token),
        (b"origin", b"https://app.example.org"),
        (b"referer", b"https://app.example.org/pipelines"),
        (b"sec-fetch-mode", b"cors"),
        (b"sec-fetch-site", b"same-site"),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        (b"x-request-id", b"5f3a1c0e9b7d4e21"),
    ]


def _floors() -> str:
    command = ["cargo", "build", "--release", "--quiet", "-p", "flx-core", "--example", "floors"]
    subprocess.run(command, cwd=ROOT, check=True)
    return str(ROOT / "target" / "release" / "examples" / "floors")


class _Signed:
    """Tokens of each algorithm, signed by keys made now."""

    def __init__(self) -> None:
        self._private: dict[str, Any] = {
            "HS256": SECRET,
            "RS256": rsa.generate_private_key(65537, 2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
        claims = {"iss": "flx", "aud": "flx-api", "exp": 4_102_444_800, "roles": ["viewer"]}
        self.tokens = {
            algorithm: [
                jwt.encode({**claims, "sub": f"subject-{number:05}", "jti": str(number)}, key, algorithm).encode()
                for number in range(_DIFFERENT if algorithm == "HS256" else 500)
            ]
            for algorithm, key in self._private.items()
        }

    def jwks(self, algorithm: str) -> bytes:
        """The key set of one algorithm, as the native module takes it."""
        key = self._private[algorithm]
        if algorithm == "HS256":
            jwk = {"kty": "oct", "k": urlsafe_b64encode(SECRET).rstrip(b"=").decode()}
        else:
            jwk = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**jwk, "alg": algorithm, "use": "sig", "key_ops": ["verify"]}]}).encode()

    def for_rivals(self) -> dict[str, dict[str, str]]:
        """One token and the key of each algorithm, as `peers/calls.py` takes them."""
        given = {"HS256": SECRET.decode()}
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        for algorithm in ALGORITHMS[1:]:
            given[algorithm] = self._private[algorithm].public_key().public_bytes(*form).decode()
        return {
            algorithm: {"token": self.tokens[algorithm][0].decode(), "key": key} for algorithm, key in given.items()
        }
