"""Where a running service lives: its data folder, its key, its runtime directory, its listening socket, its addresses.

Strategy: everything that must exist before the first process starts is made here, each by a function that either
succeeds or raises a `StartupError` of one line. Clients on the same machine find the service through
`<data dir>/endpoints.json`.

Rules:
- What holds secrets is 0600, its folder 0700. Files others read while we write are put in place by a rename.
- Only light imports: `flx serve` pays for each of them before anything listens.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flx_api.daemon.lock import DataLock
from flx_api.errors import StartupError

if TYPE_CHECKING:
    from flx_api.config import Settings

SECRET_BYTES = 32
# sun_path holds 108 bytes on Linux and 104 elsewhere, with the closing zero.
SOCKET_PATH_LIMIT = 100
BACKLOG = 2048


class Endpoints(msgspec.Struct, frozen=True):
    """What a service tells clients on the same machine about itself. `pid` is the supervisor's; `realtime_url` is that
    of the native listener, empty without one.
    """

    url: str
    ws_url: str
    daemon_socket: str
    pid: int
    data_dir: str
    project: str
    realtime_url: str = ""


def endpoints_file(settings: Settings) -> Path:
    """Where the addresses of a running service are."""
    return settings.data_path / "endpoints.json"


def check_project(settings: Settings) -> None:
    """Hold that the project's folder has a meltano.yml.

    Raises:
        StartupError: it has none.
    """
    if not (settings.project_dir / "meltano.yml").is_file():
        msg = f"FLX_PROJECT: {settings.project_dir} holds no meltano.yml"
        raise StartupError(msg)


def check_limits(settings: Settings) -> None:
    """Hold that the routes and commands exist that policies name.

    The gateway holds the same; here nothing has been started yet, and nothing else has been said.

    Raises:
        StartupError: a policy names what does not exist.
    """
    if any(policy.routes or policy.commands or policy.costs for policy in settings.rate_limits):
        # Names have to be known for few policies, and the default ones are not among them.
        from flx_api.commands import COMMANDS  # noqa: PLC0415
        from flx_api.limits import policies  # noqa: PLC0415
        from flx_api.routes.table import templates  # noqa: PLC0415

        policies.check(settings.rate_limits, templates(), COMMANDS)


def check_certificate(settings: Settings) -> None:
    """Hold that the certificate and its key can be used, for the same reason.

    Raises:
        StartupError: they cannot.
    """
    if settings.enable_ssl:
        from flx_api.gateway.certificate import certificate  # noqa: PLC0415 - native code, which few starts need here

        certificate(settings)


def prepare_data_folder(settings: Settings) -> Path:
    """Make the data folder, readable by nobody else; in development also the key, when none is given.

    Raises:
        StartupError: it cannot be made or written, or the key file is not a key.
    """
    folder = settings.data_path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if settings.jwt_secret_key is None and settings.environment == "development":
            _prepare_secret(settings.secret_key_file)
    except OSError as error:
        msg = f"FLX_DATA_DIR: {folder} cannot be used: {os.strerror(error.errno or 0)}"
        raise StartupError(msg) from None
    return folder


def _prepare_secret(file: Path) -> None:
    if not file.exists():
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(SECRET_BYTES))
        try:
            # link, not rename: when two start at once, the first one's key stays.
            os.link(beside, file)
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    if file.stat().st_size < SECRET_BYTES:
        msg = f"FLX_JWT_SECRET_KEY: {file} is shorter than {SECRET_BYTES} bytes; remove it to have a new one made"
        raise StartupError(msg)


def make_runtime_dir(settings: Settings, environ: dict[str, str]) -> Path:
    """Make the folder for sockets, named by the data folder so that two services never meet.

    It lies in XDG_RUNTIME_DIR, else in TMPDIR, else in /tmp: the first in which a socket's path is short enough.

    Raises:
        StartupError: it cannot be made or belongs to someone else.
    """
    mark = hashlib.sha256(os.fsencode(settings.data_path)).hexdigest()[:12]
    owned = f"flx-{os.getuid()}-{mark}"
    places = [Path(place) / owned for place in (environ.get("TMPDIR"), "/tmp") if place]  # noqa: S108 - owner checked
    chosen = environ.get("XDG_RUNTIME_DIR", "")
    if chosen and os.access(chosen, os.W_OK | os.X_OK):
        places.insert(0, Path(chosen) / f"flx-{mark}")
    folder = next((p for p in places if len(os.fsencode(p / "daemon.sock")) <= SOCKET_PATH_LIMIT), places[-1])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or folder.is_symlink():
            msg = f"XDG_RUNTIME_DIR: {folder} belongs to someone else"
            raise StartupError(msg)
        folder.chmod(0o700)
    except OSError as error:
        msg = f"XDG_RUNTIME_DIR: {folder} cannot be made: {os.strerror(error.errno or 0)}"
        raise StartupError(msg) from None
    return folder


def remove_runtime_dir(folder: Path) -> None:
    """Take the runtime directory away with whatever sockets are left in it."""
    shutil.rmtree(folder, ignore_errors=True)


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the configured address: the gateway serves it, and it outlives a gateway's crash.

    Raises:
        StartupError: the port is taken or not allowed, or the host is not an address of this machine.
    """
    listener = _bound(settings, "FLX_API_PORT", settings.api_port, "name another port, or 0 for any free one")
    listener.listen(BACKLOG)
    return listener


def reserve_realtime(settings: Settings) -> socket.socket | None:
    """A socket that holds the native listener's port and does not listen; None without one.

    The gateway's worker that listens there can come and go: beside a socket that is bound and does not listen it may
    bind as well, and nobody else gets the port meanwhile.

    Raises:
        StartupError: as `listen`.
    """
    if settings.realtime_port is None:
        return None
    return _bound(
        settings, "FLX_REALTIME_PORT", settings.realtime_port, "name another port, 0 for any free one, or off"
    )


def _bound(settings: Settings, setting: str, port: int, remedy: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.api_host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        msg = f"FLX_API_HOST: {settings.api_host} is not an address"
        raise StartupError(msg) from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        reasons = {
            errno.EADDRINUSE: f"{setting}: {port} is in use; {remedy}",
            errno.EACCES: f"{setting}: {port} needs rights this user does not have",
            errno.EADDRNOTAVAIL: f"FLX_API_HOST: {settings.api_host} is not an address of this machine",
        }
        raise StartupError(reasons.get(error.errno or 0, f"{setting}: cannot listen: {error.strerror}")) from None
    return found


def urls_of(settings: Settings, listener: socket.socket) -> tuple[str, str]:
    """The HTTP and WebSocket base URLs of a bound socket, as a client on this machine would name them."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    s = "s" if settings.enable_ssl else ""
    return f"http{s}://{place}", f"ws{s}://{place}"


def write_endpoints(settings: Settings, endpoints: Endpoints) -> None:
    """Tell clients on this machine where the service is."""
    file = endpoints_file(settings)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(endpoints), indent=2) + b"\n")
    beside.replace(file)


def remove_endpoints(settings: Settings) -> None:
    """Stop telling."""
    with contextlib.suppress(OSError):
        endpoints_file(settings).unlink()


def hold(settings: Settings) -> DataLock:
    """What a service holds for as long as it lives, in a folder that is prepared. Entering raises `StartupError`."""
    return DataLock(settings.data_path, "service")


def running_service(settings: Settings) -> Endpoints | None:
    """The service that uses this data folder, or None. A file that a killed service left is no service.

    Its process number says nothing: that may be anybody's by now, in a container our own.
    """
    try:
        found = msgspec.json.decode(endpoints_file(settings).read_bytes(), type=Endpoints)
        return found if hold(settings).is_held() else None
    except (OSError, msgspec.DecodeError):
        return None
