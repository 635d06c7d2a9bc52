from __future__ import annotations

import pytest

from icrl.errors import ConfigError
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.endpoint import Endpoint


@pytest.mark.parametrize(
    ("address", "host", "port", "named"),
    [
        ("http://a", "a", 80, b"a"),
        ("http://A:80/", "a", 80, b"a"),
        ("http://a:8080", "a", 8080, b"a:8080"),
        ("https://a", "a", 443, b"a"),
        ("https://a:80", "a", 80, b"a:80"),
        ("http://[::1]", "::1", 80, b"[::1]"),
        ("http://[::1]:3", "::1", 3, b"[::1]:3"),
    ],
)
def test_the_server_is_told_its_name(address: str, host: str, port: int, named: bytes) -> None:
    endpoint = Endpoint(address)
    assert (endpoint.host, endpoint.port) == (host, port)
    assert b"\r\nHost: " + named + b"\r\n" in endpoint.head("GET", "/", None)
    assert (endpoint.tls is not None) == address.startswith("https")


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://:80",
        "http://a:b",
        "http://a:70000",
        "http://[::1",
        "http://a b",
        "http://a\r\nX: y",
        "http://bücher.example",
        "http://a..b",
        "http://a?b",
        "http://a#b",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^address: "):
        Client(address)


def test_an_address_holds_no_secrets() -> None:
    with pytest.raises(ConfigError, match="pass a key as api_key") as caught:
        Client("http://user:hunter2@host:1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["a\r\nX: y", "a\n", "ключ", "a\0"])
def test_a_key_adds_no_header(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^api_key: ") as caught:
        Client("http://a", api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/ä"])
async def test_a_path_adds_no_header(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^path: "):
        await Client("http://127.0.0.1:1").get(path, timeout_s=1)


def test_more_paths_than_are_remembered_can_be_asked() -> None:
    endpoint = Endpoint("http://a/b")
    heads = {endpoint.head("GET", f"/{i}", None).split()[1] for i in range(100)}
    assert heads == {b"/b/%d" % i for i in range(100)}
