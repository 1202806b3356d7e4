"""Close codes."""

from __future__ import annotations

import pytest

from flx_api.websocket.close_codes import CloseCode


@pytest.mark.parametrize("code", CloseCode)
def test_every_code_has_a_reason_that_fits_a_close_frame(code: CloseCode) -> None:
    assert 0 < len(code.reason.encode()) <= 123


def test_a_client_comes_back_only_where_it_helps() -> None:
    assert {code for code in CloseCode if code.resume} == {CloseCode.RESTARTING, CloseCode.TOO_SLOW, CloseCode.GONE}
