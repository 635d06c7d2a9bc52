from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, ToolArgumentError, ToolError
from icrl.runtime.tools.web.url import PageRefused, UrlPolicy


@pytest.mark.parametrize(
    ("text", "checked"),
    [
        ("https://Rikor.Example/a b".replace(" ", "%20"), "https://rikor.example/a%20b"),
        (" http://rikor.example#part ", "http://rikor.example"),
        ("HTTP://rikor.example:80/?q=1&r=ä", "http://rikor.example/?q=1&r=%C3%A4"),
        ("https://größe.example/", "https://xn--gre-6ka8i.example/"),
        ("https://rikor.example./", "https://rikor.example./"),
        ("https://1.2.3.4.example/", "https://1.2.3.4.example/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700::1]/", "https://[2606:4700::1]/"),
        ("https://a_b.example/@me", "https://a_b.example/@me"),
    ],
)
def test_addresses_that_are_looked_at(text, checked):
    assert str(UrlPolicy().check(text)) == checked


def test_domains():
    policy = UrlPolicy(allow_domains=["rikor.example"], deny_domains=["secret.rikor.example"])
    for fine in ("rikor.example", "RIKOR.example.", "www.rikor.example"):
        policy.check(f"https://{fine}/")
    for refused in (
        "nebar.example",
        "arikor.example",
        "rikor.example.org",
        "secret.rikor.example",
        "x.secret.rikor.example.",
    ):
        with pytest.raises(PageRefused, match="may not be read here"):
            policy.check(f"https://{refused}/")
    for bad in ("Rikor.example", "https://rikor.example", "*.rikor.example", "", "größe.example", ".example"):
        with pytest.raises(ConfigError, match="domains"):
            UrlPolicy(allow_domains=[bad])


@given(st.text(max_size=40))
def test_anything_else_is_refused_with_a_tool_error(text):
    for written in (text, f"http://{text}", f"https://rikor.example{text}"):
        try:
            url = UrlPolicy(allow_domains=["rikor.example"]).check(written)
        except ToolError:
            continue
        host = (url.raw_host or "").removesuffix(".")
        assert host == "rikor.example" or host.endswith(".rikor.example")
        assert url.scheme in ("http", "https")
        assert url.port in (80, 443)
        assert url.raw_user is None


def test_long_addresses():
    with pytest.raises(ToolArgumentError, match="longer than 2048"):
        UrlPolicy().check("https://rikor.example/" + "a" * 2048)
