"""The logs of executions that somebody may follow or has read lately.

Strategy: a log is found by its execution and stays what it is for its readers: through further attempts, and over the
end. Those of executions that are not over are all kept, also of those that wait: readers may be there before the first
line. Of those that are over the index of the last few is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from flx_api.daemon.executions.log_file import LogFile
from flx_api.daemon.executions.states import FINAL

if TYPE_CHECKING:
    from pathlib import Path

    from flx_api.daemon.executions.store import Store, Stored
    from flx_api.daemon.journal import Journal

_MOST = 64


class OpenLogs:
    """None at first.

    Args:
        journal: the daemon's database.
        store: the statements about executions.
        runs_dir: where the folders of attempts are.
    """

    def __init__(self, journal: Journal, store: Store, runs_dir: Path) -> None:
        self._journal = journal
        self._store = store
        self._runs_dir = runs_dir
        self._live: dict[str, LogFile] = {}
        self._over: OrderedDict[str, LogFile] = OrderedDict()

    def of(self, execution_id: str) -> LogFile:
        """The log of an execution; its `tenant` says who may read it.

        Raises:
            NotFound: there is no such execution.
        """
        found = self._live.get(execution_id) or self._over.get(execution_id)
        if found is None:
            with self._journal.read() as connection:
                stored = self._store.find(connection, execution_id)
                several = stored.execution.attempts > 1
                logged = self._store.logged(connection, execution_id) if several else []
            over = stored.execution.status in FINAL
            earlier = [self._path(attempt_id) for attempt_id in logged if attempt_id != stored.attempt_id]
            found = LogFile(self._path(stored.attempt_id), tenant=stored.tenant, complete=over, earlier=earlier)
            if not over:
                self._live[execution_id] = found
                return found
            self._keep(execution_id, found)
        return found

    def renew(self, execution_id: str) -> None:
        """Another attempt was told: forget the log that ends with the one before.

        Events are told before whoever made the attempt goes on, and so before memory follows.

        Raises:
            NotFound: there is no such execution.
        """
        found = self._over.get(execution_id)
        if found is None:
            return
        with self._journal.read() as connection:
            stored = self._store.find(connection, execution_id)
        # Who reads old events comes here too, and then the log may be that of the latest attempt already.
        if found.path != self._path(stored.attempt_id):
            del self._over[execution_id]

    def go_on(self, stored: Stored) -> None:
        """It is not over, or not any more: whoever follows its log hears of this attempt."""
        self._over.pop(stored.id, None)
        known, path = self._live.get(stored.id), self._path(stored.attempt_id)
        if known is not None and known.path != path:
            known.continue_in(path)

    def finish(self, execution_id: str) -> None:
        """It is over: nothing comes any more."""
        found = self._live.pop(execution_id, None)
        if found is not None:
            found.finish()
            self._keep(execution_id, found)

    def forget(self) -> None:
        """Forget those that are over: their files may be gone."""
        self._over.clear()

    def _path(self, attempt_id: str) -> Path:
        return self._runs_dir / attempt_id / "log.jsonl"

    def _keep(self, execution_id: str, found: LogFile) -> None:
        """Keep the index of a log that is over for a while."""
        self._over[execution_id] = found
        while len(self._over) > _MOST:
            self._over.popitem(last=False)
