"""`flx doctor`: look at everything a service needs, say what is broken and how to mend it.

Strategy: a check is a function that yields findings; a finding is good, worth a remark, or broken with a remedy.
Nothing is changed, and nothing waits for long.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct, ValidationError, convert

from flx_api.cli import meltano, runtime
from flx_api.errors import FlxError, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flx_api.config import Settings

_MIN_PYTHON, _PAST_PYTHON = (3, 11), (3, 15)
_LOW_DISK_GIB = 1.0
_MELTANO = "4.4.1"
_TIMEOUT_S = 20
_REDIS_TIMEOUT_S = 3


class _Plugin(Struct):
    name: str
    inherit_from: str | None = None
    pip_url: str | None = None


class _Declared(Struct):
    """What of a meltano.yml is looked at here."""

    plugins: dict[str, list[_Plugin] | None] | None = None


class Finding(NamedTuple):
    """One thing that was looked at. `remedy` says what to do when it is not good."""

    state: str
    what: str
    remedy: str = ""


def examine(settings: Settings) -> int:
    """Print all findings; 1 when something is broken."""
    broken = 0
    for check in CHECKS:
        for finding in _run(check, settings):
            print(f"{finding.state:<7} {finding.what}" + (f"\n        {finding.remedy}" if finding.remedy else ""))
            broken += finding.state == "broken"
    print("nothing is broken" if not broken else f"{broken} broken")
    return 1 if broken else 0


def _run(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    try:
        yield from check(settings)
    except subprocess.TimeoutExpired as error:
        yield Finding("broken", f"{error.cmd[0]} does not end within {_TIMEOUT_S} s")
    except (StartupError, FlxError, OSError) as error:
        yield Finding("broken", str(error))


def python(_: Settings) -> Iterator[Finding]:
    """The interpreter and the native module."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    good = _MIN_PYTHON <= sys.version_info[:2] < _PAST_PYTHON
    yield Finding("good" if good else "broken", f"Python {version}", "" if good else "use Python 3.11 to 3.14")
    try:
        from flx_api import _core  # noqa: PLC0415 - its absence is a finding
    except ImportError:
        yield Finding("broken", "the native module is missing", "install the wheel, or run `make setup` in a checkout")
        return
    profile = _core.build_profile()
    remark = "" if profile == "release" else "rebuild with `make setup`; a debug build is many times slower"
    yield Finding("good" if profile == "release" else "note", f"native module ({profile})", remark)


def project(settings: Settings) -> Iterator[Finding]:
    """The project's files and its plugins, where they are this machine's affair."""
    if settings.grpc_daemon_host is not None:
        return
    runtime.check_project(settings)
    yield Finding("good", f"project {settings.project_dir}")
    for folder in sorted((settings.project_dir / ".meltano").glob("*/*/venv")):
        name = f"plugin {folder.parent.parent.name}/{folder.parent.name}"
        if (folder / "bin" / "python").exists():
            yield Finding("good", name)
        else:
            remedy = f"run `meltano install --force` in {settings.project_dir}"
            yield Finding("broken", f"{name}: its Python is gone", remedy)
    yield from _missing_plugins(settings)


def _missing_plugins(settings: Settings) -> Iterator[Finding]:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only here
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    try:
        document = YAML(typ="safe", pure=True).load(settings.project_dir / "meltano.yml") or {}
    except YAMLError as error:
        yield Finding("broken", f"meltano.yml is not YAML: {str(error).splitlines()[0]}", "mend the file")
        return
    try:
        declared = convert(document, _Declared).plugins or {}
    except ValidationError as error:
        yield Finding("broken", f"meltano.yml is not laid out as Meltano has it: {error}", "mend the file")
        return
    for kind, plugins in declared.items():
        for plugin in plugins or ():
            if plugin.inherit_from or not plugin.pip_url:
                continue
            if not (settings.project_dir / ".meltano" / kind / plugin.name / "venv").exists():
                remedy = f"run `meltano install` in {settings.project_dir}"
                yield Finding("broken", f"plugin {kind}/{plugin.name} is not installed", remedy)


def meltano_environment(settings: Settings) -> Iterator[Finding]:
    """Meltano's environment and its version."""
    folder = meltano.environment_folder(settings)
    if not meltano.is_ready(folder):
        yield Finding(
            "note", f"no Meltano in {folder} yet", "`flx serve` makes it when it starts (needs a package index)"
        )
        return
    version = meltano.version_of(folder)
    done = subprocess.run(  # noqa: S603 - the environment's own command
        [str(folder / "bin" / "python"), "-c", "import meltano"], capture_output=True, check=False, timeout=_TIMEOUT_S
    )
    if done.returncode:
        yield Finding("broken", f"Meltano in {folder} cannot be imported", "remove the folder; it is made again")
    elif version == _MELTANO:
        yield Finding("good", f"Meltano {version} in {folder}")
    else:
        remark = f"tested with {_MELTANO}; metering and warm starts rely on names inside it"
        yield Finding("note", f"Meltano {version} in {folder}", remark)


def folders(settings: Settings) -> Iterator[Finding]:
    """The data folder, its key, the disk, and the length of socket paths."""
    folder = settings.data_path
    if folder.exists():
        mode = folder.stat().st_mode & 0o077
        remedy = f"chmod 700 {folder}" if mode else ""
        yield Finding("broken" if mode else "good", f"data folder {folder}", remedy)
    else:
        yield Finding("note", f"data folder {folder} does not exist yet")
    key = settings.secret_key_file
    if settings.jwt_secret_key is None and key.exists():
        bad = bool(key.stat().st_mode & 0o077) or key.stat().st_size < runtime.SECRET_BYTES
        yield Finding("broken" if bad else "good", "secret.key", f"remove {key}; a new one is made" if bad else "")
    free = shutil.disk_usage(_nearest(folder)).free / 2**30
    low = free < _LOW_DISK_GIB
    yield Finding(
        "broken" if low else "good", f"{free:.1f} GiB free", "make room: logs and state need it" if low else ""
    )


def _nearest(folder: Path) -> Path:
    return folder if folder.exists() else _nearest(folder.parent)


def service(settings: Settings) -> Iterator[Finding]:
    """The running service, or whether one could listen."""
    running = runtime.running_service(settings)
    if running is not None:
        yield Finding("good", f"a service runs: process {running.pid}, {running.url}")
        return
    runtime.listen(settings).close()
    yield Finding("good", f"port {settings.api_port or 'any'} on {settings.api_host} is free")
    realtime = runtime.reserve_realtime(settings)
    if realtime is not None:
        realtime.close()
        yield Finding("good", f"port {settings.realtime_port or 'any'} for live events is free")


def redis(settings: Settings) -> Iterator[Finding]:
    """Redis, when one is configured: asked with the whole address, as the gateways ask. An error's text may hold it."""
    if settings.redis_url is None:
        return
    from redis import Redis  # noqa: PLC0415 - only here
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.exceptions import AuthenticationError, RedisError, ResponseError  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    wait_s, once = _REDIS_TIMEOUT_S, Retry(NoBackoff(), 0)
    try:
        with Redis.from_url(
            settings.redis_url, protocol=3, socket_timeout=wait_s, socket_connect_timeout=wait_s, retry=once
        ) as client:
            client.ping()
    except AuthenticationError:
        yield Finding("broken", "FLX_REDIS_URL: Redis refuses the user or the password")
    except ResponseError as error:
        yield Finding("broken", f"FLX_REDIS_URL: Redis refuses what the address says ({type(error).__name__})")
    except (RedisError, OSError) as error:
        yield Finding("broken", f"FLX_REDIS_URL: Redis does not answer ({type(error).__name__})")
    else:
        yield Finding("good", "FLX_REDIS_URL: Redis answers")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    python,
    project,
    meltano_environment,
    folders,
    service,
    redis,
)
