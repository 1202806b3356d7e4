"""The meter against a reader that parses every line with `json`, under random cutting.

Differences that are intended, and kept out of the generated lines: the meter does not validate what it need not read
(the record of a stream without key properties), takes the first of two equal names, and compares numbers as written.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flx_api._core import Meter

FIXED = settings(derandomize=True, database=None, max_examples=80)
STREAMS = ["a", "b", "käse", 'q"\\']
STREAM_COUNTS = (
    "records",
    "bytes",
    "schema",
    "key_properties",
    "distinct_keys",
    "records_after_state",
    "activate_versions",
)


class Reader:
    """Slow and obvious."""

    def __init__(self) -> None:
        self.malformed = self.other = self.states = 0
        self.last_state: str | None = None
        self.streams: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, list[str]] = {}

    def read(self, line: str) -> None:
        try:
            message = json.loads(line)
            kind, stream = message["type"], message.get("stream")
        except (ValueError, TypeError, KeyError):
            self.malformed += 1
            return
        if kind == "STATE":
            self.states += 1
            self.last_state = line.strip()
            for seen in self.streams.values():
                seen["records_after_state"] = 0
            return
        if kind not in {"RECORD", "SCHEMA", "ACTIVATE_VERSION"}:
            self.other += 1
            return
        seen = self.streams.setdefault(
            stream, dict.fromkeys(STREAM_COUNTS, 0) | {"schema": False, "key_properties": []}
        )
        if kind == "SCHEMA":
            self.schema(stream, seen, message["key_properties"])
        elif kind == "ACTIVATE_VERSION":
            seen["activate_versions"] += 1
        else:
            seen["records"] += 1
            seen["bytes"] += len(line.encode()) + 1
            seen["records_after_state"] += 1
            if stream in self.keys:
                key = json.dumps([message["record"].get(name) for name in seen["key_properties"]])
                if key not in self.keys[stream]:
                    self.keys[stream].append(key)

    def schema(self, stream: str, seen: dict[str, Any], properties: list[str]) -> None:
        if properties != seen["key_properties"] or not seen["schema"]:
            self.keys.pop(stream, None)
            if properties and not seen["records"]:
                self.keys[stream] = []
        seen["schema"], seen["key_properties"] = True, properties

    def snapshot(self) -> dict[str, dict[str, Any]]:
        return {
            name: seen | {"distinct_keys": len(self.keys[name]) if name in self.keys else None}
            for name, seen in self.streams.items()
        }


texts = st.sampled_from(["", "x", "}", '{"', "\\", '"', "é", "😀", "\n", "],[", '"}', "\u2028", '{"type":"STATE"}'])
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
records = st.fixed_dictionaries(
    {"id": st.one_of(st.integers(0, 3), texts)}, optional={"nr": values, "x": values, "type": values}
)


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A message as some tap might write it: order, spacing and escaping vary."""
    kind = draw(st.sampled_from(["RECORD"] * 6 + ["STATE", "SCHEMA", "ACTIVATE_VERSION", "BATCH"]))
    message: dict[str, Any] = {"type": kind, "stream": draw(st.sampled_from(STREAMS)), "note": draw(values)}
    if kind == "RECORD":
        message["record"] = draw(records)
    if kind == "STATE":
        message["value"] = draw(values)
    if kind == "SCHEMA":
        message |= {"schema": draw(values), "key_properties": draw(st.sampled_from([["id"]] * 3 + [["nr", "id"], []]))}
    names = draw(st.permutations(list(message)))
    spaced = draw(st.booleans())
    return json.dumps(
        {name: message[name] for name in names},
        ensure_ascii=draw(st.booleans()),
        separators=(" , ", " : ") if spaced else (",", ":"),
    )


@given(
    written=st.lists(
        st.one_of(lines(), lines(), lines(), st.sampled_from(["", "{", "x", "[]", '{"a":1}', " {} "])), max_size=25
    ),
    tail=st.sampled_from(["", "", '{"type":"RECORD","stream":"a"}', "{"]),
    cuts=st.lists(st.integers(1, 120), min_size=1, max_size=12),
)
@FIXED
def test_counts_agree_with_a_full_reader(written: list[str], tail: str, cuts: list[int]) -> None:
    """Every count, the last state and the distinct keys, however the bytes are cut."""
    reader = Reader()
    for line in written:
        reader.read(line)
    data = ("".join(line + "\n" for line in written) + tail).encode()
    meter, at, turn, drained = Meter(), 0, 0, dict[str, bytes]()
    while at < len(data):
        end = at + cuts[turn % len(cuts)]
        kind = (bytes, bytearray, memoryview)[turn % 3]
        meter.feed(kind(data[at:end]))
        for stream, fresh in meter.drain_keys():
            drained[stream] = drained.get(stream, b"") + fresh
        at, turn = end, turn + 1
    meter.finish()

    snapshot = meter.snapshot()
    assert snapshot["streams"] == reader.snapshot()
    assert {name: value for name, value in snapshot.items() if name != "streams"} == {
        "lines": len(written),
        "bytes": len(data),
        "malformed": reader.malformed,
        "other": reader.other,
        "partial_bytes": len(tail.encode()),
        "states": reader.states,
        "last_state": reader.last_state,
    }
    for stream, keys in reader.keys.items():
        assert [json.dumps(json.loads(line)) for line in drained.get(stream, b"").split(b"\n")[:-1]][
            -len(keys) :
        ] == keys
    json.dumps(snapshot)


def test_distinct_keys_are_bounded() -> None:
    """Past `max_keys` the largest stream's count is unknown, and nothing more of it is queued; the others go on."""
    meter = Meter(max_keys=10)
    for stream, count in (("small", 3), ("large", 9)):
        meter.feed(f'{{"type":"SCHEMA","stream":"{stream}","key_properties":["id"]}}\n'.encode())
        for number in range(count):
            meter.feed(f'{{"type":"RECORD","stream":"{stream}","record":{{"id":{number}}}}}\n'.encode())
    streams = meter.snapshot()["streams"]
    assert {name: stream["distinct_keys"] for name, stream in streams.items()} == {"small": 3, "large": None}
    assert meter.drain_keys() == [("small", b"[0]\n[1]\n[2]\n")]
    assert streams["large"]["records"] == 9


def test_bytes_that_are_no_text_pass() -> None:
    """A broken encoding is the target's concern; the counts stand and stay printable."""
    meter = Meter()
    meter.feed(b'{"type":"RECORD","stream":"\xff","record":{"\xfe":"\xfd"}}\n{"type":"STATE","value":"\xff"}\n')
    snapshot = meter.snapshot()
    assert list(snapshot["streams"]) == ["\ufffd"]
    assert snapshot["last_state"] == '{"type":"STATE","value":"\ufffd"}'


def test_only_bytes_are_fed() -> None:
    with pytest.raises(TypeError):
        Meter().feed("text")  # type: ignore[arg-type]
