"""The daemon's own model of meltano.yml: read in microseconds, in agreement with Meltano's own answers.

`ProjectCache` watches and reads the files; `ProjectModel` is what it hands out. A contract test holds both against the
real Meltano.
"""

from flx_api.daemon.project.blocks import Block, CommandBlock, SingerBlock
from flx_api.daemon.project.cache import ProjectCache
from flx_api.daemon.project.model import (
    Command,
    Environment,
    Job,
    Override,
    Plugin,
    ProjectModel,
    Schedule,
    SettingModel,
)

__all__ = [
    "Block",
    "Command",
    "CommandBlock",
    "Environment",
    "Job",
    "Override",
    "Plugin",
    "ProjectCache",
    "ProjectModel",
    "Schedule",
    "SettingModel",
    "SingerBlock",
]
