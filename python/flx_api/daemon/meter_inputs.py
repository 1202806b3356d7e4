"""Which local files an extractor's config asks for, and which of them do not exist.

Strategy: done beside the plugin (same folder, same moment), because nobody else sees the resolved config without
repeating Meltano's settings logic. File extractors name their inputs under a handful of keys; the value must also look
like a data file, so that the `path` of an HTTP extractor is left alone. A missing file alone means nothing: the ledger
speaks of it only when a stream of that extractor had no rows.

Rules:
- Only names leave this module: what the config says, never its other values.
- A pattern (`data/*.csv`) is present when it matches anything.
"""

# Pathlib, with what it imports, would be part of every start.
# ruff: noqa: PTH110, PTH111, PTH207

from __future__ import annotations

import glob
import os

_KEYS = frozenset(
    ("path", "paths", "file", "files", "filename", "file_name", "filepath", "file_path", "csv_files_definition")
)
_SUFFIXES = frozenset(
    (
        *(
            "csv",
            "tsv",
            "txt",
            "json",
            "jsonl",
            "ndjson",
            "xls",
            "xlsx",
            "xlsm",
            "ods",
            "parquet",
            "avro",
            "orc",
            "xml",
        ),
        *("gz", "zip", "bz2", "zst", "db", "sqlite", "duckdb"),
    )
)
_REMOTE = ("url", "host", "bucket", "protocol", "base_url", "api_url")


def named_inputs(config: object, *, under_key: bool = False, depth: int = 0) -> list[str]:
    """The local data files that a config names, in its order."""
    if isinstance(config, str):
        return [config] if under_key and _is_local_data_file(config) else []
    if depth > 6:  # noqa: PLR2004 (no extractor nests its file list deeper)
        return []
    if isinstance(config, list):
        return [name for item in config for name in named_inputs(item, under_key=under_key, depth=depth + 1)]
    if isinstance(config, dict) and not any(_is_remote(key, value) for key, value in config.items()):
        return [
            name
            for key, value in config.items()
            for name in named_inputs(value, under_key=key in _KEYS, depth=depth + 1)
        ]
    return []


def missing_inputs(config: object) -> list[str]:
    """Those of `named_inputs` that do not exist, seen from the current folder; at most 100."""
    missing = []
    for name in named_inputs(config):
        path = os.path.expanduser(name)
        present = glob.glob(path, recursive=True) if glob.has_magic(path) else os.path.exists(path)
        if not present:
            missing.append(name)
    return missing[:100]


def _is_local_data_file(name: str) -> bool:
    return "://" not in name and name.rpartition(".")[2].lower() in _SUFFIXES


def _is_remote(key: object, value: object) -> bool:
    return isinstance(key, str) and bool(value) and (key in _REMOTE or key.endswith(("_url", "_host", "_bucket")))
