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
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from flx_api.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Port = Annotated[int, Meta(ge=0, le=65535)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)")]

_MIN_SECRET_BYTES = 32
_SECRETS = frozenset({"jwt_secret_key", "database_url", "redis_url"})
_WINDOW = re.compile(r"^(\d+)(ms|s|m|h|d)$")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rate limit policy: at most `limit` cost in any `window`, counted by `by`."""

    name: Name
    by: Literal["ip", "subject"]
    limit: Annotated[int, Meta(ge=1, le=1_000_000_000)]
    window: str
    cost: Annotated[int, Meta(ge=1)] = 1
    shadow: bool = False

    @property
    def window_ms(self) -> int:
        """The window in milliseconds. Raises ValueError for anything but a number and ms, s, m, h or d."""
        return duration_ms(self.window)


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long run folders (logs) and journal rows are kept: by age in days and by size in MiB, whichever is first."""

    days: Annotated[int, Meta(ge=1)] = 30
    log_mib: Annotated[int, Meta(ge=1)] = 2048
    journal_rows: Annotated[int, Meta(ge=1000)] = 1_000_000


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `500ms`, `60s`, `5m`, `1h` or `1d`. Raises ValueError for anything else."""
    found = _WINDOW.match(text)
    if not found or int(found[1]) == 0:
        msg = "a duration is a whole number and a unit, such as 500ms, 60s, 5m, 1h or 1d"
        raise ValueError(msg)
    return int(found[1]) * _UNIT_MS[found[2]]


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
    data_dir: Annotated[str | None, Meta(description="where all state lies; `.flx` in the project when not given")] = (
        None
    )
    meltano: Annotated[
        str | None,
        Meta(description="a Python environment that holds Meltano; made with uv in the data folder when not given"),
    ] = None
    api_host: Annotated[str, Meta(description="the address the gateway listens on")] = "127.0.0.1"
    api_port: Annotated[Port, Meta(description="the gateway's port; 0 takes any free one")] = 8000
    workers: Annotated[int, Meta(ge=1, le=64, description="gateway processes")] = 1
    enable_ssl: Annotated[bool, Meta(description="serve TLS with the two files below")] = False
    ssl_cert_file: Annotated[str | None, Meta(description="certificate chain, PEM")] = None
    ssl_key_file: Annotated[str | None, Meta(description="private key, PEM (PKCS#8)")] = None
    jwt_secret_key: Annotated[
        str | None,
        Meta(description="the HS256 key, at least 32 bytes; development makes `secret.key` in the data folder"),
    ] = None
    jwt_issuer: Annotated[str, Meta(min_length=1, description="`iss` of our tokens")] = "flx"
    jwt_audience: Annotated[str, Meta(min_length=1, description="`aud` of our tokens")] = "flx-api"
    grpc_daemon_host: Annotated[
        str | None, Meta(description="a daemon elsewhere; not given, `flx serve` starts its own on a Unix socket")
    ] = None
    grpc_daemon_port: Annotated[Port, Meta(description="the port of a daemon elsewhere")] = 50051
    grpc_token_file: Annotated[
        str | None, Meta(description="a file with the token that gateway and daemon share over TCP")
    ] = None
    database_url: Annotated[
        str | None, Meta(description="SQLAlchemy URL of the daemon's database; SQLite in the data folder by default")
    ] = None
    redis_url: Annotated[str | None, Meta(description="Redis, when one is used; `flx doctor` checks it")] = None
    rate_limits: Annotated[
        tuple[RateLimit, ...], Meta(description="policies as JSON, or the path of a TOML file with `[[policy]]` tables")
    ] = _DEFAULT_LIMITS
    cors_origins: Annotated[tuple[str, ...], Meta(description="exact origins, separated by commas")] = ()
    trusted_hosts: Annotated[
        tuple[str, ...], Meta(description="acceptable Host names, separated by commas; empty accepts any")
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
    retention: Annotated[Retention, Meta(description="JSON: days, log_mib, journal_rows")] = Retention()
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
    deadline_ms: Annotated[int, Meta(ge=1, le=3_600_000, description="of a command that names none")] = 30_000
    body_limit: Annotated[int, Meta(ge=1024, description="bytes of a request body")] = 1_048_576
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
    def run_slots(self) -> int:
        """How many runs may go on at the same time."""
        return self.max_runs or os.cpu_count() or 1

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the daemon's database."""
        return self.database_url or f"sqlite:///{self.data_path / 'flx.db'}"

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
        if key.startswith("FLX_") and name in known and text != "":
            values[name] = _parse(name, text)
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise StartupError(_sentence(error)) from None
    _check(settings)
    return settings


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


def shown(settings: Settings) -> dict[str, str]:
    """The settings in force by FLX_ name, secrets redacted."""
    return {
        f"FLX_{name.upper()}": "(set)" if name in _SECRETS and value is not None else _plain(value)
        for name, value in msgspec.structs.asdict(settings).items()
    }


def _parse(name: str, text: str) -> Any:  # noqa: ANN401 - the shape is checked by msgspec right after
    if name in {"cors_origins", "trusted_hosts", "run_env"}:
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in {"rate_limits", "retention"}:
        return _document(name, text)
    if name == "enable_ssl":
        return {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }.get(text.lower(), text)
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
    return table.get("policy", []) if name == "rate_limits" else table


def _check(settings: Settings) -> None:
    _check_limits(settings.rate_limits)
    secret = settings.jwt_secret_key
    if secret is not None and len(secret.encode()) < _MIN_SECRET_BYTES:
        raise StartupError("FLX_JWT_SECRET_KEY: is shorter than 32 bytes")
    if settings.environment == "production":
        _check_production(settings)
    if settings.enable_ssl:
        for name in ("ssl_cert_file", "ssl_key_file"):
            path = getattr(settings, name)
            if not path or not Path(path).is_file():
                raise StartupError(f"FLX_{name.upper()}: FLX_ENABLE_SSL needs a readable file here")
    if settings.database_url and not settings.database_url.startswith("sqlite:///"):
        raise StartupError("FLX_DATABASE_URL: only sqlite:/// is supported by this version")
    for name in ("cancel_grace_s", "max_staleness_s"):
        if not math.isfinite(getattr(settings, name)):
            raise StartupError(f"FLX_{name.upper()}: is not a number of seconds")


def _check_limits(policies: tuple[RateLimit, ...]) -> None:
    for index, policy in enumerate(policies):
        try:
            _ = policy.window_ms
        except ValueError as error:
            raise StartupError(f"FLX_RATE_LIMITS: [{index}].window: {error}") from None
    names = [policy.name for policy in policies]
    if len(set(names)) != len(names):
        raise StartupError("FLX_RATE_LIMITS: two policies have the same name")


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
    unknown = re.match(r"Object contains unknown field `(.*)`", reason)
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
