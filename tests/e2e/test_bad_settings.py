"""Bad settings through the real `flx serve`: exit code 2, one line that names the setting, no secret, and nothing made.

All of them are found before the first process starts, so no other line can come between.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.service import flx

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

WORD = "s3cret-word"
"""In every value that may hold a secret; never in what is said about it."""
ENCODED = base64.urlsafe_b64encode(WORD.encode()).rstrip(b"=").decode()


def policy(**changed: Any) -> str:
    """One policy as JSON, good but for what is changed."""
    return json.dumps([{"name": "few", "by": "ip", "limit": 5, "window": "60s", **changed}])


LIMITS = {
    "unknown-key": (policy(burst=9), "[0]: unknown field burst"),
    "unknown-key-of-a-window": (
        policy(limit=None, window=None, windows=[{"limit": 5, "window": "1s", "cost": 1}]),
        "[0].windows[0]: unknown field cost",
    ),
    "unknown-command": (policy(commands=["pipeline.rum"]), "[0].commands: no command fits"),
    "cost-of-an-unknown-command": (policy(costs={"pipelin.*": 2}), "[0].costs: no command fits"),
    "unknown-route": (policy(routes=["/v1/pipeline"]), "[0].routes: no route fits"),
    "negative-limit": (policy(limit=-1), "[0].limit: expected `int` >= 1"),
    "no-limit": (policy(limit=0), "[0].limit: expected `int` >= 1"),
    "cost-above-the-limit": (policy(cost=6), "[0].cost: is above a limit"),
    "window-over-a-year": (policy(window="367d"), "[0].window: is longer than 366 days"),
    "window-beyond-numbers": (policy(window="9" * 15 + "d"), "[0].window: is longer than 366 days"),
    "window-of-too-many-digits": (policy(window="9" * 5000 + "d"), "[0].window: a duration is"),
    "window-of-no-unit": (policy(window="60"), "[0].window: a duration is"),
    "by-nothing-known": (policy(by="moon"), "[0].by: invalid enum value 'moon'"),
    "more-policies-than-the-memory-bears": (
        "{folder}/many.toml",
        "its policies have 20000 windows, 256 is the most",
    ),
    "unknown-key-of-two-lines": (policy(**{"two\nlines": 1}), "[0]: unknown field two lines"),
    "broken-json": ('[{"name": "few"', "is not valid JSON"),
    "json-of-another-shape": ('{"name": "few"}', "expected `array`"),
    "neither-json-nor-toml": ("{folder}/keys.json", "is neither JSON nor a readable TOML file"),
    "no-such-file": ("{folder}/limits.toml", "is neither JSON nor a readable TOML file"),
    "toml-of-another-table": ("{folder}/policies.toml", "unknown field policies"),
}
OTHERS = {
    "key-too-short": ("FLX_JWT_SECRET_KEY", WORD, "is shorter than 32 bytes"),
    "key-that-is-public": ("FLX_JWT_SECRET_KEY", f"ssh-ed25519 {WORD}{WORD}{WORD}", "is a public key"),
    "keys-of-a-secret-too-short": ("FLX_JWT_JWKS", "{folder}/keys.json", "key set: an HMAC secret shorter"),
    "keys-from-nowhere": ("FLX_JWT_JWKS", "{folder}/none.json", "the file cannot be read"),
    "keys-with-a-password": ("FLX_JWT_JWKS", f"https://me:{WORD}@host/keys", "the address needs a host, and no user"),
    "keys-from-another-scheme": ("FLX_JWT_JWKS", f"ftp://{WORD}@host/keys", "only https: addresses"),
    "no-signature": ("FLX_JWT_ALGORITHMS", "none", "invalid enum value 'none'"),
    "a-clock-far-off": ("FLX_JWT_JWKS_LEEWAY_S", "31", "expected `int` <= 30"),
    "a-proxy-by-name": ("FLX_TRUSTED_PROXIES", "localhost", "is no address"),
    "a-prefix-too-long": ("FLX_TRUSTED_PROXIES", "::1,10.0.0.0/33", "is no address"),
    "bits-below-the-prefix": ("FLX_TRUSTED_PROXIES", "10.0.0.1/8", "is no address"),
    "another-header": ("FLX_PROXY_HEADER", "x-real-ip", "invalid enum value"),
    "a-host-with-a-port": ("FLX_TRUSTED_HOSTS", "api.example:8000", "is no name of a host"),
    "hosts-by-pattern": ("FLX_TRUSTED_HOSTS", "api.example,*.example", "is no name of a host"),
    "an-origin-of-nothing": ("FLX_CORS_ORIGINS", "nonsense", "is no origin as browsers send it"),
    "an-origin-with-a-path": ("FLX_CORS_ORIGINS", f"https://app.example/{WORD}", "is no origin as browsers send it"),
    "a-zone-that-is-none": ("FLX_TIMEZONE", "Europe/Atlantis", "is no time zone such as UTC or Europe/Berlin"),
    "a-zone-by-its-offset": ("FLX_TIMEZONE", "+01:00", "is no time zone such as UTC or Europe/Berlin"),
    "redis-of-another-scheme": ("FLX_REDIS_URL", f"http://:{WORD}@host:6379", "is no redis:, rediss: or unix: address"),
    "redis-without-a-scheme": ("FLX_REDIS_URL", WORD, "is no redis:, rediss: or unix: address"),
    "redis-at-no-port": ("FLX_REDIS_URL", f"redis://:{WORD}@host:port", "is no redis:, rediss: or unix: address"),
    "redis-beyond-ports": ("FLX_REDIS_URL", f"redis://:{WORD}@host:99999", "is no redis:, rediss: or unix: address"),
    "redis-of-half-an-address": ("FLX_REDIS_URL", f"redis://:{WORD}@[::1", "is no redis:, rediss: or unix: address"),
    "redis-without-a-host": ("FLX_REDIS_URL", f"redis://:{WORD}@", "is no redis:, rediss: or unix: address"),
    "redis-without-a-socket": ("FLX_REDIS_URL", "unix://", "is no redis:, rediss: or unix: address"),
    "redis-of-a-named-database": ("FLX_REDIS_URL", f"redis://:{WORD}@host/first", "the database is a number"),
    "redis-with-an-unknown-option": ("FLX_REDIS_URL", f"redis://host?passwd={WORD}", "knows no such option"),
    "redis-with-an-option-twice": ("FLX_REDIS_URL", f"redis://host?db=1&db=2&password={WORD}", "knows no such option"),
    "redis-of-half-a-check": ("FLX_REDIS_URL", "rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs is"),
}
CASES = {**{name: ("FLX_RATE_LIMITS", *case) for name, case in LIMITS.items()}, **OTHERS}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with files that settings may name."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "meltano.yml").write_text("plugins: {}\n")
    (folder / "keys.json").write_text(json.dumps({"keys": [{"kty": "oct", "k": ENCODED}]}))
    (folder / "policies.toml").write_text('[[policies]]\nname = "few"\nby = "ip"\nlimit = 5\nwindow = "60s"\n')
    (folder / "many.toml").write_text(
        "".join(f'[[policy]]\nname = "few-{n}"\nby = "ip"\nlimit = 5\nwindow = "60s"\n' for n in range(20_000))
    )
    return folder


@pytest.mark.parametrize("face", ["asgi", "rsgi", "lane"])
def test_a_certificate_that_is_none_is_one_line_on_every_face(project: Path, face: str) -> None:
    file = project / "keys.json"
    secure = {"FLX_ENABLE_SSL": "true", "FLX_SSL_CERT_FILE": str(file), "FLX_SSL_KEY_FILE": str(file)}
    done = subprocess.run(
        flx("serve", "--project", str(project)),
        env={**os.environ, "FLX_API_PORT": "0", "FLX_INTERFACE": face, **secure},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = "FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: the key: "
    assert (2, "", 1, said) == (done.returncode, done.stdout, done.stderr.count("\n"), done.stderr[: len(said)])
    assert ENCODED not in done.stderr


@pytest.mark.parametrize(("setting", "value", "said"), CASES.values(), ids=CASES)
def test_a_bad_setting_is_one_line_that_names_it(project: Path, setting: str, value: str, said: str) -> None:
    before = sorted(project.iterdir())
    environ = {**os.environ, "FLX_API_PORT": "0", setting: value.replace("{folder}", str(project))}
    done = subprocess.run(
        flx("serve", "--project", str(project)), env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert (2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n")), done.stderr
    assert done.stderr.startswith(setting)
    assert said in done.stderr
    assert not any(word in done.stderr for word in (WORD, ENCODED))
    assert before == sorted(project.iterdir()), "nothing was made"
