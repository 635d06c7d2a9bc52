"""Every way to talk a fetcher into the network it stands in that we know of; all are refused, and nothing is asked."""

from __future__ import annotations

import asyncio
import time

import pytest
from runtime.tools.web.fake_web import FakeWeb, Names, serve

from icrl.errors import ToolArgumentError, ToolError
from icrl.runtime.tools.web.address import is_public
from icrl.runtime.tools.web.errors import Unavailable
from icrl.runtime.tools.web.hosts import HostLimits
from icrl.runtime.tools.web.page import FetchSettings, PageFetcher
from icrl.runtime.tools.web.url import PageRefused, UrlPolicy


@pytest.fixture
def settings(fake: FakeWeb) -> FetchSettings:
    """Only the port is opened; the gate is the real one."""
    fake.page("/secret", "internal", content_type="text/plain")
    return FetchSettings(urls=UrlPolicy(ports=(80, 443, fake.port)), hosts=HostLimits(interval_s=0), timeout_s=5.0)


async def fetch(url: str, settings: FetchSettings, **seams) -> str:
    fetcher = PageFetcher(settings, **seams)
    try:
        return (await fetcher.fetch(url, deadline=time.monotonic() + 5.0)).text
    finally:
        await fetcher.aclose()


LITERALS = [
    "http://127.0.0.1:{port}/secret",
    "http://127.0.0.1./secret",
    "http://127.1:{port}/secret",
    "http://127.0.1:{port}/secret",
    "http://2130706433:{port}/secret",
    "http://017700000001:{port}/secret",
    "http://0177.0.0.1:{port}/secret",
    "http://0x7f000001:{port}/secret",
    "http://0x7f.0.0.1:{port}/secret",
    "http://0X7F.1:{port}/secret",
    "http://127.0.0.1%00.example.org/",
    "http://0:{port}/secret",
    "http://0.0.0.0:{port}/secret",
    "http://00000:{port}/",
    "http://[::1]:{port}/secret",
    "http://[::]:{port}/secret",
    "http://[0:0:0:0:0:0:0:1]:{port}/secret",
    "http://[::ffff:127.0.0.1]:{port}/secret",
    "http://[::ffff:7f00:1]:{port}/secret",
    "http://[::127.0.0.1]:{port}/secret",
    "http://[64:ff9b::127.0.0.1]:{port}/secret",
    "http://[64:ff9b:1::7f00:1]:{port}/secret",
    "http://[2002:7f00:1::]:{port}/secret",
    "http://[2001:0:7f00:1::]:{port}/secret",
    "http://[fe80::1%25eth0]:{port}/secret",
    "http://[fe80::1%eth0]:{port}/secret",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://10.0.0.1/",
    "http://192.168.0.1/",
    "http://172.16.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://１２７.0.0.1:{port}/secret",
    "http://①②⑦.⓪.⓪.①:{port}/secret",
    "http://127。0。0。1:{port}/secret",
]


@pytest.mark.parametrize("url", LITERALS)
async def test_literals(url, fake, settings):
    with pytest.raises((PageRefused, ToolArgumentError)):
        await fetch(url.format(port=fake.port), settings, resolver=Names())
    assert fake.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://user@127.0.0.1:{port}/secret",
        "http://8.8.8.8@127.0.0.1:{port}/secret",
        "http://8.8.8.8:80@127.0.0.1:{port}/secret",
        "http://@127.0.0.1:{port}/secret",
        "http://:@127.0.0.1:{port}/secret",
        "http://example.org\\@127.0.0.1:{port}/secret",
        "http://example.org#@127.0.0.1:{port}/../x y",
        "http://example.org%40127.0.0.1:{port}/secret",
        "http://127.0.0.1:{port}\\@example.org/",
        "http:\\\\127.0.0.1:{port}/secret",
        "http:/127.0.0.1:{port}/secret",
        "http:127.0.0.1:{port}/secret",
        "http:///127.0.0.1:{port}/secret",
        "http://\t127.0.0.1:{port}/secret",
        "http://127.0.0.1:{port}\r\nHost: evil/secret",
        "http://exam ple.org/",
        "//127.0.0.1:{port}/secret",
        "127.0.0.1:{port}/secret",
        "http://",
        "http://?",
        "http://[",
        "http://[::1",
        "http://a:b:c/",
        "http://example.org:99999/",
        "http://example.org:-1/",
        "",
        "http://" + "a" * 3000,
        "http://" + "a" * 70 + ".example/",
        "http://example..org/",
        "http://\ud800.example/",
    ],
)
async def test_tricks_of_writing(url, fake, settings):
    with pytest.raises(ToolError) as caught:
        await fetch(url.format(port=fake.port), settings, resolver=Names())
    assert isinstance(caught.value, PageRefused | ToolArgumentError | Unavailable) or "no name" in str(caught.value)
    assert fake.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file://localhost/etc/passwd",
        "gopher://127.0.0.1:70/_secret",
        "ftp://127.0.0.1/x",
        "data:text/plain,secret",
        "data://text/plain,secret",
        "javascript:alert(1)",
        "ws://127.0.0.1/",
        "http+unix://%2Frun%2Fdocker.sock/info",
        "unix:///run/docker.sock",
        "unix:/run/docker.sock",
        "dict://127.0.0.1:11211/stats",
        "jar:http://127.0.0.1!/x",
    ],
)
async def test_other_schemes(url, settings):
    with pytest.raises((PageRefused, ToolArgumentError), match="https"):
        await fetch(url, settings)


@pytest.mark.parametrize("port", [1, 21, 22, 25, 6379, 8080, 2375])
async def test_other_ports(port):
    with pytest.raises(PageRefused, match=f"port {port} may not be asked"):
        await fetch(f"http://example.org:{port}/", FetchSettings(), resolver=Names())


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
        ["64:ff9b::7f00:1"],
        ["127.0.0.1", "::1"],
        ["10.0.0.1", "127.0.0.1", "::1"],
        ["0.0.0.0"],
    ],
)
@pytest.mark.parametrize("host", ["rikor.example", "localhost", "metadata.google.internal"])
async def test_names_of_private_addresses(addresses, host, fake, settings):
    names = Names(**{host.replace(".", "_"): [addresses]})
    with pytest.raises(PageRefused, match=f"^{host} is not on the public internet$"):
        await fetch(f"http://{host}:{fake.port}/secret", settings, resolver=names)
    assert fake.requests == []


async def test_name_of_this_machine_by_the_real_resolver(fake, settings):
    with pytest.raises(PageRefused, match=r"^localhost is not on the public internet$"):
        await fetch(f"http://localhost:{fake.port}/secret", settings)
    assert fake.requests == []


async def test_rebinding():
    """The name stands for an allowed address when it is asked first, and for a forbidden one from then on."""
    async with serve("127.0.0.2") as allowed, serve() as forbidden:
        ports = (allowed.port, forbidden.port)
        settings = FetchSettings(urls=UrlPolicy(ports=ports), hosts=HostLimits(interval_s=0), obey_robots=False)
        names = Names(rikor_example=[["127.0.0.2"], ["127.0.0.1"]])
        forbidden.page("/", "internal", content_type="text/plain")
        allowed.redirect("/", f"http://rikor.example:{forbidden.port}/")
        with pytest.raises(PageRefused, match="not on the public internet"):
            await fetch(
                f"http://rikor.example:{allowed.port}/",
                settings,
                resolver=names,
                allow_address=lambda address: str(address) == "127.0.0.2",
            )
        assert (allowed.paths, forbidden.paths) == (["/"], [])
        assert names.asked == ["rikor.example"] * 2


def unwrap(address) -> bool:
    """Stands for the public internet: one loopback address, and nothing else that is not public."""
    return str(address) == "127.0.0.2" or is_public(address)


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/secret",
        "//127.0.0.1:{port}/secret",
        "http://[::ffff:127.0.0.1]:{port}/secret",
        "http://8.8.8.8@127.0.0.1:{port}/secret",
        "http://2130706433:{port}/secret",
        "http://inside.example:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "http://[64:ff9b::7f00:1]:{port}/",
        "https://127.0.0.1:{port}/secret",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "data:text/plain,secret",
        "unix:///run/docker.sock",
        "http://example.org:22/",
        "http:\\\\127.0.0.1:{port}/secret",
        "http://[::1",
        "http://example.org:99999/",
    ],
)
@pytest.mark.parametrize("hops", [1, 4])
async def test_redirects_inside(target, hops, fake, settings):
    async with serve("127.0.0.2") as outside:
        for hop in range(hops):
            outside.redirect(f"/{hop}", f"/{hop + 1}", status=(301, 302, 303, 307, 308)[hop])
        outside.redirect(f"/{hops}", target.format(port=fake.port))
        urls = UrlPolicy(ports=(80, 443, fake.port, outside.port))
        allowing = FetchSettings(urls=urls, hosts=settings.hosts, obey_robots=False)
        names = Names(outside_example=[["127.0.0.2"]], inside_example=[["127.0.0.1"]])
        with pytest.raises(ToolError) as caught:
            await fetch(f"http://outside.example:{outside.port}/0", allowing, resolver=names, allow_address=unwrap)
        assert isinstance(caught.value, PageRefused) or "redirects to an address" in str(caught.value)
        assert len(outside.requests) == hops + 1
    assert fake.requests == []


async def test_robots_txt_goes_through_the_same_gate(fake, settings):
    async with serve("127.0.0.2") as outside:
        outside.redirect("/robots.txt", f"http://127.0.0.1:{fake.port}/robots.txt")
        allowing = FetchSettings(urls=UrlPolicy(ports=(fake.port, outside.port)), hosts=settings.hosts)
        with pytest.raises(PageRefused, match=r"127\.0\.0\.1 is not on the public internet"):
            await fetch(f"http://127.0.0.2:{outside.port}/", allowing, allow_address=unwrap)
        assert outside.paths == ["/robots.txt"]
    assert fake.requests == []


async def test_proxies_and_passwords_of_the_environment_are_not_used(fake, settings, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, fake.url)
    with pytest.raises(ToolError):
        await fetch("http://rikor.example/", settings, resolver=Names(rikor_example=[["10.0.0.1"]]))
    with pytest.raises(PageRefused):
        await fetch("http://127.0.0.1/", settings)
    assert fake.requests == []
    await fetch(f"{fake.url}/secret", settings, allow_address=lambda _: True)
    assert all("Authorization" not in request.headers for request in fake.requests)


async def test_many_at_once_are_all_refused(fake, settings):
    fetcher = PageFetcher(settings, resolver=Names(rikor_example=[["127.0.0.1"]]))
    urls = [f"http://127.0.0.1:{fake.port}/secret", f"http://rikor.example:{fake.port}/secret"] * 50
    deadline = time.monotonic() + 5.0
    outcomes = await asyncio.gather(*(fetcher.fetch(url, deadline=deadline) for url in urls), return_exceptions=True)
    await fetcher.aclose()
    assert all(isinstance(outcome, ToolError) for outcome in outcomes)
    assert fake.requests == []
