"""Where a daemon listens: a farewell to whoever is there, and certificates that are renewed while it serves."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from typing import TYPE_CHECKING

import pytest
from grpclib.client import Channel
from tests.certificates import Authority, tls
from tests.gateway_process import SECRET
from tests.small_daemon import SmallDaemon

from flx_api.config import Settings, load
from flx_api.daemon import listener as module
from flx_api.daemon.listener import Address, Listener
from flx_api.errors import StartupError
from flx_api.proto import http2
from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path


def settings(given: dict[str, str] | None = None) -> Settings:
    environ = {f"FLX_{name.upper()}": value for name, value in (given or {}).items()}
    return load({"FLX_JWT_SECRET_KEY": SECRET, **environ})


def play(story: Coroutine[object, object, None]) -> None:
    asyncio.run(story)


def test_a_farewell_lets_those_who_are_there_finish_and_nobody_else_in(tmp_path: Path) -> None:
    async def story() -> None:
        http2.install()
        listener = Listener([SmallDaemon()], Address(socket_path=tmp_path / "d.sock"), settings())
        assert str(tmp_path / "d.sock") == await listener.listen()
        told: list[int] = []
        async with Channel(path=str(tmp_path / "d.sock")) as channel:
            stub = DaemonStub(channel)
            await stub.Execute(CommandFrame(args=b"1"))
            wire = (await channel.__connect__()).connection._connection
            assert isinstance(wire, http2.Connection)
            wire.on_parting = told.append
            listener.part()
            assert b"2" == (await stub.Execute(CommandFrame(args=b"2"))).result
            assert 1 == len(told)
        with pytest.raises(OSError, match=r"onne|such file"):
            async with Channel(path=str(tmp_path / "d.sock")) as late:
                await DaemonStub(late).Execute(CommandFrame())
        await listener.stop()
        assert not (tmp_path / "d.sock").exists()

    play(story())


def test_a_certificate_that_is_renewed_is_shown_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_EVERY_S", 0.01)
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(pair: tuple[Path, Path], age_s: int) -> None:
        for source, target in zip(pair, (certificate, key), strict=True):
            shutil.copy(source, target)
            os.utime(target, (age_s, age_s))

    async def shown_by(port: int) -> str:
        """Whose certificate it is."""
        for name, authority in (("old", old), ("new", new)):
            context = ssl.create_default_context(cafile=str(authority.file))
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            except ssl.SSLCertVerificationError:
                continue
            writer.transport.abort()
            return name
        return "nobody"

    async def story() -> None:
        put(old.sign("127.0.0.1"), 1)
        given = settings(tls(None, (certificate, key)))
        listener = Listener([SmallDaemon()], Address(host="127.0.0.1"), given)
        port = int((await listener.listen()).rpartition(":")[2])
        assert "old" == await shown_by(port)
        # A key that does not fit changes nothing.
        put((new.sign("127.0.0.1")[0], old.sign("127.0.0.1")[1]), 2)
        for _ in range(5):
            await asyncio.sleep(0.02)
            assert "old" == await shown_by(port)
        put(new.sign("127.0.0.1"), 3)
        async with asyncio.timeout(10):
            while await shown_by(port) != "new":  # noqa: ASYNC110 - what a server shows is no event
                await asyncio.sleep(0.01)
        await listener.stop()

    play(story())


def test_what_cannot_be_listened_on_is_one_line(tmp_path: Path) -> None:
    async def story() -> None:
        first = Listener([SmallDaemon()], Address(host="127.0.0.1"), settings())
        port = int((await first.listen()).rpartition(":")[2])
        with pytest.raises(StartupError, match=r"^FLX_GRPC_LISTEN: the daemon cannot listen: Address already in use$"):
            await Listener([], Address(host="127.0.0.1", port=port), settings()).listen()
        (tmp_path / "file").touch()
        with pytest.raises(StartupError, match=r"^the daemon cannot listen"):
            await Listener([], Address(socket_path=tmp_path / "file" / "d.sock"), settings()).listen()
        await first.stop()

    play(story())
