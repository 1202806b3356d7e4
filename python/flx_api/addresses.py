"""Whether the addresses in settings are acceptable: daemons, networks, hosts, origins, key sets and Redis.

Rules:
- Each check raises `StartupError` with one line that names the setting; it looks nothing up and connects to nothing.
- What may hold a password is never repeated in a line.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, urlsplit

from flx_api.errors import StartupError

Place = tuple[str, int]
"""Host (a name, or an address without brackets) and port."""

LAST_PORT = 65535
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]{0,30})://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::([1-9][0-9]{0,4}))?")
_OWN_PORTS = {"http": "80", "https": "443"}
# What an address of Redis may say after its question mark. Its client would take more, and let it undo what we rely on.
_REDIS_OPTIONS = frozenset({"db", "username", "password"})
_REDIS_TLS_OPTIONS = frozenset(
    f"ssl_{name}" for name in ("ca_certs", "ca_path", "certfile", "keyfile", "password", "cert_reqs", "check_hostname")
)


def is_address(text: str) -> bool:
    """Whether this is an address, and not a file's path."""
    # One letter and a colon is a drive, not a scheme.
    return "://" in text or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) is not None


def check_key_address(address: str, environment: str) -> None:
    """Hold that a key set can be fetched from here, by https."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise StartupError("FLX_JWT_JWKS: is no address that can be read") from None
    if parts.scheme not in {"https", "http"}:
        raise StartupError("FLX_JWT_JWKS: only https: addresses and files (by their path) are read")
    if not host or parts.username is not None or parts.fragment:
        raise StartupError("FLX_JWT_JWKS: the address needs a host, and no user and no fragment")
    if parts.scheme == "http" and not (environment == "development" and is_loopback(host)):
        raise StartupError("FLX_JWT_JWKS: http: is for loopback addresses in development; keys need https:")


def is_loopback(host: str) -> bool:
    """Whether this host is this machine, without looking a name up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def daemons(text: str, port: int) -> tuple[Place, ...]:
    """The daemons of a list of `host` and `host:port`; `port` is for those that name none."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(dict.fromkeys(_place("FLX_GRPC_DAEMON_HOST", part, port) for part in parts if part))


def listening(text: str) -> Place:
    """Host and port of `host:port`; port 0 takes any free one."""
    return _place("FLX_GRPC_LISTEN", text.strip(), None)


def _place(setting: str, text: str, default: int | None) -> Place:
    host, colon, number = text.rpartition(":")
    if text.count(":") > 1 and not text.startswith("["):
        # An IPv6 address as it is, which leaves no room for a port.
        host, colon = text, ""
    elif not colon or text.endswith("]"):
        host, colon = text, ""
    port = default if not colon else int(number) if re.fullmatch(r"[0-9]{1,5}", number) else None
    if port is None or port > LAST_PORT or (port == 0 and default is not None):
        raise StartupError(f"{setting}: a port is missing or no number up to {LAST_PORT}")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(bare)), port
    except ValueError:
        if host != bare or not _NAME.fullmatch(host):
            raise StartupError(f"{setting}: is no host, or host and port such as daemon:50051") from None
        return host.lower(), port


def check_peers(proxies: tuple[str, ...], hosts: tuple[str, ...], origins: tuple[str, ...]) -> None:
    """Hold that the native core takes these networks, that a Host can be one of these names, an Origin one of these."""
    for index, text in enumerate(proxies):
        address, slash, length = text.partition("/")
        try:
            ipaddress.ip_network(text)
        except ValueError:
            address = ""
        if not address or "%" in address or (slash and not length.isdigit()):
            msg = f"FLX_TRUSTED_PROXIES[{index}]: is no address and no network such as 10.0.0.0/8"
            raise StartupError(msg)
    for index, name in enumerate(hosts):
        if not _HOST.fullmatch(name):
            raise StartupError(f"FLX_TRUSTED_HOSTS[{index}]: is no name of a host (without a port, IPv6 in brackets)")
    for index, origin in enumerate(origins):
        if origin != "*" and not _is_origin(origin):
            msg = (
                "is no origin as browsers send it (scheme://host, or scheme://host:port; small letters, no slash after)"
            )
            raise StartupError(f"FLX_CORS_ORIGINS[{index}]: {msg}")


def _is_origin(text: str) -> bool:
    found = _ORIGIN.fullmatch(text)
    if not found:
        return False
    scheme, host, port = found.groups()
    try:
        written = f"[{ipaddress.IPv6Address(host[1:-1])}]" if host.startswith("[") else host
    except ValueError:
        return False
    # Browsers leave out the port that a scheme has anyway, and shorten addresses.
    return host == written and port != _OWN_PORTS.get(scheme, "") and int(port or 1) <= LAST_PORT


def check_redis(url: str) -> None:
    """Hold that Redis' client takes this address, and that it undoes nothing that is relied on."""
    no_address = "FLX_REDIS_URL: is no redis:, rediss: or unix: address"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise StartupError(no_address) from None
    place = {"redis": host, "rediss": host, "unix": parts.path}.get(parts.scheme)
    if not place or parts.fragment:
        raise StartupError(no_address)
    told = dict(options)
    known = _REDIS_OPTIONS | (_REDIS_TLS_OPTIONS if parts.scheme == "rediss" else frozenset())
    if not told.keys() <= known or len(told) < len(options):
        # A name that is not known may be a part of a password.
        raise StartupError("FLX_REDIS_URL: the address knows no such option, or has one twice")
    databases = [told.get("db", "0"), "0" if parts.scheme == "unix" else parts.path.removeprefix("/") or "0"]
    if not all(re.fullmatch(r"[0-9]{1,9}", database) for database in databases):
        raise StartupError("FLX_REDIS_URL: the database is a number")
    if told.get("ssl_cert_reqs", "required") not in {"required", "optional", "none"}:
        raise StartupError("FLX_REDIS_URL: ssl_cert_reqs is required, optional or none")
