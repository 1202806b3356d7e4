"""Whose something is that names no tenant."""

from __future__ import annotations

import pytest

from flx_api._core import Principal
from flx_api.models.tenant import DEFAULT_TENANT, tenant_of
from flx_api.proto.flx.v1.daemon_pb2 import Event


@pytest.mark.parametrize(
    "nobody", [None, Event(), Event(tenant=""), Principal(subject="a"), Principal(subject="a", tenant="")]
)
def test_what_names_none_is_of_the_default_one(nobody: Event | Principal | None) -> None:
    assert DEFAULT_TENANT == tenant_of(nobody)


def test_what_names_one_is_of_that() -> None:
    assert ["b", "b"] == [tenant_of(Event(tenant="b")), tenant_of(Principal(subject="a", tenant="b"))]
