"""Every setting, once: type, default, FLX_ name and a sentence.

Strategy: `Settings` is a frozen struct; its fields are the only list of settings. `load` turns an environment mapping
(and overrides from the command line) into one, or raises `StartupError` with one line that names the setting. The
configuration page of the documentation and `flx config show` are generated from the same fields.

Rules:
- Nothing else in the package reads the environment for settings.
- Defaults are written here only. A secret is never printed: `shown` redacts it.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from flx_api import addresses
from flx_api.errors import StartupError
from flx_api.models.rate_limit import RateLimit
from flx_api.models.topic_rules import TopicRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Port = Annotated[int, Meta(ge=0, le=addresses.LAST_PORT)]

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)

MAX_KEY_SET_BYTES = 256 * 1024
# All windows share 64 MiB: with so many, each still has 256 KiB, which is room for hundreds of clients. A policy for
# every route and every command, by subject and by tenant, would need fewer.
MAX_WINDOWS = 256
_MIN_SECRET_BYTES = 32
_DATABASES = ("sqlite:///", "postgresql://", "postgresql+psycopg://")
_SECRETS = frozenset({"jwt_secret_key", "database_url", "redis_url"})
# What a list of tables is called in a file.
_TABLES = {"rate_limits": "policy", "topics": "topic"}
_SWITCH = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long run folders (logs) and journal rows are kept: by age in days and by size in MiB, whichever is first."""

    days: Annotated[int, Meta(ge=1)] = 30
    log_mib: Annotated[int, Meta(ge=1)] = 2048
    journal_rows: Annotated[int, Meta(ge=1000)] = 1_000_000


_DEFAULT_LIMITS = (
    RateLimit(name="per-client", by="ip", limit=6000, window="60s"),
    RateLimit(name="per-subject", by="subject", limit=3000, window="60s"),
)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a gateway and a daemon. Field `x` is set by the environment variable `FLX_X`."""

    environment: Annotated[
        Literal["development", "production"],
        Meta(description="production refuses weak secrets, open CORS and generated keys"),
    ] = "development"
    project: Annotated[str, Meta(description="the Meltano project's folder")] = "."
    data_dir: Annotated[str | None, Meta(description="where all state lies; by default `.flx` in the project")] = None
    meltano: Annotated[
        str | None,
        Meta(description="a Python environment that holds Meltano; made with uv in the data folder when not given"),
    ] = None
    api_host: Annotated[str, Meta(description="the address the gateway listens on")] = "127.0.0.1"
    api_port: Annotated[Port, Meta(description="the gateway's port; 0 takes any free one")] = 8000
    realtime_port: Annotated[Port | None, Meta(description="of the native listener; 0: any, off: none")] = 8001
    realtime_threads: Annotated[int, Meta(ge=1, le=64, description="threads of the native WebSocket listener")] = 1
    realtime_deflate: Annotated[
        bool,
        Meta(
            description="compress messages for WebSocket clients of the native listener that offer permessage-deflate"
        ),
    ] = False
    realtime_io_uring: Annotated[
        Literal["auto", "off"],
        Meta(description="send the events of many clients by one system call, where the kernel permits io_uring"),
    ] = "auto"
    workers: Annotated[int, Meta(ge=1, le=64, description="gateway processes")] = 1
    interface: Annotated[
        Literal["asgi", "rsgi", "lane"],
        Meta(
            description="between client and gateway: asgi on Granian; rsgi, cheaper, whose WebSockets close without a "
            "code; lane, a server of our own and the cheapest"
        ),
    ] = "asgi"
    enable_ssl: Annotated[bool, Meta(description="serve TLS with the two files below")] = False
    ssl_cert_file: Annotated[str | None, Meta(description="certificate chain, PEM")] = None
    ssl_key_file: Annotated[str | None, Meta(description="private key, PEM (PKCS#8)")] = None
    jwt_secret_key: Annotated[
        str | None,
        Meta(description="the HS256 key, at least 32 bytes; development makes `secret.key` in the data folder"),
    ] = None
    jwt_jwks: Annotated[
        str | None,
        Meta(description="keys of another issuer: a file (JWK set, PEM or DER), or the https address of a JWK set"),
    ] = None
    jwt_jwks_issuer: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="`iss` of the tokens they sign; by default that of ours"),
    ] = None
    jwt_jwks_leeway_s: Annotated[
        int, Meta(ge=0, le=30, description="seconds that the other issuer's clock may be off; for our own it is 0")
    ] = 30
    jwt_algorithms: Annotated[
        tuple[Algorithm, ...],
        Meta(
            min_length=1,
            description="signatures that are accepted, separated by commas; "
            "a key that names no algorithm is bound to the first that fits it",
        ),
    ] = ALGORITHMS
    jwt_issuer: Annotated[str, Meta(min_length=1, description="`iss` of our tokens")] = "flx"
    jwt_audience: Annotated[str, Meta(min_length=1, description="`aud` of our tokens")] = "flx-api"
    grpc_daemon_host: Annotated[
        str | None,
        Meta(
            description="daemons elsewhere, `host` or `host:port`, separated by commas; "
            "not given, `flx serve` starts its own on a Unix socket"
        ),
    ] = None
    grpc_daemon_port: Annotated[Port, Meta(description="the port of daemons elsewhere that name none")] = 50051
    grpc_connections: Annotated[int, Meta(ge=1, le=4, description="connections of a worker to each daemon")] = 1
    load_shedding: Annotated[
        Literal["on", "off"], Meta(description="refuse at once what the daemon cannot take, instead of queueing it")
    ] = "on"
    grpc_listen: Annotated[
        str | None, Meta(description="`host:port` at which `flx daemon` listens, in place of a Unix socket")
    ] = None
    grpc_token_file: Annotated[
        str | None, Meta(description="a file with the token that gateway and daemon share over TCP")
    ] = None
    grpc_tls: Annotated[bool, Meta(description="TLS between gateway and daemon over TCP")] = False
    grpc_ca_file: Annotated[
        str | None,
        Meta(
            description="PEM: who signs daemons' certificates (gateway; the system's authorities when not given), "
            "who signs gateways' (daemon; without it no certificate makes a gateway)"
        ),
    ] = None
    grpc_cert_file: Annotated[
        str | None, Meta(description="certificate chain of this side, PEM; a daemon with TLS needs one")
    ] = None
    grpc_key_file: Annotated[str | None, Meta(description="its private key, PEM, not encrypted")] = None
    grpc_gateway_names: Annotated[
        tuple[str, ...],
        Meta(description="host names in certificates that make a gateway, separated by commas; empty: any of that CA"),
    ] = ()
    grpc_insecure: Annotated[
        bool, Meta(description="allow TCP without TLS beyond this machine; for networks that protect it themselves")
    ] = False
    database_url: Annotated[
        str | None,
        Meta(
            description="URL of the daemon's database, `postgresql://…` or `sqlite:///…`; "
            "SQLite in the data folder by default"
        ),
    ] = None
    redis_url: Annotated[
        str | None,
        Meta(
            description="Redis, through which the gateways of all hosts share rate limits: "
            "`redis:`, `rediss:` or `unix:`; without it each host counts for itself"
        ),
    ] = None
    rate_limits: Annotated[
        tuple[RateLimit, ...], Meta(description="policies as JSON, or the path of a TOML file with `[[policy]]` tables")
    ] = _DEFAULT_LIMITS
    topics: Annotated[
        tuple[TopicRule, ...],
        Meta(description="rules for `app.…` topics as JSON, or the path of a TOML file with `[[topic]]` tables"),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(description="exact origins such as `https://app.example.com`, separated by commas; `*` in development"),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="networks of proxies whose word about a client's address is believed, separated by commas"),
    ] = ()
    proxy_header: Annotated[
        Literal["x-forwarded-for", "forwarded"], Meta(description="the header that trusted proxies write")
    ] = "x-forwarded-for"
    trusted_hosts: Annotated[
        tuple[str, ...],
        Meta(description="acceptable Host names, by commas; empty accepts any; commands on this machine ask 127.0.0.1"),
    ] = ()
    executor: Annotated[Literal["local"], Meta(description="where runs happen")] = "local"
    fork: Annotated[
        Literal["auto", "never"],
        Meta(description="auto forks runs from a warm Meltano process where that is possible; never starts each cold"),
    ] = "auto"
    max_runs: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="runs at the same time; the number of cores by default")
    ] = None
    run_env: Annotated[
        tuple[str, ...], Meta(description="further environment names or globs that runs may see, separated by commas")
    ] = ()
    run_nice: Annotated[int, Meta(ge=0, le=19, description="steps by which runs yield to all else; see nice(1)")] = 10
    retention: Annotated[Retention, Meta(description="JSON: days, log_mib, journal_rows")] = Retention()
    timezone: Annotated[str, Meta(description="in which schedules of meltano.yml fire, such as Europe/Berlin")] = "UTC"
    schedules: Annotated[
        Literal["on", "off"], Meta(description="whether schedules fire at all; off leaves them to something else")
    ] = "on"
    schedule_grace_s: Annotated[
        int, Meta(ge=10, le=86_400, description="seconds after its time that the newest missed firing still runs")
    ] = 3600
    max_staleness_s: Annotated[
        # Probes are 1.5 s apart: less would call a daemon silent that is only idle.
        float, Meta(ge=3, le=3600, description="seconds without the daemon after which a gateway is not ready")
    ] = 5.0
    when_stale: Annotated[
        Literal["serve", "refuse"],
        Meta(description="what a gateway does with tokens after that: a revocation may not have reached it"),
    ] = "serve"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="of our own log")] = "info"
    metrics: Annotated[Literal["public", "token", "off"], Meta(description="who may read /metrics")] = "public"
    drain_s: Annotated[float, Meta(ge=0, le=300, description="seconds over which a stop sends WebSockets away")] = 1.0
    heartbeat_s: Annotated[
        float,
        Meta(ge=1, le=30, description="seconds after which a live connection that is told nothing gets a sign of life"),
    ] = 25.0
    deadline_ms: Annotated[int, Meta(ge=1, le=3_600_000, description="of a command that names none")] = 30_000
    body_limit: Annotated[
        # A frame has 4 MiB (`flx_api.proto.buffer`), and its other fields come out of headers of 64 KiB.
        int, Meta(ge=1024, le=4_128_768, description="bytes of a request body")
    ] = 1_048_576
    cancel_grace_s: Annotated[
        float, Meta(gt=0, le=60, description="seconds between SIGTERM and SIGKILL when a run is cancelled")
    ] = 5.0

    @property
    def project_dir(self) -> Path:
        """The project's folder, absolute."""
        return Path(self.project).resolve()

    @property
    def data_path(self) -> Path:
        """The folder of all state, absolute."""
        return Path(self.data_dir).resolve() if self.data_dir else self.project_dir / ".flx"

    @property
    def daemons(self) -> tuple[addresses.Place, ...]:
        """Host and port of the daemons elsewhere; none when `flx serve` has its own."""
        return addresses.daemons(self.grpc_daemon_host or "", self.grpc_daemon_port)

    @property
    def listening(self) -> addresses.Place | None:
        """Host and port at which a daemon listens; None: on a Unix socket."""
        return None if self.grpc_listen is None else addresses.listening(self.grpc_listen)

    @property
    def run_slots(self) -> int:
        """How many runs may go on at the same time."""
        return self.max_runs or os.cpu_count() or 1

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the daemon's database."""
        return self.database_url or f"sqlite:///{self.data_path / 'flx.db'}"

    @property
    def jwks_address(self) -> str | None:
        """The address of the other issuer's key set, when it is not a file."""
        return self.jwt_jwks if self.jwt_jwks and addresses.is_address(self.jwt_jwks) else None

    @property
    def jwks_file(self) -> Path | None:
        """The file of the other issuer's keys."""
        return Path(self.jwt_jwks) if self.jwt_jwks and not addresses.is_address(self.jwt_jwks) else None

    @property
    def secret_key_file(self) -> Path:
        """Where development keeps its generated HS256 key."""
        return self.data_path / "secret.key"


class SettingInfo(msgspec.Struct, frozen=True):
    """One setting as people see it."""

    name: str
    type: str
    default: str
    sentence: str


def describe() -> Iterator[SettingInfo]:
    """All settings in order, for `flx config show`, the documentation page and its check."""
    for field, info in zip(msgspec.structs.fields(Settings), msgspec.inspect.type_info(Settings).fields, strict=True):  # type: ignore[attr-defined]
        metas = get_type_hints(Settings, include_extras=True)[field.name].__metadata__
        meta = next(meta for meta in metas if meta.description)
        yield SettingInfo(
            f"FLX_{field.name.upper()}", _type_name(info.type), _plain(field.default), str(meta.description)
        )


def load(environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of an environment; `overrides` (from the command line, None = not given) win.

    Raises:
        StartupError: one line that names the setting and says what is wrong.
    """
    known = {field.name for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for key, text in environ.items():
        name = key.removeprefix("FLX_").lower()
        is_off = name == "realtime_port" and text.lower() in {"", "off"}
        if key.startswith("FLX_") and name in known and (text != "" or is_off):
            if not _is_utf8(text):
                raise StartupError(f"{key}: is not UTF-8")
            values[name] = None if is_off else _parse(name, text)
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise StartupError(_sentence(error)) from None
    _check(settings)
    return settings


def _is_utf8(text: str) -> bool:
    """Whether it came as that: Python keeps other bytes of the environment as halves of pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def secret_of(settings: Settings) -> bytes:
    """The HS256 key: the configured one, or the generated file's content.

    Raises:
        StartupError: there is none (the service makes the file when it starts in development).
    """
    if settings.jwt_secret_key:
        return settings.jwt_secret_key.encode()
    try:
        return settings.secret_key_file.read_bytes()
    except OSError:
        msg = "FLX_JWT_SECRET_KEY: not set, and the data folder has no secret.key (start the service once)"
        raise StartupError(msg) from None


def file_keys_of(settings: Settings) -> bytes | None:
    """The content of the other issuer's key file; None when no file is configured.

    Raises:
        StartupError: it cannot be read, or is too large for a key file.
    """
    file = settings.jwks_file
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            keys = stream.read(MAX_KEY_SET_BYTES + 1)
    except (OSError, ValueError):
        msg = "FLX_JWT_JWKS: the file cannot be read"
        raise StartupError(msg) from None
    if len(keys) > MAX_KEY_SET_BYTES:
        msg = "FLX_JWT_JWKS: the file is larger than 256 KiB"
        raise StartupError(msg)
    return keys


def shown(settings: Settings) -> dict[str, str]:
    """The settings in force by FLX_ name, secrets redacted."""
    return {
        f"FLX_{name.upper()}": "(set)" if name in _SECRETS and value is not None else _plain(value)
        for name, value in msgspec.structs.asdict(settings).items()
    }


def _parse(name: str, text: str) -> Any:  # noqa: ANN401 - the shape is checked by msgspec right after
    if name in {"cors_origins", "trusted_hosts", "trusted_proxies", "run_env", "jwt_algorithms", "grpc_gateway_names"}:
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in {"rate_limits", "retention", "topics"}:
        return _document(name, text)
    if name in {"enable_ssl", "grpc_tls", "grpc_insecure"}:
        return _SWITCH.get(text.lower(), text)
    return text


def _document(name: str, text: str) -> Any:  # noqa: ANN401 - the shape is checked by msgspec right after
    setting = f"FLX_{name.upper()}"
    if text.lstrip().startswith(("[", "{")):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            msg = f"{setting}: is not valid JSON"
            raise StartupError(msg) from None
    try:
        table = tomllib.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        msg = f"{setting}: is neither JSON nor a readable TOML file"
        raise StartupError(msg) from None
    word = _TABLES.get(name)
    if word is None:
        return table
    unknown = sorted(table.keys() - {word})
    if unknown:
        # A word that is nearly right must not leave a service without its limits.
        raise StartupError(f"{setting}: unknown field {unknown[0]}")
    return table.get(word, [])


def _check(settings: Settings) -> None:
    _check_limits(settings.rate_limits)
    secret = settings.jwt_secret_key
    if secret is not None and len(secret.encode()) < _MIN_SECRET_BYTES:
        raise StartupError("FLX_JWT_SECRET_KEY: is shorter than 32 bytes")
    if secret is not None and _is_public_key(secret):
        raise StartupError("FLX_JWT_SECRET_KEY: is a public key, which everybody knows")
    if len(set(settings.jwt_algorithms)) != len(settings.jwt_algorithms):
        raise StartupError("FLX_JWT_ALGORITHMS: names an algorithm twice")
    _check_jwks(settings)
    addresses.check_peers(settings.trusted_proxies, settings.trusted_hosts, settings.cors_origins)
    _check_grpc(settings)
    if settings.redis_url is not None:
        addresses.check_redis(settings.redis_url)
    _check_timezone(settings.timezone)
    if settings.environment == "production":
        _check_production(settings)
    if settings.enable_ssl:
        _check_certificate(settings)
    if settings.database_url and not settings.database_url.startswith(_DATABASES):
        raise StartupError("FLX_DATABASE_URL: begins with none of sqlite:///, postgresql:// and postgresql+psycopg://")
    for name in ("cancel_grace_s", "max_staleness_s"):
        if not math.isfinite(getattr(settings, name)):
            raise StartupError(f"FLX_{name.upper()}: is not a number of seconds")


def _check_timezone(name: str) -> None:
    if name == "UTC":
        return
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - few settings need it

    try:
        ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        raise StartupError("FLX_TIMEZONE: is no time zone such as UTC or Europe/Berlin") from None


def _check_certificate(settings: Settings) -> None:
    for name in ("ssl_cert_file", "ssl_key_file"):
        path = getattr(settings, name)
        if not path or not Path(path).is_file():
            raise StartupError(f"FLX_{name.upper()}: FLX_ENABLE_SSL needs a readable file here")


def _check_grpc(settings: Settings) -> None:
    """Hold that nothing between gateway and daemon travels in the clear by mistake, and that TLS has what it needs."""
    if settings.grpc_daemon_host is not None and not settings.daemons:
        raise StartupError("FLX_GRPC_DAEMON_HOST: names no daemon")
    places = [("FLX_GRPC_DAEMON_HOST", place) for place in settings.daemons]
    if settings.listening is not None:
        places.append(("FLX_GRPC_LISTEN", settings.listening))
    for name, (host, _) in places:
        if not settings.grpc_tls and not settings.grpc_insecure and not addresses.is_loopback(host):
            msg = "is beyond this machine, which needs FLX_GRPC_TLS (or FLX_GRPC_INSECURE on a protected network)"
            raise StartupError(f"{name}: {msg}")
    for name in ("grpc_ca_file", "grpc_cert_file", "grpc_key_file"):
        if getattr(settings, name) is not None and not settings.grpc_tls:
            raise StartupError(f"FLX_{name.upper()}: means nothing without FLX_GRPC_TLS")
    if (settings.grpc_cert_file is None) != (settings.grpc_key_file is None):
        missing = "FLX_GRPC_KEY_FILE" if settings.grpc_key_file is None else "FLX_GRPC_CERT_FILE"
        raise StartupError(f"{missing}: a certificate and its key go together")
    if settings.listening is not None and settings.grpc_tls and settings.grpc_cert_file is None:
        raise StartupError("FLX_GRPC_CERT_FILE: a daemon with TLS needs a certificate")
    if settings.grpc_gateway_names and settings.grpc_ca_file is None:
        raise StartupError("FLX_GRPC_GATEWAY_NAMES: means nothing without FLX_GRPC_CA_FILE")


def _is_public_key(secret: str) -> bool:
    text = secret.lstrip("\ufeff \t\r\n")
    if text.startswith(("-----BEGIN", "ssh-", "ecdsa-")):
        return True
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False
    return isinstance(decoded, dict) and not decoded.keys().isdisjoint({"kty", "keys"})


def _check_jwks(settings: Settings) -> None:
    if settings.jwks_address is not None:
        addresses.check_key_address(settings.jwks_address, settings.environment)
    keys = file_keys_of(settings)
    if keys is None:
        return
    from flx_api._core import TokenVerifier  # noqa: PLC0415 - few settings need the native module

    try:
        count = TokenVerifier.of([(keys, None, None, 0, None, settings.jwt_algorithms, True)]).key_count
    except ValueError as error:
        raise StartupError(f"FLX_JWT_JWKS: {error}") from None
    if count == 0:
        raise StartupError("FLX_JWT_JWKS: holds no key for verifying that FLX_JWT_ALGORITHMS allows")


def _check_limits(policies: tuple[RateLimit, ...]) -> None:
    names: set[str] = set()
    for index, policy in enumerate(policies):
        try:
            windows = policy.each_window
        except ValueError as error:
            raise StartupError(f"FLX_RATE_LIMITS: [{index}].{error}") from None
        dearest = max([policy.cost, *policy.costs.values()])
        for name, limit, _ in windows:
            if name in names:
                raise StartupError("FLX_RATE_LIMITS: two policies have the same name")
            if dearest > limit:
                raise StartupError(f"FLX_RATE_LIMITS: [{index}].cost: is above a limit of its policy")
            names.add(name)
    if len(names) > MAX_WINDOWS:
        raise StartupError(f"FLX_RATE_LIMITS: its policies have {len(names)} windows, {MAX_WINDOWS} is the most")


def _check_production(settings: Settings) -> None:
    secret = settings.jwt_secret_key
    if secret is None:
        msg = "FLX_JWT_SECRET_KEY: production needs a key of at least 32 bytes"
        raise StartupError(msg)
    if "dev-secret" in secret.lower() or "change" in secret.lower():
        msg = "FLX_JWT_SECRET_KEY: is a placeholder; production needs a real key"
        raise StartupError(msg)
    if "*" in settings.cors_origins:
        msg = "FLX_CORS_ORIGINS: `*` is not allowed in production, since requests carry credentials"
        raise StartupError(msg)


def _sentence(error: msgspec.ValidationError) -> str:
    """One line from msgspec's message: `Expected ... - at `$.api_port`` becomes `FLX_API_PORT: expected ...`."""
    text = str(error)
    found = re.search(r" - at `\$\.?([a-z_]*)(.*)`$", text)
    reason = text[: found.start()] if found else text
    unknown = re.match(r"Object contains unknown field `(.*)`", reason, re.DOTALL)
    setting = f"FLX_{found[1].upper()}{found[2]}" if found and found[1] else "settings"
    return f"{setting}: unknown field {unknown[1]}" if unknown else f"{setting}: {reason[:1].lower()}{reason[1:]}"


def _type_name(kind: msgspec.inspect.Type) -> str:
    name = type(kind).__name__.removesuffix("Type").lower()
    if isinstance(kind, msgspec.inspect.UnionType):
        return _type_name(next(t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)))
    if isinstance(kind, msgspec.inspect.Metadata):
        return _type_name(kind.type)
    if isinstance(kind, msgspec.inspect.LiteralType):
        return " or ".join(str(value) for value in kind.values)
    return {"vartuple": "list", "struct": "object"}.get(name, name)


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    return msgspec.json.encode(value).decode()
