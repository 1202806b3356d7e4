"""The examples of docs/protocol.md run."""

from __future__ import annotations

import asyncio
import re
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from tests.client import test_javascript as javascript
from tests.client.scripted_server import Script, event_frame, says, serving
from tests.service import ROOT

from flx_api.client import Ended

if TYPE_CHECKING:
    from collections.abc import Callable


def _example(language: str, url: str) -> str:
    text = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    examples = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    (found,) = [str(example) for example in examples if "https://flx.example.com" in example]
    return found.replace("https://flx.example.com", url)


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with serving(Script(says(event_frame("execution_events", 1, pos="7"), code=1008))) as script:
            names: dict[str, Any] = {}
            body = textwrap.indent(_example("python", script.url), "    ")
            exec(f"async def example(new_token):\n{body}", names)
            example: Callable[..., Any] = names["example"]
            with pytest.raises(Ended):
                await example(lambda: "token")
            assert ["Bearer token"] == script.bearers

    asyncio.run(story())
    assert "execution_events {} {'execution_events': '7'}\n" == capsys.readouterr().out


@javascript.pytestmark
def test_javascript() -> None:
    async def story() -> None:
        async with serving(Script(says(event_frame("execution_events", 1, pos="7"), code=1008))) as script:
            example = _example("js", script.url).replace("./flx-client.mjs", javascript.MODULE)
            lines = await javascript.run(
                f'const newToken = () => "token";\ntry {{ {re.sub("(?s)^import.*?;", "", example)} }} '
                f"catch (error) {{ console.log(error.code); }}",
                "EventStream",
            )
            assert ["flx.plain, bearer.token"] == script.offers
        assert ["execution_events {} { execution_events: '7' }", "1008"] == lines

    asyncio.run(story())
