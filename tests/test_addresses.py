"""Addresses in settings: what is accepted is what the other side takes."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import ConnectionPool
from tests.small_admission import Small

from flx_api import config
from flx_api.errors import StartupError

_NETWORKS = st.builds(
    lambda address, length, form: form.format(
        ip_network((address, length % (address.max_prefixlen + 1)), strict=False)
    ),
    st.ip_addresses(),
    st.integers(0, 128),
    st.sampled_from(["{0}", "{0.network_address}", "{0.with_netmask}", "{0.network_address}%1/{0.prefixlen}"]),
)


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://me:w%3Ard@[::1]:6380/3",
        "redis://host?db=3&password=word",
        "rediss://:word@host:6380/0?ssl_ca_certs=/ca.pem&ssl_cert_reqs=optional&ssl_check_hostname=no",
        "unix:///run/redis.sock?db=2&username=me",
        "unix://me:word@/run/redis.sock",
    ],
)
def test_addresses_of_redis_are_those_its_client_takes(url: str) -> None:
    """What is accepted makes a connection (which is not opened here)."""
    assert url == config.load({"FLX_REDIS_URL": url}).redis_url
    assert ConnectionPool.from_url(url).make_connection() is not None  # type: ignore[no-untyped-call]


@given(st.one_of(st.from_regex(r"[0-9a-f:./%]{1,24}", fullmatch=True), _NETWORKS))
def test_the_core_takes_every_network_that_is_accepted(text: str) -> None:
    """So that no worker stops at a setting that the service has started with."""
    try:
        config.load({"FLX_TRUSTED_PROXIES": text})
    except StartupError:
        return
    Small(proxies=[text])


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "http://localhost:5173",
        "http://app:443",
        "https://[::1]:8443",
        "tauri://localhost",
        "chrome-extension://abcdefghijklmnop",
    ],
)
def test_an_origin_is_what_a_browser_sends(origin: str) -> None:
    """Origins are compared as they are sent, so that only what can be sent is accepted."""
    assert (origin, "*") == config.load({"FLX_CORS_ORIGINS": f"{origin}, *"}).cors_origins


@pytest.mark.parametrize(
    "origin",
    [
        "nonsense",
        "null",
        "app.example.com",
        "//app.example.com",
        "https://",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?x",
        "https://me@app.example.com",
        "https://*.example.com",
        "https://App.example.com",
        "HTTPS://app.example.com",
        "https://app.example.com:https",
        "https://app.example.com:",
        "https://app.example.com:0",
        "https://app.example.com:080",
        "https://app.example.com:65536",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://[::1",
        "https://[0::1]",
        "https://::1",
        "https://b\u00fccher.example",
        "https://app.example.com\nhttp://x",
    ],
)
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    """It would never match, and whoever wrote it would look for the reason elsewhere."""
    with pytest.raises(StartupError, match=r"^FLX_CORS_ORIGINS\[1\]: is no origin as browsers send it"):
        config.load({"FLX_CORS_ORIGINS": f"https://app.example.com,{origin}"})


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("daemon", [("daemon", 50051)]),
        ("Daemon:7", [("daemon", 7)]),
        ("a:1, b ,a:1", [("a", 1), ("b", 50051)]),
        ("127.0.0.1:7,::1,[::1]:8,[0::2]", [("127.0.0.1", 7), ("::1", 50051), ("::1", 8), ("::2", 50051)]),
    ],
)
def test_daemons_are_hosts_with_and_without_ports(text: str, places: list[tuple[str, int]]) -> None:
    assert places == list(config.load({"FLX_GRPC_DAEMON_HOST": text, "FLX_GRPC_INSECURE": "true"}).daemons)


@pytest.mark.parametrize(
    "text", ["a:", "a:b", "a:0", "a:65536", ":7", "a b", "[a]:7", "[::1", "http://a", "a/b", "a:1:2"]
)
def test_what_is_no_daemon(text: str) -> None:
    with pytest.raises(StartupError, match=r"^FLX_GRPC_DAEMON_HOST: "):
        config.load({"FLX_GRPC_DAEMON_HOST": f"b,{text}", "FLX_GRPC_INSECURE": "true"})


def test_where_a_daemon_listens_has_a_port() -> None:
    assert ("127.0.0.1", 0) == config.load({"FLX_GRPC_LISTEN": "127.0.0.1:0"}).listening
    for text in ("127.0.0.1", "::1", "", ":", "a:99999"):
        if text:
            with pytest.raises(StartupError, match=r"^FLX_GRPC_LISTEN: "):
                config.load({"FLX_GRPC_LISTEN": text, "FLX_GRPC_INSECURE": "true"})
