"""`python -m benches SUITE`: run one suite and exit with 1 when a target is missed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

SUITES = sorted(path.stem.removeprefix("suite_") for path in Path(__file__).parent.glob("suite_*.py"))


def main() -> int:
    """Run the suite named on the command line, or all."""
    names = sys.argv[1:] or SUITES
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"unknown suite {unknown[0]}; there are: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    return max(int(importlib.import_module(f"benches.suite_{name}").main()) for name in names)


if __name__ == "__main__":
    sys.exit(main())
