"""The daemon's model of a project against real Meltano's answers about the same files.

Strategy: each file of `projects/` is one small project and the runs to ask about, in one text. Real Meltano answers
for all of them in one process (`meltano_answers.py`); each project is then a test that compares. A few literal
commands hold that driver itself against the command line.

A project file: a sentence, lines `environ NAME=VALUE` and `run ENVIRONMENT[+SUFFIX] NAMES` (`-` is no environment),
then for each file `-- path --` and its content.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flx_api.daemon.project import CommandBlock, Plugin, ProjectCache, ProjectModel, SingerBlock
from flx_api.errors import ProjectInvalid, ValidationFailed

HERE = Path(__file__).parent
# Meltano answers in about ten seconds; on a machine that is busy otherwise it may take much longer.
pytestmark = pytest.mark.timeout(300)

PROJECTS = sorted((HERE / "projects").glob("*.txtar"))
COMMAND_LINE = (
    ("03-one-pipeline", "jobs"),
    ("07-jobs", "jobs"),
    ("34-annotations", "jobs"),
    ("34-annotations", "schedules"),
    ("09-environments", "environments"),
)


class Run(NamedTuple):
    """One question about blocks and state ids."""

    environment: str | None
    suffix: str | None
    names: list[str]


class Variant(NamedTuple):
    """One written project."""

    root: Path
    environ: dict[str, str]
    runs: list[Run]


def write(text: str, root: Path) -> Variant:
    """Unpack a project file into a folder."""
    head, *parts = text.split("\n-- ")
    environ: dict[str, str] = {}
    runs: list[Run] = []
    for line in head.splitlines()[1:]:
        kind, _, rest = line.partition(" ")
        if kind == "environ":
            name, _, value = rest.partition("=")
            environ[name] = value
        elif kind == "run":
            where, *names = shlex.split(rest)
            environment, _, suffix = where.partition("+")
            runs.append(Run(None if environment == "-" else environment, suffix or None, names))
    if "project_id" not in text:
        # Meltano writes meltano.yml anew, in its own form, when it misses one.
        environ["MELTANO_PROJECT_ID"] = root.name
    for part in parts:
        name, _, content = part.partition(" --\n")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return Variant(root, environ, runs)


def meltano_environ(home: Path) -> dict[str, str]:
    """An environment in which Meltano neither reports nor asks anywhere, nor writes outside the test's folder."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "false",
        "MELTANO_CLI_DISABLE_VERSION_CHECK": "1",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    """Every project file, unpacked."""
    base = tmp_path_factory.mktemp("projects")
    return {path.stem: write(path.read_text(), base / path.stem) for path in PROJECTS}


@pytest.fixture(scope="module")
def answers(
    meltano_env: Path, variants: dict[str, Variant], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Real Meltano's answer about each project."""
    home = tmp_path_factory.mktemp("home")
    questions = [
        {"root": str(item.root), "environ": item.environ, "runs": [run._asdict() for run in item.runs]}
        for item in variants.values()
    ]
    done = subprocess.run(
        [meltano_env / "bin" / "python", HERE / "meltano_answers.py"],
        input=json.dumps(questions),
        env=meltano_environ(home),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(variants, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", [path.stem for path in PROJECTS])
def test_model_agrees_with_meltano(name: str, variants: dict[str, Variant], answers: dict[str, Any]) -> None:
    """Whatever Meltano loads, the model says the same about it; whatever Meltano refuses, it refuses with a place."""
    variant, answer = variants[name], answers[name]
    cache = ProjectCache(variant.root, variant.environ)
    if "error" in answer:
        with pytest.raises(ProjectInvalid) as refused:
            cache.current()
        assert all(item.field and item.reason for item in refused.value.errors)
        return
    model = cache.current()
    assert [facts(job) for job in answer["jobs"]] == [
        {"name": job.name, "split": None if job.problem else [list(task) for task in job.tasks]} for job in model.jobs
    ]
    assert answer["schedules"] == [
        {
            "name": item.name,
            "interval": item.interval,
            "cron": item.cron,
            "env": list(item.env),
            "job": item.job,
            "extractor": item.extractor,
            "loader": item.loader,
            "transform": item.transform,
        }
        for item in model.schedules
    ]
    assert answer["environments"] == [
        {
            "name": item.name,
            "env": list(item.env),
            "state_id_suffix": item.state_id_suffix,
            "overrides": [[one.type, one.name, list(one.keys), list(one.env)] for one in item.overrides],
        }
        for item in model.environments
    ]
    assert answer["selected"] == model.default_environment
    assert answer["project_id"] == model.project_id
    assert answer["dotenv"] == list(model.dotenv_names)
    assert [(item["type"], item["name"], item["inherit_from"], item["mappings"]) for item in answer["plugins"]] == [
        (item.type, item.name, item.inherit_from, list(item.mappings)) for item in model.plugins
    ]
    for theirs, ours in zip(answer["plugins"], model.plugins, strict=True):
        agree_on_plugin(theirs["facts"], ours)
    agree_on_variables(answer, model)
    for run, theirs in zip(variant.runs, answer["runs"], strict=True):
        assert blocks_of(model, run) == (None if "error" in theirs else theirs), (run, theirs)


def facts(job: dict[str, Any]) -> dict[str, Any]:
    """What is compared of a job; one that Meltano cannot split is one it cannot run."""
    return {"name": str(job["name"]), "split": None if isinstance(job["split"], dict) else job["split"]}


def agree_on_plugin(theirs: dict[str, Any], ours: Plugin) -> None:
    """One plugin, everything inherited."""
    if "error" in theirs:
        expected = "hub" if theirs["error"] == "PluginDefinitionNotFoundError" else "broken"
        assert (ours.name, ours.source) == (ours.name, expected), theirs
        assert ours.problem
        return
    assert ours.source not in {"hub", "broken"}, ours.problem
    assert {
        "namespace": ours.namespace,
        "variant": ours.variant,
        "pip_url": ours.pip_url,
        "executable": ours.executable,
        "label": ours.label,
        "python": ours.python,
        "custom": ours.is_custom,
        "capabilities": list(ours.capabilities),
        "commands": {name: command.args for name, command in ours.commands.items()},
    } == {key: theirs[key] for key in theirs if key not in {"settings", "extra_settings", "select"}}
    assert [item[:3] for item in theirs["settings"]] == [
        [item.name, item.kind, item.sensitive] for item in ours.settings
    ]
    assert [item[0] for item in theirs["extra_settings"]] == [item.name for item in ours.extra_settings]
    for (*_, variables), item in zip(theirs["settings"], ours.settings, strict=True):
        # Ours also names the variable of `env`, which Meltano sets for the plugin and does not read.
        assert [name.removeprefix("!") for name in variables] == list(item.env)[: len(variables)]
        assert len(item.env) <= len(variables) + 1
    for (_, variables), item in zip(theirs["extra_settings"], ours.extra_settings, strict=True):
        assert variables == list(item.env)
    if ours.type == "extractors" and isinstance(theirs["select"], list):
        assert theirs["select"] == list(ours.select)


def agree_on_variables(answer: dict[str, Any], model: ProjectModel) -> None:
    """The variables settings can be read from, all of them; and no others but those of `env`, which Meltano sets."""
    readable = set(answer["variables"])
    assert readable <= model.settings_env_names()
    if not any(plugin.problem for plugin in model.plugins):
        own = {item.env[-1] for plugin in model.plugins for item in plugin.settings}
        assert model.settings_env_names() - readable <= own


def blocks_of(model: ProjectModel, run: Run) -> list[dict[str, Any]] | None:
    """The model's answer in the shape of Meltano's; None where it refuses."""
    try:
        blocks = model.blocks(run.names, run.environment, run.suffix)
    except ValidationFailed:
        return None
    expected = [block.state_id for block in blocks if isinstance(block, SingerBlock) and block.state_id]
    assert list(model.state_ids(run.names, run.environment, run.suffix)) == expected
    return [
        {"plugin": block.plugin, "command": block.command}
        if isinstance(block, CommandBlock)
        else {
            "extractor": block.extractor,
            "mappers": list(block.mappers),
            "loader": block.loader,
            "state_id": block.state_id,
        }
        for block in blocks
    ]


def test_driver_agrees_with_the_command_line(
    meltano_env: Path, variants: dict[str, Variant], answers: dict[str, Any], tmp_path: Path
) -> None:
    """What the driver says is what `job list`, `schedule list` and `environment list` print."""
    commands = {
        "jobs": ["job", "list", "--format", "json"],
        "schedules": ["schedule", "list", "--format", "json"],
        "environments": ["environment", "list"],
    }

    def ask(name: str, key: str) -> str:
        done = subprocess.run(
            [meltano_env / "bin" / "meltano", *commands[key]],
            env=meltano_environ(tmp_path) | variants[name].environ,
            cwd=variants[name].root,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    # One after the other: two that open a project's system database for the first time at once may both migrate it.
    printed = [ask(*item) for item in COMMAND_LINE]
    for (name, key), text in zip(COMMAND_LINE, printed, strict=True):
        answer = answers[name][key]
        if key == "jobs":
            found = [(job["job_name"], job["tasks"]) for job in json.loads(text)["jobs"]]
            assert found == [(job["name"], job["tasks"]) for job in answer]
        elif key == "schedules":
            listed = json.loads(text)["schedules"]
            printed_as = [[item[field] for field in ("name", "interval", "cron_interval")] for item in listed["job"]]
            assert not listed["elt"]
            assert printed_as == [[item[field] for field in ("name", "interval", "cron")] for item in answer]
        else:
            assert text.split() == [item["name"] for item in answer]
