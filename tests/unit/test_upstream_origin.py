"""Which URLs may be backends, and that no request's target can lead elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from cacheproxy import settings
from cacheproxy.errors import ConfigError, InvalidRequest
from cacheproxy.settings import NamedUpstream, Secret, Settings
from cacheproxy.upstream.client import HttpUpstream
from cacheproxy.upstream.open import clients, refuse_loops
from cacheproxy.upstream.origin import Resolver, base_url

REFUSED = [
    "",
    "api.openai.com",
    "//api.openai.com/v1",
    "file:///etc/passwd",
    "gopher://127.0.0.1:70/1",
    "ftp://host/v1",
    "ws://host/v1",
    "data:text/plain,x",
    "javascript:alert(1)",
    "unix:///run/x.sock",
    "http://",
    "http:///v1",
    "http://:80/v1",
    "http://host:99999/v1",
    "http://host:port/v1",
    "http://host/v1?x=1",
    "http://host/v1#x",
    "http://user@host/v1",
    "http://user:password@host/v1",
    "http://:password@host/v1",
    "http://@host/v1",
    "http://api.openai.com@evil.test/v1",
    "http://api.openai.com%40evil.test@x/v1",
    "http://169.254.169.254/latest/meta-data",
    "http://169.254.169.254:80/v1",
    "http://[::ffff:169.254.169.254]/v1",
    "http://[::ffff:a9fe:a9fe]/v1",
    "http://[fe80::1]/v1",
    "http://[fe80::1%25eth0]/v1",
    "http://[fd00:ec2::254]/v1",
    "http://224.0.0.1/v1",
    "http://[ff02::1]/v1",
    "http://2852039166/v1",
    "http://0xa9fea9fe/v1",
    "http://0xA9.0xFE.0xA9.0xFE/v1",
    "http://0251.0376.0251.0376/v1",
    "http://025177524776/v1",
    "http://169.254.43518/v1",
    "http://0x7f.1/v1",
    "http://127.1/v1",
    "http://2130706433/v1",
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_no_backend_is_refused_by_its_key_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        base_url(url, "upstreams.b")
    assert refusal.value.message.startswith("upstreams.b.url")
    assert "password" not in refusal.value.message or "user or password" in refusal.value.message
    assert ":password" not in refusal.value.message


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("https://api.openai.com", "https://api.openai.com/v1"),
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("http://10.0.0.7/openai/v1", "http://10.0.0.7/openai/v1"),
        ("http://gpu-7.internal:8000/a%2Fb", "http://gpu-7.internal:8000/a%2Fb"),
        ("http://1password.test/v1", "http://1password.test/v1"),
    ],
)
def test_backends_on_any_other_address_are_taken(url: str, normal: str) -> None:
    assert base_url(url, "upstream") == normal


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/v1",
        "http://127.0.0.2:8080",
        "http://localhost:8080/v1",
        "http://LOCALHOST.:8080/v1",
        "http://[::1]:8080/v1",
        "http://[::ffff:127.0.0.1]:8080/v1",
        "http://0.0.0.0:8080/v1",
        "http://[::]:8080/v1",
        "http://10.1.1.1:8080/v1",
    ],
)
def test_a_backend_that_is_the_proxy_itself_is_refused_by_its_key(url: str) -> None:
    named = Settings(upstreams={"b": NamedUpstream(url=url, models=("m",))})
    with pytest.raises(ConfigError, match=r"^upstreams\.b\.url "):
        refuse_loops(named, 8080, {"10.1.1.1"})
    with pytest.raises(ConfigError, match=r"^upstream\.url .*OPENAI_BASE_URL"):
        refuse_loops(Settings(upstream=settings.Upstream(url=url)), 8080, {"10.1.1.1"})
    refuse_loops(named, 8081, {"10.1.1.1"})


def test_a_backend_gets_one_key() -> None:
    both = NamedUpstream(url="http://b.test", models=("m",), api_key=Secret("sk-x"), pass_key=True)
    with pytest.raises(ConfigError, match=r"^upstreams\.b: api_key and pass_key") as refusal:
        clients(Settings(upstreams={"b": both}))
    assert "sk-x" not in refusal.value.message


@pytest.mark.parametrize("key", ["sk-x\n", "sk x", "sk-\u00e9", "sk-\x00"])
def test_a_key_that_no_header_can_carry_is_refused_by_name(key: str) -> None:
    named = NamedUpstream(url="http://b.test", models=("m",), api_key=Secret(key))
    with pytest.raises(ConfigError, match=r"^upstreams\.b\.api_key") as refusal:
        clients(Settings(upstreams={"b": named}))
    assert key not in refusal.value.message


PIECES = ["/", "//", "\\", "@", ":", "#", "?", "%", "&", ";", "[", "]", "%2f", "%5c", "%40", "%00", "..", "."]
PIECES += ["evil.test", "http:", "v1", "user:pw", "::1", "80", "é"]
TARGET = st.one_of(
    st.text(st.characters(min_codepoint=0, max_codepoint=255)),
    st.lists(st.sampled_from(PIECES)).map("".join),
)


@given(target=st.one_of(TARGET, TARGET.map("/v1".__add__), TARGET.map("/v1/".__add__)))
@example(target="/v1@evil.test/x")
@example(target="@evil.test/v1")
@example(target="//evil.test/v1/models")
@example(target="/v1//evil.test/models")
@example(target="http://evil.test/v1")
@example(target="/v1\\@evil.test")
@example(target="/v1:80@evil.test")
@example(target=":99999")
@pytest.mark.parametrize("base", ["https://api.test/v1", "http://127.0.0.1:8000", "http://[::1]/a%2Fb/"])
def test_no_target_changes_the_origin(base: str, target: str) -> None:
    client = HttpUpstream(settings.Upstream(url=base))
    try:
        url = client.url_of(target)
    except InvalidRequest:
        return
    assert url.origin() == URL(base).origin()
    assert (url.raw_user, url.raw_password) == (None, None)
    assert url.raw_path.startswith(URL(base_url(base, "x")).raw_path)


async def test_names_that_lead_to_link_local_addresses_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import socket

    found = ["169.254.169.254", "10.0.0.1"]

    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert [one["host"] for one in await Resolver().resolve("rebinding.test", 80)] == ["10.0.0.1"]
    found.pop()
    with pytest.raises(OSError, match="link-local"):
        await Resolver().resolve("rebinding.test", 80)
