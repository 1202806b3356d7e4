"""Executions: from an accepted command to the true end of a run.

Read in this order: `states` (what can happen), `planning` (who starts), `supervisor` (the life of one attempt),
`outcome` (what an end means), `store` (the only writer of a status), `executions` (how they come together).
"""

from flx_api.daemon.executions.executions import Executions, Submitted
from flx_api.daemon.executions.log_file import LogFile

__all__ = ["Executions", "LogFile", "Submitted"]
