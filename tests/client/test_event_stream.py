"""Reading event streams: any cut of the bytes gives what the whole gives, judged by a reader of whole texts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.client.event_stream import EventStreamDecoder, StreamEvent


def naive(text: str) -> list[StreamEvent]:
    """Read a whole text, character by character."""
    text = text.removeprefix("\ufeff")
    lines, line, index = [], "", 0
    while index < len(text):
        if text[index] in "\r\n":
            lines.append(line)
            line = ""
            index += 2 if text[index : index + 2] == "\r\n" else 1
        else:
            line += text[index]
            index += 1
    found: list[StreamEvent] = []
    kind, data = "", list[str]()
    for line in lines:
        if line == "":
            if data:
                found.append(StreamEvent(kind or "message", "\n".join(data)))
            kind, data = "", []
            continue
        colon = line.find(":")
        field = line if colon < 0 else line[:colon]
        value = "" if colon < 0 else line[colon + 1 :]
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        if field == "data":
            data.append(value)
    return found


PARTS = st.sampled_from(
    [
        "data",
        "event",
        "id",
        ":",
        ": ",
        " ",
        "x",
        "é",
        "\u2028",
        "\x85",
        "\ufeff",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "data: 1\n\n",
    ]
)


@given(st.lists(PARTS, max_size=40), st.lists(st.integers(0, 120), max_size=8))
def test_any_cut_gives_what_the_whole_gives(parts: list[str], cuts: list[int]) -> None:
    whole = "".join(parts)
    if whole.endswith("\r"):
        whole += "\n"
    raw = whole.encode()
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    decoder = EventStreamDecoder()
    found = [event for start, end in itertools.pairwise(places) for event in decoder.feed(raw[start:end])]
    assert naive(whole) == found


def test_what_ends_lines_elsewhere_is_data_here() -> None:
    decoder = EventStreamDecoder()
    assert [] == decoder.feed("event: e\ndata: a\u2028b\x85c\x0bd\n".encode())
    assert [StreamEvent("e", "a\u2028b\x85c\x0bd")] == decoder.feed(b"\n")


@pytest.mark.parametrize("raw", [b"data: \xff\n\n", b"data: \xc3", b": only a comment\n\n", b"id: 1\n\n"])
def test_what_is_odd_is_no_error(raw: bytes) -> None:
    assert [] == [event for event in EventStreamDecoder().feed(raw) if event.data != "\ufffd"]
