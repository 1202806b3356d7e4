"""How tries are slowed down."""

from __future__ import annotations

from flx_api.daemon.throttle import FORGET_S, FREE_FAILURES, MAX_DELAY_S, Throttle


def failed(throttle: Throttle, key: str, times: int, now_s: float) -> None:
    for _ in range(times):
        throttle.failed(key, now_s)


def test_five_failures_are_free_and_then_each_doubles_the_wait() -> None:
    throttle = Throttle()
    failed(throttle, "a", FREE_FAILURES - 1, 0)
    assert throttle.wait_s("a", 0) == 0
    waits = []
    for _ in range(4):
        throttle.failed("a", 0)
        waits.append(throttle.wait_s("a", 0))
    assert waits == [1, 2, 4, 8]
    assert throttle.wait_s("a", 5) == 3
    assert throttle.wait_s("b", 0) == 0


def test_the_wait_is_bounded_and_an_hour_forgets() -> None:
    throttle = Throttle()
    failed(throttle, "a", 5000, 0)
    assert throttle.wait_s("a", 0) == MAX_DELAY_S
    assert throttle.wait_s("a", FORGET_S) == 0
    throttle.failed("a", FORGET_S)
    assert throttle.wait_s("a", FORGET_S) == 0


def test_a_success_forgets() -> None:
    throttle = Throttle()
    failed(throttle, "a", 9, 0)
    throttle.succeeded("a")
    assert throttle.wait_s("a", 0) == 0


def test_it_remembers_a_bounded_number_of_keys() -> None:
    throttle = Throttle(max_keys=3)
    for key in "abcabcxy":
        throttle.failed(key, 0)
    assert len(throttle) == 3
