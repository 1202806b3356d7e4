"""The rivals in Python, timed where they are installed: `calls.py TOKENS` answers lines `NAME COUNT` with nanoseconds.

TOKENS is a JSON file: `{"<algorithm>": {"token": ..., "key": <secret or public PEM>}}`. Every rival gets prepared keys
and the same checks: signature, exp, iss, aud, and that exp and sub are there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS = 10_000


def pyjwt(algorithm: str, given: dict[str, str]) -> Callable[[], Any]:
    """PyJWT with a key that is parsed already."""
    import jwt  # noqa: PLC0415 - installed where this runs

    decoder = jwt.PyJWT()
    key = jwt.get_algorithm_by_name(algorithm).prepare_key(given["key"])
    options: Any = {"require": ["exp", "sub"]}
    token = given["token"]
    return lambda: decoder.decode(token, key, algorithms=[algorithm], options=options, audience="flx-api", issuer="flx")


def oxyjwt(algorithm: str, given: dict[str, str]) -> Callable[[], Any]:
    """OxyJWT with a key that is parsed already."""
    import oxyjwt as oxy  # noqa: PLC0415 - installed where this runs

    make = {"HS": "from_secret", "RS": "from_rsa_pem", "ES": "from_ec_pem", "Ed": "from_ed_pem"}[algorithm[:2]]
    key = getattr(oxy.DecodingKey, make)(given["key"])
    options = {"require": ["exp", "sub"]}
    token = given["token"]
    return lambda: oxy.decode(token, key, algorithms=[algorithm], options=options, audience="flx-api", issuer="flx")


def limits() -> Callable[[], Any]:
    """`limits`, moving window in memory: the true window, as ours."""
    from limits.storage import MemoryStorage  # noqa: PLC0415
    from limits.strategies import MovingWindowRateLimiter  # noqa: PLC0415

    from limits import RateLimitItemPerMinute  # noqa: PLC0415 - installed where this runs

    limiter = MovingWindowRateLimiter(MemoryStorage())
    item = RateLimitItemPerMinute(5_000)
    return _over_clients(lambda client: limiter.hit(item, client))


def cpex() -> Callable[[], Any]:
    """cpex-rate-limiter, sliding window in memory, its engine called directly."""
    from cpex_rate_limiter.rate_limiter_rust import RateLimiterEngine  # noqa: PLC0415 - installed where this runs

    engine = RateLimiterEngine({"by_user": "5000/m", "algorithm": "sliding_window", "backend": "memory"})
    return _over_clients(lambda client: engine.check(client, None, "tool", int(time.time()), False, None))  # noqa: FBT003 - its signature


def _over_clients(hit: Callable[[str], Any]) -> Callable[[], Any]:
    clients = [f"subject-{number:05}" for number in range(CLIENTS)]
    at = 0

    def one() -> Any:  # noqa: ANN401 - whatever the rival says
        nonlocal at
        at = (at + 1) % CLIENTS
        return hit(clients[at])

    return one


VERIFIERS = {"pyjwt": pyjwt, "oxyjwt": oxyjwt}
LIMITERS = {"limits": limits, "cpex": cpex}


def main() -> None:
    """Answer until the input ends."""
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    made: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name, count = line.split()
        if name not in made:
            rival, _, algorithm = name.partition(":")
            made[name] = VERIFIERS[rival](algorithm, given[algorithm]) if algorithm else LIMITERS[rival]()
            made[name]()
        call = made[name]
        times = int(count)
        began = time.perf_counter_ns()
        for _ in range(times):
            call()
        print((time.perf_counter_ns() - began) / times, flush=True)


if __name__ == "__main__":
    main()
