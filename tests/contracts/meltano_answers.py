"""Real Meltano's answers about many projects, for the test that compares the daemon's model with them.

Strategy: runs in Meltano's own Python, never in ours. One process imports Meltano once (that is most of a command's
time) and forks for each project, so that nothing Meltano keeps in module state passes from one to the next. It uses the
services behind `job list`, `schedule list`, `environment list` and `run`, in the order in which the commands use them.

Reads from stdin a JSON list of {"root", "environ", "runs": [{"environment", "suffix", "names"}]}; writes a JSON list of
answers. An error is answered as {"error": its class}; Meltano's own wording is not compared.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN002, ANN003, ANN201  it speaks to Meltano, whose types are not in our environment

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings

import structlog
from meltano.cli.cli import detect_selected_environment
from meltano.core.block.block_parser import BlockParser, validate_block_sets
from meltano.core.block.extract_load import ExtractLoadBlocks
from meltano.core.db import project_engine
from meltano.core.environment_service import EnvironmentService
from meltano.core.migration_service import MigrationService
from meltano.core.plugin import PluginType
from meltano.core.plugin.error import PluginNotFoundError
from meltano.core.plugin.settings_service import PluginSettingsService
from meltano.core.plugin_lock_service import PluginLockService
from meltano.core.project import Project
from meltano.core.project_settings_service import ProjectSettingsService
from meltano.core.schedule_service import ScheduleService
from meltano.core.task_sets_service import TaskSetsService
from meltano.core.utils import flatten
from sqlalchemy import create_engine


def no_hub(_service, *, plugin_name, **_):
    """Stand in for the Hub, which must not be asked from a test."""
    raise PluginNotFoundError(plugin_name)


def as_env_once(service, *args, ask=ProjectSettingsService.as_env, **kwargs):
    """Meltano's own settings as variables, asked once: plugins ask for all of them anew, most of the time spent."""
    key = repr((args, kwargs))
    kept = service.__dict__.setdefault("_kept_as_env", {})
    if key not in kept:
        kept[key] = ask(service, *args, **kwargs)
    return kept[key]


PluginLockService._save_from_hub = no_hub
ProjectSettingsService.as_env = as_env_once


def tried(ask, *args):
    """The answer of a question, or the class of the error it met."""
    try:
        return ask(*args)
    except (Exception, RecursionError) as error:  # noqa: BLE001
        return {"error": type(error).__name__, "text": str(error)[:300]}


def jobs(project):
    return [
        {"name": job.name, "tasks": job.tasks, "split": tried(lambda job=job: job.flat_args_per_set)}
        for job in TaskSetsService(project).list_task_sets()
    ]


def schedules(project):
    return [
        {
            "name": item.name,
            "interval": item.interval,
            "cron": item.cron_interval,
            "env": list(item.env),
            **{key: item.attrs.get(key) for key in ("job", "extractor", "loader", "transform")},
        }
        for item in ScheduleService(project).schedules()
    ]


def environments(project):
    return [
        {
            "name": item.name,
            "env": list(item.env),
            "state_id_suffix": item.state_id_suffix,
            "overrides": [
                [str(kind), plugin.name, list(flatten(plugin.config_with_extras, "dot")), list(plugin.env)]
                for kind, found in item.config.plugins.items()
                for plugin in found
            ],
        }
        for item in EnvironmentService(project).list_environments()
    ]


def plugin_facts(project, plugin):
    project.plugins.ensure_parent(plugin)
    prefixes = plugin.env_prefixes()
    service = PluginSettingsService(project, plugin)
    return {
        "namespace": plugin.namespace,
        "variant": plugin.variant,
        "pip_url": plugin.pip_url,
        "executable": plugin.executable,
        "label": plugin.label,
        "python": plugin.python,
        "custom": plugin.is_custom(),
        "capabilities": [str(item) for item in plugin.capabilities or []],
        "settings": [
            [
                setting.name,
                setting.kind and str(setting.kind),
                bool(setting.sensitive),
                [var.key for var in setting.env_vars(prefixes, include_custom=plugin.is_shadowing)],
            ]
            for setting in plugin.all_settings
        ],
        "extra_settings": [
            [setting.name, [var.key for var in setting.env_vars(prefixes, include_custom=plugin.is_shadowing)]]
            for setting in plugin.extra_settings
        ],
        "commands": {name: command and command.args for name, command in plugin.all_commands.items()},
        "select": tried(service.get, "_select") if plugin.type is PluginType.EXTRACTORS else None,
    }


def plugins(project):
    found = []
    for plugin in project.plugins.plugins(ensure_parent=False):
        if plugin.is_mapping():
            if name := plugin.extra_config["_mapping_name"]:
                found[-1]["mappings"].append(name)
            continue
        found.append(
            {
                "type": str(plugin.type),
                "name": plugin.name,
                "inherit_from": plugin.inherit_from,
                "mappings": [],
                "facts": tried(plugin_facts, project, plugin),
            }
        )
    return found


def run_blocks(project, run):
    log = structlog.get_logger()
    parser = BlockParser(log, project, run["names"], state_id_suffix=run["suffix"])
    parsed = list(parser.find_blocks(0))
    assert validate_block_sets(log, parsed)
    return [
        {
            "extractor": block.head.string_id,
            "mappers": [
                part.context.plugin.extra_config.get("_mapping_name") or part.string_id for part in block.blocks[1:-1]
            ],
            "loader": block.tail.string_id,
            "state_id": block.context.job.job_name if block.context.job else None,
        }
        if isinstance(block, ExtractLoadBlocks)
        else {"plugin": block.name, "command": block.command}
        for block in parsed
    ]


def runs_in(project, environment, runs):
    """All runs of one environment. Meltano expands its suffix in place, once: the first run decides it for all."""
    if environment is not None:
        found = tried(project.activate_environment, environment)
        if found is not None:
            return [found for _ in runs]
    return [tried(run_blocks, project, run) for run in runs]


def all_runs(project, runs):
    by_environment = {}
    for place, run in enumerate(runs):
        by_environment.setdefault(run["environment"], []).append((place, run))
    found = {}
    for environment, placed in by_environment.items():
        asked = [run for _, run in placed]
        answered = forked(lambda where=environment, asked=asked: runs_in(project, where, asked))
        found.update(zip((place for place, _ in placed), answered, strict=True))
    return [found[place] for place in range(len(runs))]


def variables(project):
    """Every variable a setting is read from, of plugins and mappings, in each environment that changes some."""
    found = set()
    changing = [item.name for item in EnvironmentService(project).list_environments() if item.config.plugins]
    for environment in (None, *changing):
        if environment is not None:
            project.activate_environment(environment)
        for plugin in project.plugins.plugins(ensure_parent=False):
            service = tried(lambda plugin=plugin: PluginSettingsService(project, project.plugins.ensure_parent(plugin)))
            if isinstance(service, PluginSettingsService):
                found |= {var.key for one in service.setting_definitions for var in service.setting_env_vars(one)}
    return sorted(found)


def answers(question):
    os.environ.update(question["environ"])
    os.chdir(question["root"])
    try:
        project = Project(question["root"])
        loaded = project.meltano
    except (Exception, RecursionError) as error:  # noqa: BLE001
        return {"error": type(error).__name__, "text": str(error)[:300]}
    # One loading serves all questions: Meltano extends the lists of meltano.yml in place by those of included files, so
    # that a second loading in one process finds them twice.
    Project.meltano = property(lambda _self: loaded)
    project_engine(project, default=True)
    selected, _ = detect_selected_environment(cli_environment=None, cli_no_environment=False, project=project)
    return {
        "jobs": jobs(project),
        "schedules": tried(schedules, project),
        "environments": environments(project),
        "selected": selected,
        "project_id": project.settings.get("project_id"),
        "dotenv": list(project.dotenv_env),
        "runs": all_runs(project, question["runs"]),
        "plugins": plugins(project),
        "variables": variables(project),
    }


def forked(ask):
    """Ask in a child, so that the next question meets a Meltano that has seen nothing yet."""
    with tempfile.TemporaryFile() as answer:
        if (child := os.fork()) == 0:
            try:
                answer.write(json.dumps(ask(), default=str).encode())
                answer.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        return json.loads(answer.read() or b'{"error": "Crashed", "text": ""}')


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        # One migrated database for all: plugins' settings are looked up in it, and making it takes longer than asking.
        os.environ["MELTANO_DATABASE_URI"] = f"sqlite:///{folder}/meltano.db"
        forked(lambda: MigrationService(create_engine(os.environ["MELTANO_DATABASE_URI"])).upgrade(silent=True))
        found = [forked(lambda question=question: answers(question)) for question in json.load(sys.stdin)]
    json.dump(found, sys.stdout)
