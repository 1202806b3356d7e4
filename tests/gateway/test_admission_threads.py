"""Two threads in admission at once, as on the lane: neither may hold what the other needs while Python runs in between.

A deadlock there holds the interpreter's lock too, so that it happens in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.service import ROOT

_SCRIPT = """
import gc, sys, threading, time
from tests.gateway_app import built, scope
from tests.gateway_process import bearer

CALLS = 300

class Garbage:
    # A cycle whose end lets another thread run.
    def __init__(self):
        self.own = self

    def __del__(self):
        time.sleep(0)

admission = built().admission
headers = bearer() if sys.argv[1] == "page" else {"authorization": "Bearer a.b.c"}
request = {**scope(path="/v1/auth/whoami", headers=headers), "scheme": "http"}
first = admission.admit(request)
if not isinstance(first, tuple):
    first.keep(200, [(b"content-type", b"application/json")], b"{}")
statuses, held = [], []

def ask():
    for _ in range(CALLS):
        # What was just thrown away is found by the collector within the call: at its first object that is not one of
        # those that the interpreter keeps in stock.
        gc.disable()
        held.extend(([], {}, (number, number)) for number in range(30))
        Garbage(), Garbage(), Garbage()
        gc.enable()
        start, _ = admission.admit(request)
        statuses.append(start["status"])

gc.set_threshold(1, 1_000_000, 1_000_000)
threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(statuses), set(statuses))
"""


@pytest.mark.parametrize(("answer", "status"), [("page", 200), ("refusal", 401)])
def test_nobody_waits_for_a_thread_that_waits(answer: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, answer], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert f"600 {{{status}}}" == done.stdout.strip(), done.stderr
