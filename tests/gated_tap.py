"""A real Singer tap whose middle a test holds open: emits half its records, waits for a file, emits the rest.

`install` writes the tap as an executable into a project copy and declares it in meltano.yml with a job of its own, so
that tests about crashes and cancellation act in the middle of a run, at a known place, without sleeping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruamel.yaml import YAML

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = 40

_TAP = """#!/usr/bin/env python3
import json, os, sys, time
def say(message):
    sys.stdout.write(json.dumps(message) + "\\n")
    sys.stdout.flush()
say({"type": "SCHEMA", "stream": "gated", "schema": {"properties": {"id": {"type": "integer"}}}, "key_properties": []})
for i in range(%(half)d):
    say({"type": "RECORD", "stream": "gated", "record": {"id": i}})
while not os.path.exists(%(gate)r):
    time.sleep(0.02)
for i in range(%(half)d, %(records)d):
    say({"type": "RECORD", "stream": "gated", "record": {"id": i}})
say({"type": "STATE", "value": {"bookmarks": {"gated": {"id": %(records)d}}}})
"""


class GatedTap:
    """Job `gated-to-jsonl` of a project: in the middle of its run until `open` is called."""

    job = "gated-to-jsonl"

    def __init__(self, project: Path) -> None:
        self.gate = project / "gate-open"
        tap = project / "tap-gated.py"
        tap.write_text(_TAP % {"half": RECORDS // 2, "gate": str(self.gate), "records": RECORDS})
        tap.chmod(0o755)
        yaml = YAML()
        file = project / "meltano.yml"
        document = yaml.load(file)
        document["plugins"]["extractors"].append(
            {
                "name": "tap-gated",
                "namespace": "tap_gated",
                "executable": "./tap-gated.py",
                "capabilities": ["state"],
            }
        )
        document["jobs"].append({"name": self.job, "tasks": ["tap-gated target-jsonl"]})
        yaml.dump(document, file)

    def open(self) -> None:
        """Let the run go on to its end."""
        self.gate.touch()

    def close(self) -> None:
        """Hold the next run in its middle."""
        self.gate.unlink(missing_ok=True)
