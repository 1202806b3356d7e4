"""Admission that has to wait for a lease: asked again after each sync, for a bounded time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from flx_api.gateway import patience
from flx_api.gateway.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

AWAITED = ("lease_awaited", 0, 1)
USED_UP = ("rate_limited", 0, 7)


class Syncing:
    """Leases whose syncs come at once, a number of times; then never."""

    def __init__(self, syncs: int) -> None:
        self.syncs = syncs

    async def wait(self) -> bool:
        self.syncs -= 1
        if self.syncs < 0:
            await asyncio.Event().wait()
        return True


class Answering:
    """An admission that gives one answer after the other, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def _next(self) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def admit_command(self, _admitted: Any, _command: str) -> Any:
        return self._next()

    def admit_handshake(self, *_given: Any) -> Any:
        return self._next()


def made(admission: Answering, syncs: int | None) -> Patience:
    native: Any = admission
    leases: Any = None if syncs is None else Syncing(syncs)
    return Patience(native, leases)


def asking(*answers: Any) -> tuple[list[bool], Callable[[bool], Any]]:
    asked: list[bool] = []
    left = list(answers)

    def ask(last: bool) -> Any:
        asked.append(last)
        return left.pop(0) if left and not last else "last word" if last else None

    return asked, ask


def test_it_asks_after_each_sync_until_there_is_an_answer() -> None:
    asked, ask = asking(None, None, "yes")
    assert "yes" == asyncio.run(made(Answering(None), 3).wait(ask))
    assert [False, False, False] == asked


def test_a_sync_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAIT_S", 0.01)
    asked, ask = asking()
    assert "last word" == asyncio.run(made(Answering(None), 1).wait(ask))
    assert [False, True] == asked


def test_without_leases_the_first_word_is_the_last() -> None:
    asked, ask = asking()
    assert "last word" == asyncio.run(made(Answering(None), None).wait(ask))
    assert [True] == asked


@pytest.mark.parametrize(
    ("answers", "expected"),
    [([None], None), ([USED_UP], USED_UP), ([AWAITED, AWAITED, None], None), ([AWAITED, USED_UP], USED_UP)],
)
def test_a_command_waits_only_for_a_lease(answers: list[Any], expected: Any) -> None:
    admitted: Any = object()
    assert expected == asyncio.run(made(Answering(*answers), 5).command(admitted, "system.echo"))


def test_what_is_never_leased_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAIT_S", 0.01)
    admitted: Any = object()
    assert AWAITED == asyncio.run(made(Answering(AWAITED), 2).command(admitted, "system.echo"))


def test_who_has_waited_enough_gets_the_first_word() -> None:
    admitted: Any = object()
    assert AWAITED == made(Answering(AWAITED, None), 2).at_once(admitted, "system.echo")


@pytest.mark.parametrize("syncs", [None, 2])
def test_a_handshake_waits_too(syncs: int | None) -> None:
    admission = Answering(("lease_awaited", None, "first"), (None, None, "second"))
    story = made(admission, syncs).handshake({}, 0, None, needs_token=True)
    told: Any = asyncio.run(story)[2]
    assert ("first" if syncs is None else "second") == told
