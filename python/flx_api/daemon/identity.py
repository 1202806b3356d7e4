"""The id of the project whose rows are in the database.

Strategy: Meltano's own `project_id` when there is one at the first start, else a random one; kept in the data folder
from then on. So neither a meltano.yml that cannot be read nor one that gains an id later hides the rows there are.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from flx_api.daemon.project import ProjectCache
from flx_api.errors import ProjectInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.config import Settings


def project_id_of(settings: Settings, environ: Mapping[str, str] | None = None) -> str:
    """The id under which the project's rows are kept; the data folder must exist.

    Call it with the data folder's lock held.
    """
    file = settings.data_path / "project_id"
    try:
        kept = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        kept = ""
    if kept:
        return kept
    try:
        chosen = ProjectCache(settings.project_dir, environ or {}).current().project_id
    except ProjectInvalid:
        chosen = None
    chosen = (chosen or "").strip()[:255] or str(uuid.uuid4())
    beside = file.with_name(f".project_id.{os.getpid()}")
    beside.write_text(f"{chosen}\n", encoding="utf-8")
    beside.replace(file)
    return chosen
