"""Whose something is: the tenant of a principal or an event, and the one of those that name none."""

from __future__ import annotations

from typing import Final, Protocol

DEFAULT_TENANT: Final = "default"


class Tenanted(Protocol):
    """What belongs to a tenant."""

    @property
    def tenant(self) -> str | None:
        """Its tenant; None or empty is the default one."""
        ...


def tenant_of(thing: Tenanted | None) -> str:
    """The tenant of something; the default one where there is nothing."""
    return (None if thing is None else thing.tenant) or DEFAULT_TENANT
