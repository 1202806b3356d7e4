"""Settings: one line for each fault, secrets never shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flx_api import config
from flx_api.dependencies import Parts
from flx_api.errors import StartupError
from flx_api.limits import shared_memory
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "k" * 32


def test_defaults_need_nothing() -> None:
    """An empty environment is a valid development configuration."""
    settings = config.load({})
    assert ("development", 8000, 1) == (settings.environment, settings.api_port, settings.workers)
    assert settings.data_path == settings.project_dir / ".flx"
    assert settings.run_slots >= 1


def test_environment_and_overrides() -> None:
    """Text becomes typed values; the command line wins; None is not given; unknown names are not ours."""
    environ = {
        "FLX_API_PORT": "9000",
        "FLX_ENABLE_SSL": "off",
        "FLX_RUN_ENV": "AWS_*, SNOWFLAKE_USER",
        "FLX_SOMETHING_ELSE": "x",
        "PATH": "/bin",
        "FLX_LOG_LEVEL": "",
    }
    settings = config.load(environ, {"api_port": 9100, "workers": None, "project": "/srv/p"})
    assert 9100 == settings.api_port
    assert settings.enable_ssl is False
    assert ("AWS_*", "SNOWFLAKE_USER") == settings.run_env
    assert Path("/srv/p/.flx/secret.key") == settings.secret_key_file
    assert "info" == settings.log_level


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"FLX_API_PORT": "99999"}, "FLX_API_PORT: expected `int` <= 65535"),
        ({"FLX_API_PORT": "http"}, "FLX_API_PORT: expected `int`, got `str`"),
        ({"FLX_ENABLE_SSL": "maybe"}, "FLX_ENABLE_SSL: expected `bool`, got `str`"),
        ({"FLX_MAX_RUNS": "0"}, "FLX_MAX_RUNS: expected `int` >= 1"),
        ({"FLX_JWT_SECRET_KEY": "short"}, "FLX_JWT_SECRET_KEY: is shorter than 32 bytes"),
        ({"FLX_RATE_LIMITS": "[{"}, "FLX_RATE_LIMITS: is not valid JSON"),
        ({"FLX_RATE_LIMITS": "/no/such/file"}, "FLX_RATE_LIMITS: is neither JSON nor a readable TOML file"),
        (
            {"FLX_RATE_LIMITS": '[{"name":"a","by":"ip","limit":1,"window":"1s","burst":2}]'},
            "FLX_RATE_LIMITS[0]: unknown field burst",
        ),
        (
            {"FLX_RATE_LIMITS": '[{"name":"a","by":"ip","limit":1,"window":"soon"}]'},
            "FLX_RATE_LIMITS: [0].window: a duration is",
        ),
        (
            {
                "FLX_RATE_LIMITS": '[{"name":"a","by":"ip","limit":1,"window":"1s"},'
                '{"name":"a","by":"subject","limit":1,"window":"1s"}]'
            },
            "FLX_RATE_LIMITS: two policies have the same name",
        ),
        ({"FLX_ENABLE_SSL": "1"}, "FLX_SSL_CERT_FILE: FLX_ENABLE_SSL needs a readable file here"),
        ({"FLX_ENVIRONMENT": "production"}, "FLX_JWT_SECRET_KEY: production needs a key"),
        (
            {"FLX_ENVIRONMENT": "production", "FLX_JWT_SECRET_KEY": "please-change-this-key-before-use-1"},
            "FLX_JWT_SECRET_KEY: is a placeholder",
        ),
        (
            {"FLX_ENVIRONMENT": "production", "FLX_JWT_SECRET_KEY": KEY, "FLX_CORS_ORIGINS": "*"},
            "FLX_CORS_ORIGINS: `*` is not allowed",
        ),
        ({"FLX_DATABASE_URL": "mysql://x"}, "FLX_DATABASE_URL: begins with none of sqlite"),
        ({"FLX_JWT_SECRET_KEY": f"-----BEGIN PUBLIC KEY-----\n{KEY}"}, "FLX_JWT_SECRET_KEY: is a public key"),
        ({"FLX_JWT_SECRET_KEY": f' {{"kty": "RSA", "n": "{KEY}"}}'}, "FLX_JWT_SECRET_KEY: is a public key"),
        ({"FLX_JWT_ALGORITHMS": "HS256,none"}, "FLX_JWT_ALGORITHMS[1]: invalid enum value 'none'"),
        ({"FLX_JWT_ALGORITHMS": "HS256,HS256"}, "FLX_JWT_ALGORITHMS: names an algorithm twice"),
        ({"FLX_JWT_ALGORITHMS": ","}, "FLX_JWT_ALGORITHMS: expected `array` of length >= 1"),
        ({"FLX_JWT_JWKS_LEEWAY_S": "31"}, "FLX_JWT_JWKS_LEEWAY_S: expected `int` <= 30"),
        ({"FLX_JWT_JWKS": "file:///etc/keys"}, "FLX_JWT_JWKS: only https: addresses"),
        ({"FLX_JWT_JWKS": "ftp://host/keys"}, "FLX_JWT_JWKS: only https: addresses"),
        ({"FLX_JWT_JWKS": "https:///keys"}, "FLX_JWT_JWKS: the address needs a host"),
        ({"FLX_JWT_JWKS": "https://user:word@host/keys"}, "FLX_JWT_JWKS: the address needs a host, and no user"),
        ({"FLX_JWT_JWKS": "https://host:x/keys"}, "FLX_JWT_JWKS: is no address"),
        ({"FLX_JWT_JWKS": "http://issuer.example/keys"}, "FLX_JWT_JWKS: http: is for loopback"),
        (
            {"FLX_JWT_JWKS": "http://127.0.0.1/keys", "FLX_ENVIRONMENT": "production", "FLX_JWT_SECRET_KEY": KEY},
            "FLX_JWT_JWKS: http: is for loopback addresses in development",
        ),
        ({"FLX_JWT_JWKS": "/nowhere/keys.json"}, "FLX_JWT_JWKS: the file cannot be read"),
        (
            {"FLX_RATE_LIMITS": '[{"name":"a","by":"ip","limit":1,"window":"367d"}]'},
            "FLX_RATE_LIMITS: [0].window: is longer than 366 days",
        ),
        (
            {"FLX_RATE_LIMITS": '[{"name":"a","by":"ip","limit":1,"window":"1s","two\\nlines":2}]'},
            "FLX_RATE_LIMITS[0]: unknown field two lines",
        ),
        ({"FLX_TRUSTED_PROXIES": "::1,10.0.0.1/8"}, "FLX_TRUSTED_PROXIES[1]: is no address and no network"),
        ({"FLX_TRUSTED_HOSTS": "api.example:8000"}, "FLX_TRUSTED_HOSTS[0]: is no name of a host"),
        ({"FLX_REDIS_URL": "http://:word@host"}, "FLX_REDIS_URL: is no redis:, rediss: or unix: address"),
        ({"FLX_REDIS_URL": "redis://host/first"}, "FLX_REDIS_URL: the database is a number"),
        ({"FLX_REDIS_URL": "redis://host?protocol=2"}, "FLX_REDIS_URL: the address knows no such option"),
        ({"FLX_REDIS_URL": "redis://host?ssl_cert_reqs=none"}, "FLX_REDIS_URL: the address knows no such option"),
        ({"FLX_GRPC_DAEMON_HOST": "localhost,daemon"}, "FLX_GRPC_DAEMON_HOST: is beyond this machine"),
        ({"FLX_GRPC_DAEMON_HOST": ","}, "FLX_GRPC_DAEMON_HOST: names no daemon"),
        ({"FLX_GRPC_LISTEN": "0.0.0.0:1"}, "FLX_GRPC_LISTEN: is beyond this machine"),
        ({"FLX_GRPC_CA_FILE": "/ca"}, "FLX_GRPC_CA_FILE: means nothing without FLX_GRPC_TLS"),
        ({"FLX_GRPC_TLS": "1", "FLX_GRPC_CERT_FILE": "/c"}, "FLX_GRPC_KEY_FILE: a certificate and its key go together"),
        ({"FLX_GRPC_TLS": "1", "FLX_GRPC_LISTEN": "0.0.0.0:1"}, "FLX_GRPC_CERT_FILE: a daemon with TLS needs"),
        ({"FLX_GRPC_TLS": "1", "FLX_GRPC_GATEWAY_NAMES": "a"}, "FLX_GRPC_GATEWAY_NAMES: means nothing without"),
        ({"FLX_GRPC_CONNECTIONS": "5"}, "FLX_GRPC_CONNECTIONS: expected `int` <= 4"),
        ({"FLX_BODY_LIMIT": "4194304"}, "FLX_BODY_LIMIT: expected `int` <= 4128768"),
        ({"FLX_RETENTION": '{"days": 0}'}, "FLX_RETENTION.days: expected `int` >= 1"),
        ({"FLX_MAX_STALENESS_S": "1"}, "FLX_MAX_STALENESS_S: expected `float` >= 3"),
        ({"FLX_MAX_STALENESS_S": "nan"}, "FLX_MAX_STALENESS_S: "),
        ({"FLX_TIMEZONE": "Europe/Atlantis"}, "FLX_TIMEZONE: is no time zone such as UTC"),
        ({"FLX_TIMEZONE": "../../etc/passwd"}, "FLX_TIMEZONE: is no time zone such as UTC"),
        ({"FLX_TIMEZONE": "Europe"}, "FLX_TIMEZONE: is no time zone such as UTC"),
        ({"FLX_SCHEDULES": "sometimes"}, "FLX_SCHEDULES: invalid enum value"),
        ({"FLX_SCHEDULE_GRACE_S": "1"}, "FLX_SCHEDULE_GRACE_S: expected `int` >= 10"),
        ({"FLX_JWT_SECRET_KEY": "\udcff" * 32}, "FLX_JWT_SECRET_KEY: is not UTF-8"),
        ({"FLX_RATE_LIMITS": "[\udcff]"}, "FLX_RATE_LIMITS: is not UTF-8"),
        ({"FLX_WHEN_STALE": "guess"}, "FLX_WHEN_STALE: invalid enum value"),
    ],
)
def test_a_fault_is_one_line_that_names_the_setting(environ: Mapping[str, str], line: str) -> None:
    """Every bad value is refused with the setting's name, in one line, without the value of a secret."""
    with pytest.raises(StartupError) as caught:
        config.load(environ)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "FLX_JWT_JWKS: key set: not strict JSON"),
        (b'{"keys":[]}', "FLX_JWT_JWKS: holds no key"),
        (b'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}', "FLX_JWT_JWKS: key set: an RSA modulus"),
        (b'{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}', "FLX_JWT_JWKS: key set: an HMAC secret shorter"),
        (b"-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n", "FLX_JWT_JWKS: key set: a private key"),
        (b" " * (config.MAX_KEY_SET_BYTES + 1), "FLX_JWT_JWKS: the file is larger than 256 KiB"),
    ],
)
def test_an_unusable_key_file_stops_the_start(tmp_path: Path, content: bytes, line: str) -> None:
    """A key file is judged before anything starts."""
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        config.load({"FLX_JWT_JWKS": str(file)})
    assert str(caught.value).startswith(line)


def test_keys_come_from_a_file_or_an_address(tmp_path: Path) -> None:
    """An address is left to the gateway; plain http only to this machine, in development."""
    for address in (
        "https://issuer.example:8443/keys",
        "http://127.0.0.1:1/keys",
        "http://[::1]/k",
        "http://localhost/k",
    ):
        settings = config.load({"FLX_JWT_JWKS": address})
        assert (address, None) == (settings.jwks_address, settings.jwks_file)
        assert config.file_keys_of(settings) is None
    file = tmp_path / "keys.pem"
    file.write_text(
        "-----BEGIN PUBLIC KEY-----\n"
        "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
        "-----END PUBLIC KEY-----\n"
    )
    settings = config.load({"FLX_JWT_JWKS": str(file)})
    assert (None, file) == (settings.jwks_address, settings.jwks_file)
    assert file.read_bytes() == config.file_keys_of(settings)


def test_toml_file_of_policies(tmp_path: Path) -> None:
    """Policies may come from a TOML file with `[[policy]]` tables."""
    file = tmp_path / "limits.toml"
    file.write_text('[[policy]]\nname = "login"\nby = "ip"\nlimit = 5\nwindow = "1m"\n')
    (policy,) = config.load({"FLX_RATE_LIMITS": str(file)}).rate_limits
    assert (("login", 5, 60_000),) == policy.each_window


def test_so_many_windows_and_no_more(tmp_path: Path) -> None:
    """All windows of all policies share the memory, so they are counted together, and what is accepted can be made."""
    file = tmp_path / "limits.toml"
    # The largest entries there are: a small limit that one request may use up.
    pair = ", ".join(f'{{ limit = 64, window = "{seconds}s" }}' for seconds in (1, 2))
    policies = [
        f'[[policy]]\nname = "p{number}"\nby = "ip"\ncost = 64\nwindows = [{pair}]\n'
        for number in range(config.MAX_WINDOWS // 2)
    ]
    file.write_text("\n".join(policies))
    settings = config.load({"FLX_RATE_LIMITS": str(file), "FLX_JWT_SECRET_KEY": KEY})
    assert config.MAX_WINDOWS == sum(len(policy.each_window) for policy in settings.rate_limits)
    memory = shared_memory.create()
    try:
        Parts(settings, Endpoint(path="/nonexistent.sock"), shared_memory.of_environment(str(memory)))
    finally:
        os.close(memory)
    file.write_text("\n".join([*policies, policies[0].replace("p0", "other")]))
    with pytest.raises(StartupError, match=r"^FLX_RATE_LIMITS: its policies have 258 windows, 256 is the most$"):
        config.load({"FLX_RATE_LIMITS": str(file)})


def test_a_toml_file_of_another_table_is_no_absence_of_limits(tmp_path: Path) -> None:
    """A misspelt table is named; a file without any is nobody's limit on purpose."""
    file = tmp_path / "limits.toml"
    file.write_text('[[policies]]\nname = "login"\nby = "ip"\nlimit = 5\nwindow = "1m"\n')
    with pytest.raises(StartupError, match=r"^FLX_RATE_LIMITS: unknown field policies$"):
        config.load({"FLX_RATE_LIMITS": str(file)})
    file.write_text("")
    assert () == config.load({"FLX_RATE_LIMITS": str(file)}).rate_limits


def test_secrets_are_not_shown() -> None:
    """`shown` says that a secret is set, not what it is."""
    shown = config.shown(config.load({"FLX_JWT_SECRET_KEY": KEY}))
    assert "(set)" == shown["FLX_JWT_SECRET_KEY"]
    assert KEY not in str(shown)


def test_every_setting_is_described() -> None:
    """Each field has a FLX_ name, a type and a sentence."""
    described = list(config.describe())
    assert len(described) == len(config.Settings.__struct_fields__)
    assert all(info.sentence and info.sentence != "None" and info.type for info in described)


def test_secret_comes_from_setting_or_file(tmp_path: Path) -> None:
    """The configured key wins, then the generated file; neither is a start-up error."""
    assert KEY.encode() == config.secret_of(config.load({"FLX_JWT_SECRET_KEY": KEY}))
    settings = config.load({"FLX_DATA_DIR": str(tmp_path)})
    with pytest.raises(StartupError, match="FLX_JWT_SECRET_KEY"):
        config.secret_of(settings)
    settings.secret_key_file.write_bytes(b"x" * 32)
    assert b"x" * 32 == config.secret_of(settings)


def test_rules_of_topics_come_as_json_or_from_a_file(tmp_path: Path) -> None:
    """Both say the same, and what is wrong is named."""
    file = tmp_path / "topics.toml"
    file.write_text('[[topic]]\ntopics = "app.chat.*"\npublish = ["developer"]\nevents = "ephemeral"\n')
    given = '[{"topics":"app.chat.*","publish":["developer"],"events":"ephemeral"}]'
    assert config.load({"FLX_TOPICS": str(file)}).topics == config.load({"FLX_TOPICS": given}).topics
    file.write_text('[[topics]]\ntopics = "app.chat.*"\n')
    for text, reason in [
        (str(file), "FLX_TOPICS: unknown field topics"),
        ('[{"topics":"app.x","publisher":[]}]', r"FLX_TOPICS\[0\]: unknown field publisher"),
        ('[{"topics":"user.x"}]', r"FLX_TOPICS\[0\].topics: .*"),
        ('[{"topics":"app.*.x"}]', r"FLX_TOPICS\[0\].topics: .*"),
        ("[", "FLX_TOPICS: is not valid JSON"),
    ]:
        with pytest.raises(StartupError, match=reason):
            config.load({"FLX_TOPICS": text})


@pytest.mark.parametrize(
    ("text", "port"), [(None, 8001), ("", None), ("off", None), ("OFF", None), ("0", 0), ("9001", 9001)]
)
def test_the_native_listener_can_be_switched_off(text: str | None, port: int | None) -> None:
    environ = {} if text is None else {"FLX_REALTIME_PORT": text}
    assert port == config.load(environ).realtime_port
