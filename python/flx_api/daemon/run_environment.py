"""The environment of a run: an allow-list, as a pure function.

Strategy: nothing of the daemon's environment reaches a run unless a rule here names it. A plugin is somebody else's
code; our own settings hold signing keys and database passwords. What Meltano and the project need is known by name:
where programs, home and temporary files are, the locale, certificates and proxies, Meltano's and the plugins' own
prefixes, the names the project itself mentions, and what the operator lists in `FLX_RUN_ENV`.

Rules:
- A name that begins with `FLX_` never passes, whatever matches it.
- Names that make a program load other code (`LD_PRELOAD`, `PYTHONPATH`, ...) pass only when the operator lists them.
- `MELTANO_RUN_*` does not pass: what a run is (full refresh, run id, timeout) is said by its command line alone.
- The variables that make runs safe beside each other (`fixed_environment`) win over everything.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

OURS = "FLX_"

MACHINE_NAMES = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    }
)
MACHINE_PREFIXES = ("LC_",)
PROJECT_PREFIXES = ("MELTANO_", "TAP_", "TARGET_", "DBT_")
COMMAND_LINE_PREFIX = "MELTANO_RUN_"

# Loaders and interpreters take code from these. (`PYTHONWARNINGS` and the like are caught too: list what you need.)
LOADER_PREFIXES = ("LD_", "DYLD_", "PYTHON", "GLIBC_", "BASH_FUNC_")
LOADER_NAMES = frozenset(
    {"BASH_ENV", "ENV", "IFS", "NODE_OPTIONS", "PERL5LIB", "PERL5OPT", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS"}
)


def machine_environment(environ: Mapping[str, str], run_env: Collection[str] = ()) -> dict[str, str]:
    """What any process of Meltano needs of the machine, plus the operator's `FLX_RUN_ENV`: nothing of the project."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(OURS) and (_is_machine(name) or _listed(name, run_env))
    }


def run_environment(
    environ: Mapping[str, str],
    *,
    dotenv_names: Collection[str] = (),
    settings_env_names: Collection[str] = (),
    run_env: Collection[str] = (),
    overrides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The part of `environ` a run may see, with the run's own variables laid over it.

    Args:
        environ: the daemon's environment.
        dotenv_names: the names in the project's `.env`.
        settings_env_names: the environment names of the plugins' settings.
        run_env: `FLX_RUN_ENV`, names or globs such as `AWS_*`.
        overrides: variables of this run, already checked by the caller.
    """
    project = frozenset(dotenv_names) | frozenset(settings_env_names)
    allowed = {
        name: value
        for name, value in environ.items()
        if not name.startswith(OURS) and (_listed(name, run_env) or (_is_known(name, project) and not loads_code(name)))
    }
    laid_over = {
        name: value
        for name, value in (overrides or {}).items()
        if not name.startswith(OURS) and (not loads_code(name) or _listed(name, run_env))
    }
    return allowed | laid_over


def fixed_environment(
    *, project_root: Path, system_dir: Path, database_uri: str, absent_file: Path, log_level: str
) -> dict[str, str]:
    """Variables that every run has and nobody overrides.

    Args:
        project_root: the Meltano project.
        system_dir: the run's private system folder.
        database_uri: Meltano's database, which all runs share.
        absent_file: a path that does not exist; a project's own `logging.yaml` would silence the log we follow.
        log_level: `debug` or `info`; anything quieter would hide the events that tell what happened.
    """
    return {
        "MELTANO_PROJECT_ROOT": str(project_root),
        "MELTANO_SYS_DIR_ROOT": str(system_dir),
        "MELTANO_DATABASE_URI": database_uri,
        "MELTANO_CLI_LOG_CONFIG": str(absent_file),
        "MELTANO_CLI_LOG_LEVEL": log_level,
        "MELTANO_CLI_LOG_FORMAT": "json",
        "MELTANO_CLI_DISABLE_VERSION_CHECK": "1",
        "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "false",
        "MELTANO_JOB_TRIGGER": "flx-api",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def loads_code(name: str) -> bool:
    """Whether the variable can make a program run other code than its own."""
    return name in LOADER_NAMES or name.startswith(LOADER_PREFIXES)


def _is_machine(name: str) -> bool:
    return name in MACHINE_NAMES or name.startswith(MACHINE_PREFIXES)


def _is_known(name: str, project: frozenset[str]) -> bool:
    if name.startswith(COMMAND_LINE_PREFIX):
        return False
    return _is_machine(name) or name.startswith(PROJECT_PREFIXES) or name in project


def _listed(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
