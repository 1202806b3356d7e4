"""Paths: one spelling each; what is in doubt leads nowhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.errors import NotFound
from flx_api.gateway.paths import Paths, normalise

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


@pytest.mark.parametrize("raw", BAD)
def test_doubtful_paths_lead_nowhere(raw: bytes) -> None:
    with pytest.raises(NotFound):
        normalise(raw)


@given(st.binary(max_size=40))
def test_what_is_understood_is_plain(raw: bytes) -> None:
    try:
        path = normalise(raw)
    except NotFound:
        return
    assert path.encode() == raw
    assert path == "/" or not {"", ".", ".."} & set(path.split("/")[1:])


def test_values_bear_the_names_of_their_own_template() -> None:
    paths = Paths()
    paths.add("GET", "/p/{id}", "token")
    paths.add("POST", "/p/{id}", "public")
    paths.add("GET", "/p/{pipeline}/x", "token")
    paths.add("GET", "/", "public")
    path, route, values = paths.find(b"/p/a%20b/x")
    assert (path, route.template, values) == ("/p/a%20b/x", "/p/{pipeline}/x", {"pipeline": "a b"})
    _, route, values = paths.find(b"/p/1")
    assert (values, route.access, route.allow) == (
        {"id": "1"},
        {"GET": "token", "POST": "public"},
        "GET, HEAD, OPTIONS, POST",
    )
    assert paths.find(b"/")[1].template == "/"
    assert {route.template for route in paths.templates()} == {"/", "/p/{id}", "/p/{pipeline}/x"}
    for raw in (b"/p", b"/p/1/y", b"/P/1", b"/p/%ff"):
        with pytest.raises(NotFound):
            paths.find(raw)
