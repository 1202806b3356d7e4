"""Close codes."""

from __future__ import annotations

import pytest

from flx_api.websocket.close_codes import CloseCode, advice


@pytest.mark.parametrize("code", CloseCode)
def test_every_code_has_a_reason_that_fits_a_close_frame(code: CloseCode) -> None:
    assert 0 < len(code.reason.encode()) <= 123


def test_a_client_comes_back_only_where_it_helps() -> None:
    resumed = {CloseCode.GONE, CloseCode.INTERNAL, CloseCode.RESTARTING, CloseCode.TOO_SLOW}
    assert resumed == {code for code in CloseCode if advice(code) == "resume"}
    assert [CloseCode.TOKEN_ENDED] == [code for code in CloseCode if advice(code) == "new_token"]
    assert ["resume", "resume", "stop", "stop"] == [advice(code) for code in (1001, 1006, 1000, 4999)]
