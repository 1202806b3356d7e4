"""HTTP load on a server pinned to one core: wrk beside it on the other, and what the server's process tree spent.

Strategy: a round is one short run of wrk (64 connections, one thread, core 1) that replays the same sequence of
tokens against a server on core 0; its value is the CPU of the whole tree, user and system from /proc, over the replies.
Rivals are measured in turn, round by round, so that a machine that drifts drifts for all of them.

Rules:
- A reply of another status than the expected one fails the benchmark: a fast wrong answer is no answer.
- The sequence is drawn once: 10,000 tokens, by Zipf's law, so that a cache meets what it would meet in life.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import random
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 64
SUBJECTS = 10_000
FEW = 10
TIGHT = 3
"""Requests a minute of a client that is to be refused: few enough to be lost among the refusals of a round."""
SECRET = b"0123456789abcdef0123456789abcdef0123"
"""The one secret of all servers; a benchmark's, good for nothing else."""

_DRAWS = 100_000
_EXPONENT = 1.0
_EXPIRES = 4_102_444_800
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

_SCRIPT = """\
-- Sends the tokens of one file, a line each, in the order of another.
local tokens, order, at, sent = {}, {}, 0, 0
function init(args)
  local body = nil
  if "BODY" ~= "" then body = io.open("BODY", "rb"):read("*a") end
  for line in io.lines("TOKENS") do tokens[#tokens + 1] = line end
  for i = 1, #tokens do
    local headers = {["Authorization"] = "Bearer " .. tokens[i]}
    if body then headers["Content-Type"] = "application/json" end
    tokens[i] = wrk.format(body and "POST" or "GET", "PATH", headers, body)
  end
  for line in io.lines("ORDER") do order[#order + 1] = tokens[(tonumber(line) - 1) % #tokens + 1] end
end
function request()
  at = at % #order + 1
  if not UNIQUE then return order[at] end
  sent = sent + 1
  return (order[at]:gsub("NNNNNNNN", string.format("%08d", sent)))
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, e.status,
    e.connect + e.read + e.write + e.timeout, latency:percentile(99), summary.duration))
end
"""


class Round(NamedTuple):
    """One run of wrk: what the server spent, how many it answered, how many a second; and what `beside` spent."""

    replies: int
    refusals: int
    cpu_us: float
    p99_us: int
    rate: float
    beside_us: float


def token(subject: str, *, secret: bytes = SECRET, role: str = "viewer") -> str:
    """An HS256 token of the benchmark: without `kid`, valid for decades."""
    claims = {"iss": "flx", "aud": "flx-api", "sub": subject, "exp": _EXPIRES, "roles": [role], "jti": subject}
    signed = b".".join(
        _base64(json.dumps(part, separators=(",", ":")).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    return (signed + b"." + _base64(hmac.digest(secret, signed, hashlib.sha256))).decode()


class Load:
    """Token files and the wrk scripts that replay them.

    Args:
        folder: where the files go.
        wrk: the command of wrk.
        environ: what wrk needs to run.
        role: of the tokens.
    """

    def __init__(self, folder: Path, wrk: Sequence[str], environ: Mapping[str, str], *, role: str = "viewer") -> None:
        self._folder = folder
        self._wrk = list(wrk)
        self._environ = dict(environ)
        self.tokens = [token(f"subject-{number:05}", role=role) for number in range(SUBJECTS)]
        self._write("good", self.tokens)
        self._write("bad", [token(f"subject-{number:05}", secret=SECRET[::-1]) for number in range(SUBJECTS)])
        self._write("few", self.tokens[:FEW])
        draw = random.Random(20260101)
        weights = [1 / (rank + 1) ** _EXPONENT for rank in range(SUBJECTS)]
        order = draw.choices(range(1, SUBJECTS + 1), weights, k=_DRAWS)
        (folder / "order").write_text("\n".join(map(str, order)) + "\n", encoding="ascii")

    def round(
        self,
        url: str,
        pid: int,
        seconds: float,
        *,
        tokens: str = "good",
        refused: bool = False,
        body: bytes | None = None,
        connections: int = CONNECTIONS,
        beside: int | None = None,
    ) -> Round:
        """One round against a server.

        Args:
            url: the address with its path.
            pid: the root of the server's process tree.
            seconds: how long; wrk takes whole seconds.
            tokens: `good`, `bad` (signed by another), or `few` good ones.
            refused: whether every reply must be a refusal; else none may be.
            body: what is posted; without it the path is got. `NNNNNNNN` in it is the request's number in this round.
            connections: how many requests are under way at any time.
            beside: the root of another process tree, whose CPU is told apart: the daemon's.
        """
        script = self._script(url, tokens, body)
        before, beside_before = tree_cpu_s(pid), tree_cpu_s(beside) if beside else 0.0
        done = subprocess.run(
            [
                "taskset",
                "-c",
                str(LOAD_CORE),
                *self._wrk,
                "-t1",
                f"-c{connections}",
                f"-d{max(1, round(seconds))}s",
                "-s",
                script,
                url,
            ],
            env=self._environ,
            check=True,
            capture_output=True,
            text=True,
        )
        spent, beside_spent = tree_cpu_s(pid) - before, (tree_cpu_s(beside) if beside else 0.0) - beside_before
        found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
        if found is None:
            raise SystemExit(f"wrk said nothing about {url}: {done.stdout}{done.stderr}")
        replies, refusals, errors, p99, took_us = map(int, found.groups())
        if errors or not replies:
            raise SystemExit(f"{url}: {errors} connections failed, {replies} replies")
        wrong, stray = (replies - refusals, FEW * TIGHT) if refused else (refusals, 0)
        if wrong > stray:
            raise SystemExit(f"{url}: {wrong} of {replies} replies were not of the kind that is measured")
        return Round(
            replies, refusals, spent / replies * 1e6, p99, replies / took_us * 1e6, beside_spent / replies * 1e6
        )

    def _script(self, url: str, tokens: str, body: bytes | None) -> str:
        path = "/" + url.split("/", 3)[3]
        name = hashlib.sha256(b" ".join((path.encode(), tokens.encode(), body or b""))).hexdigest()[:12]
        file = self._folder / f"{name}.lua"
        if not file.exists():
            posted = self._folder / f"{name}.json"
            if body is not None:
                posted.write_bytes(body)
            text = _SCRIPT.replace("BODY", str(posted) if body is not None else "")
            text = text.replace("UNIQUE", "true" if body is not None and b"NNNNNNNN" in body else "false")
            text = text.replace("TOKENS", str(self._folder / tokens)).replace("ORDER", str(self._folder / "order"))
            file.write_text(text.replace("PATH", path), encoding="ascii")
        return str(file)

    def _write(self, name: str, tokens: Sequence[str]) -> None:
        (self._folder / name).write_text("\n".join(tokens) + "\n", encoding="ascii")


def tree_of(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting.extend(int(child) for child in (task / "children").read_text(encoding="ascii").split())
        except OSError:
            continue  # it ended
    return found


def tree_cpu_s(pid: int) -> float:
    """User and system seconds of a process tree, ended children included."""
    total = 0
    for one in tree_of(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total * _TICK_S


def server_cpu_s(pid: int) -> float:
    """The same with what the kernel left to the thread that works off the server core's interrupts (`ksoftirqd`).

    Of what is sent in large pieces a part is received there, and no process is charged for it. Where that thread cannot
    be seen (in a container), without it.
    """
    return tree_cpu_s(pid) + (tree_cpu_s(thread) if (thread := _softirq_thread()) else 0.0)


@cache
def _softirq_thread() -> int:
    for file in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if file.read_text(encoding="utf-8").strip() == f"ksoftirqd/{SERVER_CORE}":
                return int(file.parent.name)
    return 0


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
