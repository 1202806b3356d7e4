"""One YAML or JSON file of the project as plain Python values, and several of them merged.

Strategy: ruamel's round-trip loader is the one Meltano uses, so that it decides what is YAML, what a duplicate key is
and what `<<` means; its result is then turned into plain dicts, lists and scalars, so that nothing behind this module
knows ruamel. Merging follows Meltano's `deep_merge`: mappings merge, lists are extended, anything else is replaced.

Rules:
- Pure: text in, values out; every refusal is a `Refused` with a place and a reason.
- A reason never quotes the file: a broken line may hold a password.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean


class Refused(Exception):
    """One place of the project's files that Meltano would not accept."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


def read_yaml(text: str, file: str) -> object:
    """The plain value of a YAML text.

    Args:
        text: the file's content.
        file: its name relative to the project, for refusals.

    Raises:
        Refused: it is not YAML, with line and column.
    """
    yaml = YAML()
    # An anchor may be defined anew; ruamel would warn each time, and there is nobody to read it.
    yaml.composer.warn_double_anchors = False
    try:
        return _plain(yaml.load(text), {})
    except DuplicateKeyError as error:
        raise Refused(file, f"{_place(error)}the key stands here twice") from None
    except MarkedYAMLError as error:
        raise Refused(file, f"{_place(error)}{error.problem or 'not valid YAML'}") from None
    except ReaderError:
        raise Refused(file, "holds characters that YAML does not allow") from None
    except (YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        # The loader's own faults on odd input (a date such as 2024-13-01): Meltano fails on them as well.
        raise Refused(file, f"not valid YAML ({type(error).__name__})") from None
    except RecursionError:
        raise Refused(file, "nested too deeply, or into itself") from None


def read_lock(text: str, file: str) -> dict[str, Any]:
    """The plugin definition in a lock file.

    Raises:
        Refused: it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused(file, "not valid JSON") from None
    if not isinstance(value, dict):
        raise Refused(file, "must hold a JSON object")
    return value


def merge(base: dict[str, Any], more: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Both mappings merged, `more` last; neither is changed.

    Raises:
        Refused: a section of one file is of another shape than the same section of the other.
    """
    merged = dict(base)
    for key, value in more.items():
        place = f"{field}.{key}" if field and not field.endswith(":") else f"{field}{key}"
        if isinstance(value, dict):
            into = merged.get(key, {})
            if not isinstance(into, dict):
                raise Refused(place, "must be a mapping, as in the included file")
            merged[key] = merge(into, value, place)
        elif isinstance(value, list):
            into = merged.get(key, [])
            if not isinstance(into, list):
                raise Refused(place, "must be a list, as in the included file")
            merged[key] = [*into, *value]
        else:
            merged[key] = value
    return merged


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _plain(value: object, seen: dict[int, object]) -> object:
    """A copy without ruamel's types. `seen` keeps shared what an alias shares."""
    if not isinstance(value, Mapping | list | AbstractSet):
        return _plain_scalar(value)
    if id(value) in seen:
        if seen[id(value)] is None:
            # An anchor that holds itself: YAML allows it, but Meltano fails on whatever uses it.
            raise RecursionError
        return seen[id(value)]
    seen[id(value)] = None
    plain: object
    if isinstance(value, Mapping):
        plain = {str(key) if isinstance(key, str) else key: _plain(item, seen) for key, item in value.items()}
    else:
        plain = [_plain(item, seen) for item in value]
    seen[id(value)] = plain
    return plain


def _plain_scalar(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, ScalarBoolean):
        return bool(value)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    return str(value.value if isinstance(value, TaggedScalar) else value)
