"""What a benchmark leaves behind: rows with value, rival, ratio and target, in `benches/results/<suite>.json`.

Strategy: a suite measures pairs interleaved (ours, rival, ours, rival, ...) and hands the samples to `Suite.compare`;
the ratio is the median of the per-round ratios, because the machines are noisy and drift. `Suite.finish` writes the
record, prints value against target and says whether every target was met. `benches.report` turns the records into the
documentation page; nobody types numbers.

Rules:
- A debug build is refused: its numbers mean nothing.
- A row whose target cannot be judged here says why and has no `met`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flx_api import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("flx-api", "granian", "blacksheep", "grpclib", "uvloop", "msgspec", "sqlalchemy")


class Suite:
    """The rows of one suite. Raises SystemExit when the native module is a debug build."""

    def __init__(self, name: str, **versions: str) -> None:
        if _core.build_profile() != "release":
            raise SystemExit("benchmarks need a release build of the native module (make sets it up)")
        self.name = name
        self.versions = {"python": platform.python_version(), **versions}
        self.rows: list[dict[str, Any]] = []

    def compare(
        self,
        name: str,
        metric: str,
        unit: str,
        values: Sequence[float],
        *,
        rival: str,
        rival_values: Sequence[float],
        target_ratio: float | None = None,
        target_value: float | None = None,
    ) -> None:
        """A row of two things measured in turn; `target_ratio` bounds ours/rival, `target_value` bounds ours."""
        ratio = statistics.median(ours / other for ours, other in zip(values, rival_values, strict=True))
        value = statistics.median(values)
        met = (target_ratio is None or ratio <= target_ratio) and (target_value is None or value <= target_value)
        target = " and ".join(
            text
            for text in (
                f"ratio <= {target_ratio}" if target_ratio is not None else "",
                f"value <= {target_value} {unit}" if target_value is not None else "",
            )
            if text
        )
        self._add(
            name=name,
            metric=metric,
            unit=unit,
            value=value,
            min=min(values),
            max=max(values),
            runs=len(values),
            rival=rival,
            rival_value=statistics.median(rival_values),
            ratio=ratio,
            target=target,
            better="lower",
            met=met,
        )

    def count(self, name: str, metric: str, value: int, *, rival: str, rival_value: int, target: int) -> None:
        """A row that counts right outcomes: `value` must be `target`."""
        self._add(
            name=name,
            metric=metric,
            unit="of " + str(target),
            value=value,
            min=value,
            max=value,
            runs=1,
            rival=rival,
            rival_value=rival_value,
            ratio=None,
            target=f"value = {target}",
            better="higher",
            met=value == target,
        )

    def finish(self) -> int:
        """Write the record and return the exit code: 0 when every target that could be judged was met."""
        RESULTS.mkdir(exist_ok=True)
        record = {
            "suite": self.name,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "cores": os.cpu_count(),
                "arch": platform.machine(),
                "kernel": platform.release().split("-")[0],
                "load_1m": round(os.getloadavg()[0], 2),
            },
            "versions": {**self.versions, **{name: version(name) for name in _PACKAGES}},
            "rows": self.rows,
        }
        (RESULTS / f"{self.name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        missed = [row["name"] for row in self.rows if not row["met"]]
        print(
            f"{len(self.rows)} rows, {len(missed)} targets missed" + "".join(f"\n  missed: {name}" for name in missed)
        )
        return 1 if missed else 0

    def _add(self, **row: Any) -> None:  # noqa: ANN401 - a row is JSON
        for key, value in row.items():
            if isinstance(value, float):
                row[key] = round(value, 4)
        self.rows.append(row)
        ratio = f", ratio {row['ratio']}" if row["ratio"] is not None else ""
        print(
            f"{'ok  ' if row['met'] else 'MISS'} {row['name']}: {row['value']} {row['unit']} "
            f"against {row['rival_value']} ({row['rival']}){ratio}; target {row['target']}",
            flush=True,
        )
