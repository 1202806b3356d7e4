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
REPORTED = "reported"
"""The target of a row that has none: it is measured to be known."""

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
        better: str = "lower",
    ) -> None:
        """A row of two things measured in turn; `target_ratio` bounds ours/rival, `target_value` bounds ours.

        The bounds are from above when less is better, else from below. Without a target it is reported and not judged.
        """
        ratio = statistics.median(ours / other for ours, other in zip(values, rival_values, strict=True))
        value = statistics.median(values)
        sign = 1 if better == "lower" else -1
        met = all(
            bound is None or sign * found <= sign * bound
            for found, bound in ((ratio, target_ratio), (value, target_value))
        )
        word = "<=" if better == "lower" else ">="
        target = " and ".join(
            text
            for text in (
                f"ratio {word} {target_ratio}" if target_ratio is not None else "",
                f"value {word} {target_value} {unit}" if target_value is not None else "",
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
            target=target or REPORTED,
            better=better,
            **({"met": met} if target else {}),
        )

    def measure(
        self, name: str, metric: str, unit: str, values: Sequence[float], *, target_value: float | None = None
    ) -> None:
        """A row of ours alone, where nobody else does the same."""
        value = statistics.median(values)
        self._add(
            name=name,
            metric=metric,
            unit=unit,
            value=value,
            min=min(values),
            max=max(values),
            runs=len(values),
            rival=None,
            rival_value=None,
            ratio=None,
            target=f"value <= {target_value} {unit}" if target_value is not None else REPORTED,
            better="lower",
            **({"met": value <= target_value} if target_value is not None else {}),
        )

    def bound(
        self, name: str, metric: str, unit: str, value: float, *, most: float | None = None, least: float | None = None
    ) -> None:
        """A row of one value that may not be above `most` or below `least`; reported without either."""
        target = REPORTED if most is least is None else f"value <= {most}" if least is None else f"value >= {least}"
        met = (most is None or value <= most) and (least is None or value >= least)
        self._add(
            name=name,
            metric=metric,
            unit=unit,
            value=value,
            min=value,
            max=value,
            runs=1,
            rival=None,
            rival_value=None,
            ratio=None,
            target=target,
            better="lower" if least is None else "higher",
            **({"met": met} if target != REPORTED else {}),
        )

    def unjudged(self, name: str, metric: str, unit: str, *, target: str, reason: str) -> None:
        """A row that could not be measured here, and why."""
        self._add(
            name=name,
            metric=metric,
            unit=unit,
            value=None,
            min=None,
            max=None,
            runs=0,
            rival=None,
            rival_value=None,
            ratio=None,
            target=target,
            better="lower",
            reason=reason,
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

    def finish(self, *, write: bool = True) -> int:
        """Write the record and return the exit code: 0 when every target that could be judged was met.

        Args:
            write: not when only a part of the suite was run.
        """
        if write:
            self._write()
        return self._verdict()

    def _write(self) -> None:
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

    def _verdict(self) -> int:
        missed = [f"{row['name']}: {row['metric']}" for row in self.rows if row.get("met") is False]
        unknown = [f"{row['name']}: {row['reason']}" for row in self.rows if "reason" in row]
        print(
            f"{len(self.rows)} rows, {len(missed)} targets missed"
            + "".join(f"\n  missed: {line}" for line in missed)
            + "".join(f"\n  not judged here: {line}" for line in unknown)
        )
        return 1 if missed else 0

    def _add(self, **row: Any) -> None:  # noqa: ANN401 - a row is JSON
        for key, value in row.items():
            if isinstance(value, float):
                row[key] = round(value, 4)
        self.rows.append(row)
        if "reason" in row:
            print(f"--   {row['name']}, {row['metric']}: {row['reason']}", flush=True)
            return
        verdict = {True: "ok  ", False: "MISS", None: "    "}[row.get("met")]
        said = f"{verdict} {row['name']}, {row['metric']}: {row['value']} {row['unit']}"
        if row["rival"] is not None:
            said += f" against {row['rival_value']} ({row['rival']})"
        if row["ratio"] is not None:
            said += f", ratio {row['ratio']}"
        print(f"{said}; target {row['target']}", flush=True)
