"""Paths: one spelling each; what is in doubt leads nowhere. The native reading against the rules written out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.gateway_app import Wire, built, exchange, scope
from tests.properties import naive_paths

from flx_api._core import segments

PIECES = st.sampled_from(
    [b"/", b"a", b".", b"..", b"%2e", b"%2F", b"%41", b"%c3%a4", b"%ff", b"%00", b"%", b"~", b";", b" ", b"\\", b"\xc3"]
)
BAD = [
    b"",
    b"x",
    b"//",
    b"/a//b",
    b"/a/",
    b"/..",
    b"/a/../b",
    b"/.",
    b"/%2e%2e",
    b"/a%2Fb",
    b"/a%5cb",
    b"/%00",
    b"/%0a",
    b"/\xc3\xa4",
    b"/a%25b",
    b"/%zz",
    b"/a b",
    b"/a;b",
    b"/" + b"/".join([b"a"] * 20),
]


@given(st.one_of(st.lists(PIECES, max_size=16).map(b"".join), st.binary(max_size=40)))
@example(b"/")
def test_paths_are_read_as_the_rules_say(raw: bytes) -> None:
    assert naive_paths.segments(raw) == segments(raw)


@pytest.mark.parametrize("raw", BAD)
def test_doubtful_paths_lead_nowhere(raw: bytes) -> None:
    assert segments(raw) is None
    request = scope()
    request["raw_path"] = raw
    answer = built().admission.admit({**request, "path": "/nothing"})
    assert isinstance(answer, tuple)
    assert (404, "not_found") == (answer[0]["status"], msgspec.json.decode(answer[1]["body"])["code"])


def test_every_route_is_found_under_its_own_index() -> None:
    parts = built()
    for route in parts.paths:
        path = route.template.replace("{name}", "system.echo").replace("{", "").replace("}", "")
        found = exchange(Wire(), scope("OPTIONS", path), parts)
        assert route.template == found.route.template
        assert set(route.names) == set(found.values)
