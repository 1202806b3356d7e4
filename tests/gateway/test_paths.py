"""The routes and their indices. How a path is led to one is held by properties/test_admission_paths.py."""

from __future__ import annotations

from flx_api.gateway.paths import Paths


def test_routes_are_in_the_order_in_which_they_came() -> None:
    paths = Paths()
    paths.add("GET", "/p/{id}", "token")
    paths.add("GET", "/", "public", "handler")
    paths.add("POST", "/p/{id}", "public")
    assert ["/p/{id}", "/"] == [route.template for route in paths]
    thing, root = paths.by_index
    assert (("id",), {"GET": "token", "POST": "public"}) == (thing.names, thing.access)
    assert "GET, HEAD, OPTIONS, POST" == thing.allow
    assert ((), {"GET": "handler"}) == (root.names, root.serve)
