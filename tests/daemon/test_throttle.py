"""How tries are slowed down."""

from __future__ import annotations

import pytest

from flx_api.daemon.throttle import FORGET_S, FREE_FAILURES, MAX_DELAY_S, Throttle, place_of


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


def test_a_clock_that_is_put_back_makes_nobody_wait_longer() -> None:
    throttle = Throttle()
    failed(throttle, "a", FREE_FAILURES + 1, 7200)
    assert throttle.wait_s("a", 7200) == 2
    assert throttle.wait_s("a", 0) == 2
    assert throttle.wait_s("a", 1) == 1
    assert throttle.wait_s("a", 2) == 0


def test_a_success_takes_back_what_was_its_own() -> None:
    throttle = Throttle()
    failed(throttle, "address", 4, 0)
    tried = throttle.failed("address", 100)
    failed(throttle, "address", 2, 100)
    throttle.take_back("address", 3, tried)
    assert throttle.wait_s("address", 100) == 0
    failed(throttle, "address", 1, 100)
    assert throttle.wait_s("address", 100) == 1
    throttle.take_back("address", 9, tried)
    assert len(throttle) == 0
    throttle.take_back("address", 1, tried)
    assert len(throttle) == 0


def test_a_success_after_the_last_failure_does_not_renew_it() -> None:
    throttle = Throttle()
    failed(throttle, "address", 5, 0)
    throttle.take_back("address", 1, throttle.failed("address", FORGET_S - 1))
    assert throttle.wait_s("address", 0.5) == 0.5
    assert throttle.wait_s("address", FORGET_S) == 0


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::2", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_an_address_counts_as_limits_count_it(address: str, place: str) -> None:
    assert place_of(address) == place


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
