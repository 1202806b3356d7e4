"""Durations of rate limit policies."""

from __future__ import annotations

import pytest

from flx_api.models.rate_limit import duration_ms


@pytest.mark.parametrize(("text", "expected"), [("500ms", 500), ("60s", 60_000), ("5m", 300_000), ("1d", 86_400_000)])
def test_durations(text: str, expected: int) -> None:
    """A duration is a whole number and a unit."""
    assert expected == duration_ms(text)


@pytest.mark.parametrize("text", ["", "5", "0s", "-1s", "1.5s", "1 s", "1y", "1s\n", "\u0661s"])
def test_what_is_no_duration(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="whole number"):
        duration_ms(text)
