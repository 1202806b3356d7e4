"""Close codes: one list, whoever says them, and whoever tells of them."""

from __future__ import annotations

import re

import pytest
from tests.service import ROOT

from flx_api._core import close_codes
from flx_api.websocket.close_codes import CloseCode, advice

# Codes that the service never gives, and clients meet all the same.
OF_OTHERS = {1001, 1006}


@pytest.mark.parametrize("code", CloseCode)
def test_every_code_has_a_reason_that_fits_a_close_frame(code: CloseCode) -> None:
    assert 0 < len(code.reason.encode()) <= 123


def test_a_client_comes_back_only_where_it_helps() -> None:
    resumed = {CloseCode.GONE, CloseCode.INTERNAL, CloseCode.RESTARTING, CloseCode.TOO_SLOW, CloseCode.TOO_MANY}
    assert resumed == {code for code in CloseCode if advice(code) == "resume"}
    assert [CloseCode.TOKEN_ENDED] == [code for code in CloseCode if advice(code) == "new_token"]
    assert ["resume", "resume", "stop", "stop"] == [advice(code) for code in (1001, 1006, 1000, 4999)]


def test_the_native_listener_says_the_same() -> None:
    assert {int(code): code.reason for code in CloseCode} == close_codes()


def test_the_protocols_page_names_each_and_what_to_do() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    section = text.partition("## The end of a connection")[2].partition("\n## ")[0]
    words = {"resume": r"(?:pause and )?resume\b(?! with)", "new_token": r"resume with a new one", "stop": r"stop"}
    told = set()
    for line in re.findall(r"^\| ([\d, ]+) \|.*\| (.*) \|$", section, re.MULTILINE):
        for code in map(int, line[0].split(",")):
            told.add(code)
            assert re.match(words[advice(code)], line[1]), code
    assert {*map(int, CloseCode), *OF_OTHERS} == told


def test_the_javascript_client_does_the_same() -> None:
    text = (ROOT / "examples" / "clients" / "flx-client.mjs").read_text("utf-8")
    (resumed,) = re.findall(r"const RESUME = new Set\(\[(.*)\]\)", text)
    (ended,) = re.findall(r"const TOKEN_ENDED = (\d+)", text)
    known = {*map(int, CloseCode), *OF_OTHERS}
    assert {code for code in known if advice(code) == "resume"} == {int(code) for code in resumed.split(",")}
    assert CloseCode.TOKEN_ENDED == int(ended)
