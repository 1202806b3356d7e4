"""Single calls: a token, a window, a whole admission, each through Python and beside those who do the same.

Rules:
- Tokens that are to be verified anew are many and different, so that nothing is remembered; a remembered one is the
  same each time.
- What the native module offers is called in one place, `Binding`, so that a changed signature is changed once.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from benches.callers import Call, Elsewhere, in_turn, local
from benches.load import SECRET
from benches.peer_tools import ROOT
from benches.pure import Gate
from benches.pure import verify as pure_verify
from flx_api import _core

if TYPE_CHECKING:
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
_STEP_NS = 100_000
_POLICIES = (("per-client", "ip", 60_000), ("per-subject", "subject", 60_000), ("per-day", "subject", 86_400_000))
_ROOMY = 1_000_000_000


class Binding:
    """The native module as this suite calls it: the statements that are timed, and what their names stand for."""

    ADMIT = "admit(headers, '10.0.0.1', True, 2e9, now_ns())"
    REMEMBERED = "admit_token(token, '10.0.0.1', 2e9, 1)"

    def __init__(self, jwks: bytes, policies: tuple[tuple[str, str, int], ...]) -> None:
        admission = _core.Admission(
            jwks,
            issuer="flx",
            audience="flx-api",
            policies=[(name, by, _ROOMY, window_ms, 1, False) for name, by, window_ms in policies],
        )
        self.names: dict[str, Any] = {"admit": admission.admit, "admit_token": admission.admit_token}

    def timed(self, statement: str, count: int, **names: Any) -> Call:  # noqa: ANN401 - whatever it names
        """One of the statements, checked to admit.

        Raises:
            SystemExit: it refuses.
        """
        names = {**self.names, **names}
        decision = eval(statement, names)  # noqa: S307 - one of the two above
        if decision.status != 200:
            raise SystemExit(f"our admission refuses: {decision.reason}")
        return local("ours", statement, names, count)


def measure(suite: Suite, peers: Peers, folder: Path, rounds: int) -> None:
    """All rows of single calls."""
    signed = _Signed()
    (folder / "tokens.json").write_text(json.dumps(signed.for_rivals()), encoding="ascii")
    rivals = Elsewhere([peers.python, str(ROOT / "benches" / "peers" / "calls.py"), str(folder / "tokens.json")])
    with rivals, Elsewhere([_floors()]) as floors:
        for algorithm in ALGORITHMS:
            _verify(suite, signed, algorithm, rivals, floors, rounds)
        _remembered(suite, signed, rounds)
        _window(suite, rivals, floors, rounds)
    _admit(suite, signed, rounds)


def _verify(suite: Suite, signed: _Signed, algorithm: str, rivals: Elsewhere, floors: Elsewhere, rounds: int) -> None:
    metric, name = "through Python, claims checked", f"verify {algorithm}, uncached"
    target = f"value <= {HS256_US} us" if algorithm == "HS256" else f"ratio <= {FLOOR_RATIO} to the bare check"
    try:
        verifier = _core.TokenVerifier(signed.jwks(algorithm), issuer="flx", audience="flx-api")
        verifier.verify(signed.tokens[algorithm][0], 2e9)
    except (ValueError, _rejected()) as error:
        suite.unjudged(name, metric, "us", target=target, reason=f"the native module does not verify it: {error}")
        return
    count = 4_000 if algorithm == "HS256" else 500
    calls = [
        local(
            "ours",
            "verify(following(), 2e9)",
            {"verify": verifier.verify, "following": itertools.cycle(signed.tokens[algorithm]).__next__},
            count,
        ),
        floors.call(algorithm, count, label="bare aws-lc-rs check"),
        rivals.call(f"pyjwt:{algorithm}", count // 4, label="PyJWT"),
        rivals.call(f"oxyjwt:{algorithm}", count // 2, label="OxyJWT"),
    ]
    if algorithm == "HS256":
        names = {
            "verify": pure_verify,
            "following": itertools.cycle(signed.tokens[algorithm]).__next__,
            "secret": SECRET,
        }
        calls.append(local("stdlib hmac + json", "verify(following(), secret, 2e9)", names, count // 2))
    ours, *others = ([value / 1000 for value in column] for column in in_turn(calls, rounds))
    for call, values in zip(calls[1:], others, strict=True):
        bare = call.name == "bare aws-lc-rs check"
        suite.compare(
            name,
            metric,
            "us",
            ours,
            rival=call.name,
            rival_values=values,
            target_value=HS256_US if algorithm == "HS256" and call.name == "PyJWT" else None,
            target_ratio=FLOOR_RATIO if algorithm != "HS256" and bare else None,
        )


def _remembered(suite: Suite, signed: _Signed, rounds: int) -> None:
    binding = Binding(signed.jwks("HS256"), ())
    (values,) = in_turn([binding.timed(Binding.REMEMBERED, 20_000, token=signed.tokens["HS256"][0])], rounds)
    suite.measure("verify from cache", "through Python", "ns", values, target_value=CACHED_NS)


def _window(suite: Suite, rivals: Elsewhere, floors: Elsewhere, rounds: int) -> None:
    window = _core.SlidingWindow(5_000, 60_000)
    keys = [f"subject-{number:05}".encode() for number in range(_CLIENTS)]
    names = {"hit": window.hit, "key": itertools.cycle(keys).__next__, "now_ns": itertools.count(0, _STEP_NS).__next__}
    calls = [
        floors.call("window", 200_000),
        local("ours", "hit(key(), now_ns())", names, 20_000),
        rivals.call("limits", 4_000, label="limits, moving window"),
        rivals.call("cpex", 4_000, label="cpex-rate-limiter, sliding window"),
    ]
    rust, ours, *others = in_turn(calls, rounds)
    suite.measure("one window hit, 10,000 clients", "Rust", "ns", rust, target_value=WINDOW_RUST_NS)
    for call, values in zip(calls[2:], others, strict=True):
        first = call is calls[2]
        suite.compare(
            "one window hit, 10,000 clients",
            "through Python",
            "ns",
            ours,
            rival=call.name,
            rival_values=values,
            target_value=WINDOW_NS if first else None,
        )


def _admit(suite: Suite, signed: _Signed, rounds: int) -> None:
    """Twelve headers, a remembered token, three windows."""
    binding = Binding(signed.jwks("HS256"), _POLICIES)
    gate = Gate(SECRET, [(by, _ROOMY, window_ms) for _, by, window_ms in _POLICIES])
    headers = _headers(signed.tokens["HS256"][0])
    if gate.admit(headers, "10.0.0.1", 2e9, 0)[0] != 200:
        raise SystemExit("the twin in pure Python refuses")
    clock = {"headers": headers, "now_ns": itertools.count(0, _STEP_NS).__next__}
    calls = [
        binding.timed(Binding.ADMIT, 20_000, **clock),
        local("pure Python", "admit(headers, '10.0.0.1', 2e9, now_ns())", {**clock, "admit": gate.admit}, 5_000),
    ]
    ours, pure = ([value / 1000 for value in column] for column in in_turn(calls, rounds))
    suite.compare(
        "whole admit, 12 headers, cached token, 3 windows",
        "from Python",
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
    environ = {**os.environ}
    subprocess.run(
        ["cargo", "build", "--release", "--quiet", "-p", "flx-core", "--example", "floors"],
        cwd=ROOT,
        env=environ,
        check=True,
    )
    return str(ROOT / "target" / "release" / "examples" / "floors")


def _rejected() -> type[Exception]:
    from flx_api.errors import TokenRejected  # noqa: PLC0415 - the module raises it by name

    return TokenRejected


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
